"""What an acquisition can determine: bounds, blind spots, suggestions."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from scipy.special import ndtri

from dipy_spinverse import Acquisition, PackedCellsModel
from dipy_spinverse.packed_cells.tissue_classes import tissue_class
from dipy_spinverse.packed_cells.tissue_signals import tissue_signals
from dipy_spinverse.scan_design.bounds import class_bounds, map_bounds
from dipy_spinverse.scan_design.identifiability import identifiability
from dipy_spinverse.scan_design.limitations import limitations, resolution_limit_um
from dipy_spinverse.scan_design.suggestions import Suggestions, _joined, suggest

SIGMA = 0.02


def directions(n):
    vectors = np.random.default_rng(3).normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def protocol(timings=((8, 15), (8, 40)), shells=(1.0, 2.5, 4.5), n=16, n_b0=2, te=80.0):
    rows = []
    for k, (small, big) in enumerate(timings):
        echo = np.atleast_1d(te)[min(k, np.size(te) - 1)]
        rows += [(0.0, np.zeros(3), small, big, echo)] * (n_b0[k] if np.ndim(n_b0) else n_b0)
        rows += [(b, g, small, big, echo) for b in shells for g in directions(n)]
    b, g, small, big, te = (np.array(column) for column in zip(*rows, strict=True))
    return Acquisition(b=b, directions=g, small_delta=small, big_delta=big, te=te)


def median_spread(result, name):
    return np.median(result.bounds[name].posterior_sd[0])


@pytest.fixture(scope="module")
def rich():
    return identifiability(protocol(), n_draws=90)


def test_second_diffusion_time_determines_exchange(rich):
    # As many measurements at either time alone.
    for timing in ((8, 15), (8, 40)):
        one = identifiability(protocol(timings=(timing,) * 2), n_draws=90)
        assert median_spread(rich, "exchange_time") < 0.7 * median_spread(one, "exchange_time")
        # That of thin pores stays with their unknown size.
        permeability = [median_spread(each, "wall_permeability") for each in (rich, one)]
        assert permeability[0] < 0.95 * permeability[1]


def test_added_measurements_lower_every_bound(rich):
    acquisition = protocol()
    parts = np.stack([acquisition.big_delta == 40, np.ones(len(acquisition), dtype=bool)])
    bounds = map_bounds(
        acquisition, parts, SIGMA, 2.0, free_diffusivity=3.0,
        n_draws=40, seed=0,
    )  # fmt: skip
    assert "free_water_fraction" in bounds
    for bound in bounds.values():
        # The variance of the noise depends on the signal only: information adds up, up to
        # errors common to both parts.
        assert (bound.posterior_sd[1] <= bound.posterior_sd[0] * (1 + 1e-6)).all()


def test_noise_raises_all_bounds_up_to_the_prior(rich):
    noisy = identifiability(protocol(), sigma=0.1, n_draws=90)
    blind = identifiability(protocol(), sigma=0.999, n_draws=90)
    for name, bound in rich.bounds.items():
        assert median_spread(rich, name) < median_spread(noisy, name)
        assert (noisy.bounds[name].posterior_sd <= bound.prior_sd * (1 + 1e-9)).all()
    row = next(r for r in blind.table() if r["map"] == "wall_permeability")
    assert row["verdict"] == "not identifiable"
    # 98 measurements at SNR 1 say next to nothing.
    assert row["removed"] < 0.1


def test_prior_spread_is_that_of_the_prior(rich):
    rows = {row["map"]: row for row in rich.table()}
    # Log-uniform over 0.0005 to 0.5 um/ms; stratified draws, 1 % left out at either end.
    assert rows["wall_permeability"]["prior"] == pytest.approx(
        np.exp(np.log(1000) / 12**0.5), rel=0.05
    )
    assert rows["wall_orientation"]["prior"] == pytest.approx(57.3, abs=0.1)


def test_thin_pores_are_not_resolved_and_wide_ones_are(rich):
    bound = rich.bounds["pore_diameter"]
    left = bound.posterior_sd[0] / bound.prior_sd
    diameter = np.exp(bound.values)
    # That they are thin is known: some of the prior is gone.
    assert np.median(left[diameter < 1.5]) > 0.55
    # The unknown diffusivities and the water beside cells leave a third of the prior.
    assert np.median(left[(diameter > 5) & (diameter < 10)]) < 0.4


def test_resolution_limit_is_that_of_the_published_form():
    # 80 mT/m, 40 ms, D 2 um^2/ms, one measurement at SNR 50 of half of the signal.
    b = (2.6751525e8 * 0.08 * 40e-9) ** 2 * (60 - 40 / 3)
    acquisition = Acquisition(b=[0, b], directions=[[0, 0, 0], [1, 0, 0]], small_delta=40,
                              big_delta=60)  # fmt: skip
    s = 1.64 * 0.02 / 0.5
    expected = (768 / 7 * 2e-9 * s / ((2.6751525e8 * 0.08) ** 2 * 0.04)) ** 0.25 * 1e6
    assert resolution_limit_um(acquisition, 0.02, 2.0) == pytest.approx(expected, rel=1e-6)


def test_what_fits_leave_unknown_widens_the_bounds(rich):
    known = identifiability(protocol(), diffusivity=2e-3, n_draws=90)
    assert "free_water_fraction" in rich.bounds
    for name in ("restricted_fraction", "exchange_time"):
        assert median_spread(rich, name) > 1.2 * median_spread(known, name)


def test_rich_protocol_has_no_blind_spot(rich):
    assert rich.limitations == ()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("one diffusion time", {"timings": ((8, 40),)}),
        ("low b", {"shells": (0.5, 1.0)}),
        ("long pulses", {"timings": ((30, 40), (30, 80)), "te": 120.0}),
        ("one shell", {"shells": (3.0,)}),
        ("few directions", {"n": 6}),
        ("no b0", {"n_b0": 0}),
        ("echo time without b0", {"n_b0": (2, 0), "te": (60.0, 80.0)}),
    ],
)
def test_blind_spot_of_a_deficient_protocol_is_named(name, change):
    found = limitations(protocol(**change), SIGMA, 2.0)
    assert name in [spot.name for spot in found]
    others = {spot.name for spot in found} - {name}
    # Weak gradients of one deficiency bring the other.
    assert others <= {"long pulses"}


def test_opposite_directions_count_once():
    acquisition = protocol()
    half = np.where(np.arange(len(acquisition)) % 2, 1, -1)[:, None]
    flipped = Acquisition(
        b=acquisition.b, directions=np.tile([1.0, 0, 0], (len(half), 1)) * half,
        small_delta=acquisition.small_delta, big_delta=acquisition.big_delta, te=acquisition.te,
    )  # fmt: skip
    (spot,) = limitations(flipped, SIGMA, 2.0)
    assert spot.description.startswith("1 direction:")


def test_blind_spots_show_in_the_bounds(rich):
    for change, name in (
        ({"timings": ((8, 40),)}, "exchange_time"),
        ({"timings": ((30, 40), (30, 80)), "te": 120.0}, "pore_diameter"),
        ({"n": 3}, "wall_orientation"),
    ):
        poor = identifiability(protocol(**change), n_draws=90)
        # Sizes of most tissues are uncertain with either protocol.
        assert median_spread(poor, name) > 1.1 * median_spread(rich, name)


def test_printed_result_has_a_line_per_map_and_the_findings():
    result = identifiability(protocol(timings=((8, 40),)), n_draws=60)
    text = str(result)
    for row in result.table():
        assert row["map"] in text
        assert row["verdict"] in ("identifiable", "weakly identifiable", "not identifiable")
        bound = result.bounds[row["map"]]
        left = np.mean((bound.posterior_sd[0] / bound.prior_sd) ** 2)  # of the variance
        assert row["removed"] == pytest.approx(1 - left) and 0 <= row["removed"] <= 1
    assert "One diffusion time" in text
    assert "None" not in text and "nan" not in text


def test_gradient_table_is_the_same_as_its_acquisition():
    acquisition = protocol()
    gtab = gradient_table(
        acquisition.b * 1000, bvecs=acquisition.directions,
        big_delta=acquisition.big_delta / 1000, small_delta=acquisition.small_delta / 1000,
    )  # fmt: skip
    result = identifiability(gtab, n_draws=90)
    # A gradient table has no echo time: one for all, the least possible.
    direct = identifiability(protocol(te=48.0), n_draws=90)
    for name in direct.bounds:
        assert median_spread(result, name) == pytest.approx(median_spread(direct, name), rel=1e-6)


def test_figure_is_written_or_drawn(rich, tmp_path):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rich.figure(tmp_path / "bounds.png")
    assert (tmp_path / "bounds.png").stat().st_size > 5000
    _, axes = pyplot.subplots()
    assert rich.figure(axes) is axes
    assert len(axes.get_yticks()) == len(rich.bounds)
    pyplot.close("all")


def test_suggestions_are_ranked_and_no_worse_than_nothing():
    rows = suggest(protocol(timings=((8, 40),), shells=(1.0, 4.0)), n_draws=60).rows
    gains = [row["gain"] for row in rows]
    assert gains == sorted(gains, reverse=True)
    assert min(gains) >= 0
    # Another diffusion time tells more than the same shell again.
    again = next(k for k, row in enumerate(rows) if (row["b"], row["big_delta"]) == (4.0, 40.0))
    assert again > 0
    assert rows[0]["big_delta"] != 40.0


def test_suggested_shells_keep_directions_gradient_and_echo_times():
    acquisition = protocol(timings=((8, 40),))
    rows = suggest(acquisition, [(3.0, 8.0, 60.0), (3.0, 8.0, 100.0)], n_draws=30).rows
    by_time = {row["big_delta"]: row for row in rows}
    # TE 80 ms has room for Delta 60; Delta 100 needs its own TE, with b = 0.
    assert by_time[60.0]["measurements"] == 16
    assert by_time[100.0]["measurements"] == 18
    largest = acquisition.gradient_t_per_m.max()
    for row in suggest(acquisition, n_draws=30).rows:
        assert row["gradient"] <= largest * (1 + 1e-6)


def test_suggestions_keep_the_mixing_time_of_stimulated_echoes():
    spin_echoes = protocol(timings=((8, 40),)).arrays()
    acquisition = Acquisition(**{**spin_echoes, "mixing_time": 25.0, "te": 25.0})
    (row,) = suggest(acquisition, [(3.0, 8.0, 20.0)], n_draws=30).rows
    assert 0 <= row["gain"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acquisition": "dwi.bval"}, "acquisition is a str"),
        ({"sigma": 0}, "sigma is 0"),
        ({"sigma": 50}, "sigma is 50"),
        ({"diffusivity": 2.0}, "diffusivity is 2.0"),
        ({"free_diffusivity": -1}, "free_diffusivity is -1"),
        ({"n_draws": 3}, "n_draws is 3"),
        ({"candidates": [(1, 2)]}, r"candidates has \(1, 2\)"),
        ({"candidates": [(1, 20, 10)]}, "big_delta at least"),
        ({"candidates": []}, "candidates is empty"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"acquisition": protocol(), **change}
    call = suggest if "candidates" in change else identifiability
    with pytest.raises(ValueError, match=message):
        call(**arguments)


def test_acquisition_without_weighting_is_refused():
    only_b0 = protocol().subset(protocol().b0_mask)
    with pytest.raises(ValueError, match="no measurement with diffusion weighting"):
        identifiability(only_b0)


@pytest.mark.slow
def test_bound_is_the_spread_of_fits():
    """Fits of 60 noisy copies of one tissue of cylinders spread as the bound says."""
    acquisition = protocol()
    tissue = tissue_class("cylinders", diffusivity_known=True)
    # Radius 3.5 um, fraction 0.5, permeability 0.02 um/ms, dispersion 0.06: well determined.
    u = dict(radius=0.56, fraction=0.6, permeability=0.53, dispersion_1=0.4, dispersion_2=0.4)
    z = np.full((1, tissue.n_parameters), -5.0)
    z[:, tissue.columns(*u)] = ndtri([*u.values()])
    z[:, -3:] = 0
    model = tissue_signals(acquisition, (2.0, 2.0), 3.0, interpolated=False)
    signals = np.empty((1, len(acquisition)))
    signals[:, model.shells.order] = model(tissue, z, np.eye(3)[None])
    noise = np.random.default_rng(0).normal(size=(2, 60, len(acquisition))) * SIGMA
    data = np.hypot(signals + noise[0], noise[1])
    model_of_fit = PackedCellsModel(acquisition, diffusivity=2e-3, classes=("cylinders",))
    fit = model_of_fit.posterior(data, SIGMA, n_samples=0)
    everything = np.ones((1, len(acquisition)), dtype=bool)
    bounds = class_bounds(model, tissue, z, np.eye(3)[None], acquisition, everything, SIGMA)
    for name in ("surface_to_volume", "wall_permeability", "exchange_time", "pore_diameter"):
        bound = bounds[name][1][0, 0] ** -0.5
        # The water beside cells is fitted here and taken as known there, and 60 fits tell their
        # spread within 9 %.
        assert 0.7 < np.log(fit.estimated_maps[name]).std() / bound < 2, name


def test_the_package_offers_the_functions_not_their_modules():
    import dipy_spinverse

    for name in dipy_spinverse.__all__:
        assert type(getattr(dipy_spinverse, name)) is not type(dipy_spinverse), name


def test_suggestions_are_printed_one_in_a_line_with_the_map_that_gains_most():
    row = {
        "b": 3.0, "small_delta": 8.0, "big_delta": 40.0, "gradient": 0.25, "measurements": 33,
        "gain": 0.2, "gains": {"pore_diameter": 0.1, "exchange_time": 0.4},
    }  # fmt: skip
    lines = str(Suggestions((row, row | {"b": 6.0}))).splitlines()
    assert len(lines) == 3 and lines[2].split()[0] == "6.00"
    assert lines[1].split() == [
        "3.00", "8.0", "40.0", "250", "33", "20", "%", "exchange_time", "(40", "%)"
    ]  # fmt: skip


def test_joined_acquisitions_keep_what_counts_as_b0():
    parts = [
        Acquisition([0.0, 0.04, 1.0], np.eye(3), 8.0, big_delta, b0_threshold=0.05)
        for big_delta in (20.0, 40.0)
    ]
    joined = _joined(parts)
    assert joined.b0_mask.tolist() == [True, True, False] * 2
    assert (
        joined.b.tolist() == [0.0, 0.04, 1.0] * 2 and joined.big_delta.tolist()[3:] == [40.0] * 3
    )
