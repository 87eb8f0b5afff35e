"""SpinverseModel and SpinverseFit: what a DIPY user is promised, and what is recovered."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from inversion_cases import GRID, multi_shell, shells, spread_directions, tissue_signals

from dipy_spinverse import (
    Acquisition,
    ClosedCellInversion,
    FaceInversion,
    SpinverseModel,
    TissueWallInversion,
    bcc_grid,
    load_fit,
    simulate,
)
from dipy_spinverse.inversion import (
    Binarisation,
    Continuity,
    Manifoldness,
    Stage,
    WallArea,
    WallProblem,
)
from dipy_spinverse.inversion.face_solver import FaceSolver
from dipy_spinverse.inversion.gauss_newton import gauss_newton
from dipy_spinverse.inversion.unknowns import wall_faces
from dipy_spinverse.spinverse import SpinverseFit
from dipy_spinverse.spinverse.model import choose_inversion
from dipy_spinverse.substrates.membranes import from_inside
from dipy_spinverse.voxels import chunks
from dipy_spinverse.voxels.status import Status
from dipy_spinverse.walls.interface import InterfaceMesh
from dipy_spinverse.walls.metrics import compare_walls

# Enough to find something in under a second per voxel; what is promised of every fit does not
# depend on the number of iterations.
QUICK = (
    Stage(diffusion_times=(0,), priors=(WallArea(0.05),), max_iterations=2, initial_value=0.8),
    Stage(priors=(WallArea(0.1),), max_iterations=2),
)
ACQUISITION = multi_shell()
SIGMA = 2.0
MAPS = [name + suffix for name in SpinverseFit.MAPS for suffix in ("", "_std", "_low", "_high")]
MAPS += ["wall_orientation", "wall_orientation_angle", "pattern_agreement"]
EVERYTHING = ["permeability", "wall_probability", "S0_hat", "sigma", "residual_rms", *MAPS]


def quick_model(acquisition=ACQUISITION, priors=None, **settings):
    inversion = FaceInversion(curriculum=QUICK, priors=priors)
    return SpinverseModel(acquisition, grid=GRID, inversion=inversion, **settings)


@pytest.fixture(scope="module")
def volume():
    """Noisy signals (2, 2, 1, M) with S0 100: cylinders along z and x, and free water."""
    acquisition = ACQUISITION
    voxels = [
        tissue_signals(acquisition),
        tissue_signals(acquisition, permeability=0.0, axis=(1, 0, 0)),
        tissue_signals(acquisition, permeability=0.1),
        np.exp(-2 * acquisition.b),
    ]
    noise = SIGMA * np.random.default_rng(0).standard_normal((4, len(acquisition)))
    return np.abs(100 * np.array(voxels) + noise).reshape(2, 2, 1, -1)


@pytest.fixture(scope="module")
def model():
    return quick_model()


@pytest.fixture(scope="module")
def volume_fit(model, volume):
    return model.fit(volume, sigma=SIGMA, n_fields=1)


def assert_same_fit(found, expected, **tolerance):
    tolerance = tolerance or {"rtol": 1e-12}
    np.testing.assert_array_equal(found.status, expected.status)
    for name in EVERYTHING:
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), err_msg=name, **tolerance
        )


def assert_nearly_same_fit(found, expected):
    """Up to the order of sums and single precision, which few faces amplify."""
    np.testing.assert_array_equal(found.status, expected.status)
    for name in ("wall_probability", "surface_to_volume", "S0_hat", "residual_rms"):
        difference = np.abs(getattr(found, name) - getattr(expected, name)).max()
        assert difference <= 1e-3 * np.abs(getattr(expected, name)).max(), name


# ---------------------------------------------------------------- recovery


def published_acquisition(n_directions):
    return shells([(5, 6), (10, 20), (10, 60)], (1, 2, 3, 4, 5), n_directions)


@pytest.fixture(scope="module")
def body_in_a_box():
    """Grid, walls (F,), acquisition and signals of the published task, with few directions."""
    grid = bcc_grid(4, 6.667, boundary="absorbing")
    inside = np.linalg.norm(grid.centroids, axis=1) < 10.0
    walls = np.isfinite(from_inside(grid, inside))
    acquisition = published_acquisition(10)
    return grid, walls, acquisition, simulate(acquisition, grid, np.where(walls, 0.01, 100.0))


@pytest.mark.filterwarnings("ignore:The grid is too coarse")
def test_closed_body_in_an_absorbing_box_is_recovered_exactly(body_in_a_box):
    grid, walls, acquisition, signals = body_in_a_box
    # Its own curriculum, so that the default one can be tuned on harder bodies.
    curriculum = (
        Stage(
            diffusion_times=(0,), priors=(WallArea(0.01),), max_iterations=15, initial_value=0.15
        ),
        Stage(priors=(WallArea(0.1),), max_iterations=15),
        Stage(priors=(WallArea(0.3), Manifoldness(0.1)), max_iterations=10),
        Stage(priors=(WallArea(0.1),), max_iterations=15),
    )
    inversion = FaceInversion(curriculum=curriculum)
    model = SpinverseModel(acquisition, grid=grid, inversion=inversion)
    fit = model.fit(signals, S0=1.0, n_fields=0, n_draws=0)
    found = compare_walls(fit.wall_probability > 0.5, walls, grid, point_reflection=True)
    assert found.f1 == 1
    assert fit.status == Status.CONVERGED
    assert fit.residual_rms < 1e-3
    mesh = fit.interface()
    assert len(mesh.triangles) == walls.sum()
    assert mesh.n_components == 1


def noisy(signals, snr, n, seed=0):
    noise = np.random.default_rng(seed).standard_normal((n, len(signals))) / snr
    return np.abs(signals + noise)


def test_tissue_is_explained_to_the_noise_and_free_water_has_no_walls():
    acquisition = shells([(8, 15), (8, 45)], (1.0, 3.0), 15, n_b0=3)
    cylinders = noisy(tissue_signals(acquisition, permeability=0.01), 50, 2)
    free = noisy(np.exp(-2 * acquisition.b), 50, 2, seed=1)
    model = SpinverseModel(acquisition, grid=GRID)
    fit = model.fit(100 * np.vstack([cylinders, free]), sigma=2.0, n_fields=1)
    # A fit takes degrees of freedom; the grid is coarser than the one that made the signals.
    assert ((fit.residual_rms > 0.6 * 2.0) & (fit.residual_rms < 1.3 * 2.0)).all()
    np.testing.assert_allclose(fit.S0_hat, 100, rtol=0.05)  # 3 b0 of 2 %, and the weighted ones
    assert (fit.status != Status.MISFIT).all()
    assert fit.packed_cells.all()
    # 2 pi r / L^2 for one cylinder of 4.5 um per 15 um; the tables of the tests are a closed form.
    surface = 2 * np.pi * 4.5 / 15**2
    assert (np.abs(fit.surface_to_volume[:2] / surface - 1) < 0.5).all()
    # More than half of the draws say that there are no cells at all.
    assert (fit.surface_to_volume_low[2:] == 0).all()
    assert (fit.surface_to_volume[2:] < 0.2 * surface).all()
    assert (np.abs(fit.wall_orientation[:2, 2]) > 0.95).all()
    # Some draws are of cylinders that cross, at up to 45 degrees on either side: 20 here.
    assert (fit.wall_orientation_angle[:2] < 25).all()
    for name in ("restricted_fraction", "surface_to_volume"):
        low, mean, high = (getattr(fit, name + end) for end in ("_low", "", "_high"))
        assert ((low <= mean) & (mean <= high)).all(), name


def test_noise_level_is_found_from_the_residual():
    acquisition = shells([(8, 15), (8, 45)], (1.0, 3.0), 12)  # too few b0
    data = noisy(tissue_signals(acquisition), 30, 3)
    fit = SpinverseModel(acquisition, grid=GRID).fit(data, n_fields=0, n_draws=0)
    # 50 measurements less about 15 that the fit takes: each is known to 12 %.
    np.testing.assert_allclose(fit.sigma, 1 / 30, rtol=0.3)
    assert fit.sigma.mean() == pytest.approx(1 / 30, rel=0.15)


def test_free_water_outside_the_grid_is_told_from_walls():
    acquisition = shells([(8, 15), (8, 45)], (0.5, 2.0), 6, n_b0=3)
    tissue = tissue_signals(acquisition, permeability=0.0, radius_um=6.0)
    mixed = 0.6 * tissue + 0.4 * np.exp(-3 * acquisition.b)
    model = SpinverseModel(acquisition, grid=GRID, inversion=FaceInversion())
    fit = model.fit(noisy(mixed, 100, 1), sigma=0.01, free_water=True, n_fields=0)
    assert fit.free_water_fraction[0] == pytest.approx(0.4, abs=0.2)
    none = model.fit(noisy(tissue, 100, 1), sigma=0.01, free_water=True, n_fields=0)
    assert none.free_water_fraction[0] < fit.free_water_fraction[0] - 0.2


def test_data_without_any_noise_do_not_break_the_noise_estimate():
    acquisition = shells([(8, 45)], (1.0, 3.0), 10, n_b0=8)
    signals = tissue_signals(acquisition)
    fit = SpinverseModel(acquisition, grid=GRID).fit(signals, n_fields=0, n_draws=0)
    # Where bodies are in a packing no signal tells.
    assert fit.status == Status.PATTERN_NOT_DETERMINED
    assert 0 < fit.residual_rms < 0.01


def test_only_with_less_noise_than_in_the_stages_is_the_last_one_repeated(
    monkeypatch, model, volume
):
    stages = []

    def counting(model, data, sigma, start, stage):
        stages.append(stage)
        return gauss_newton(model, data, sigma, start, stage)

    monkeypatch.setattr(FaceSolver, "_optimise", staticmethod(counting))
    for sigma, n_stages in ((5.0, 2), (1.0, 3)):  # SNR 20 and 100; stages have SNR 50 at most
        stages.clear()
        model.fit(volume[0, 0, 0], sigma=sigma, n_fields=0, n_draws=0)
        assert len(stages) == n_stages and stages[n_stages - 1].priors == QUICK[-1].priors


# ---------------------------------------------------------------- the DIPY idiom


def test_fit_has_the_shape_of_the_data(volume_fit):
    assert volume_fit.shape == (2, 2, 1)
    assert volume_fit.permeability.shape == (2, 2, 1, GRID.n_faces)
    assert volume_fit.wall_orientation.shape == (2, 2, 1, 3)
    assert volume_fit.S0_hat.shape == (2, 2, 1, 2)  # two echo times
    for name in EVERYTHING:
        assert getattr(volume_fit, name).shape[:3] == (2, 2, 1), name
        assert not np.isnan(getattr(volume_fit, name)).any(), name
    assert ((volume_fit.wall_probability >= 0) & (volume_fit.wall_probability <= 1)).all()
    assert (volume_fit.surface_to_volume_std > 0).all()
    assert "SpinverseFit(shape=(2, 2, 1)" in repr(volume_fit)


def test_gtab_gives_the_same_fit_as_an_acquisition(volume, volume_fit):
    gtab = gradient_table(
        1000 * ACQUISITION.b,
        bvecs=ACQUISITION.directions,
        small_delta=ACQUISITION.small_delta / 1000,
        big_delta=ACQUISITION.big_delta / 1000,
    )
    model = quick_model(gtab, te=ACQUISITION.te / 1000)
    fit = model.fit(volume[0, 0, 0], sigma=SIGMA, n_fields=1)
    assert_nearly_same_fit(fit, volume_fit[0, 0, 0])
    assert fit.predict(gtab).shape == fit.predict().shape


def test_missing_deltas_say_how_to_give_them():
    gtab = gradient_table([0, 1000], bvecs=[[0, 0, 0], [1, 0, 0]])
    with pytest.raises(ValueError, match="(?s)delta.*gradient_table"):
        SpinverseModel(gtab)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_other_data_types_are_fitted_as_they_are(model, volume, dtype):
    data = volume[0, 0, 0].astype(dtype)
    fit = model.fit(data, sigma=SIGMA, n_fields=0, n_draws=0)
    assert_same_fit(fit, model.fit(data.astype(float), sigma=SIGMA, n_fields=0, n_draws=0))
    assert_same_fit(fit, model.fit(data.tolist(), sigma=SIGMA, n_fields=0, n_draws=0))


def test_known_S0_is_kept_and_an_unknown_one_is_found(model, volume, volume_fit):
    S0 = np.full((2, 2, 1), 100.0)
    S0[1, 1, 0] = 101.0
    known = model.fit(volume, S0=S0, sigma=SIGMA, n_fields=0, n_draws=0)
    np.testing.assert_allclose(known.S0_hat, np.repeat(S0[..., None], 2, axis=-1))
    # Two b0 of 2 % each, and weighted measurements.
    np.testing.assert_allclose(volume_fit.S0_hat, 100, rtol=0.06)


def test_each_echo_time_has_its_own_S0(volume):
    gtab = gradient_table(
        1000 * ACQUISITION.b,
        bvecs=ACQUISITION.directions,
        small_delta=ACQUISITION.small_delta / 1000,
        big_delta=ACQUISITION.big_delta / 1000,
    )
    late = ACQUISITION.big_delta > 20
    te = np.where(late, 0.09, 0.06)
    data = np.where(late, 0.5, 1.0) * volume[0, 0, 0]
    fit = quick_model(gtab, te=te).fit(data, sigma=SIGMA, n_fields=0, n_draws=0)
    np.testing.assert_allclose(fit.S0_hat, [100, 50], rtol=0.06)
    settings = {"b": 0, "directions": np.zeros((2, 3)), "small_delta": 8, "big_delta": 20}
    known, unknown = Acquisition(**settings, te=[90, 60]), Acquisition(**settings, te=[50, 90])
    np.testing.assert_allclose(fit.predict(known), fit.S0_hat[::-1], rtol=1e-4)  # single precision
    with pytest.raises(ValueError, match="^gtab has measurements whose amplitude was not fitted"):
        fit.predict(unknown)
    np.testing.assert_allclose(fit.predict(unknown, S0=70.0), 70.0, rtol=1e-4)


def test_one_echo_time_has_one_S0(volume):
    one_te = Acquisition(
        b=ACQUISITION.b,
        directions=ACQUISITION.directions,
        small_delta=ACQUISITION.small_delta,
        big_delta=ACQUISITION.big_delta,
        te=60,
    )
    assert quick_model(one_te).fit(volume[0], sigma=SIGMA, n_fields=0, n_draws=0).S0_hat.shape == (
        2,
        1,
    )


# ---------------------------------------------------------------- voxels that cannot be fitted


def test_bad_voxels_outside_the_mask_are_not_mentioned(model, volume):
    data = np.vstack([volume[0, 0, 0], np.full(len(ACQUISITION), np.nan)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = model.fit(data, mask=[True, False], sigma=SIGMA, n_fields=0, n_draws=0)
    assert fit.status[1] == Status.NOT_FITTED


@pytest.mark.parametrize("S0", [0.0, -1.0, np.nan, np.inf])
def test_S0_that_cannot_be_is_a_status(model, volume, S0):
    with pytest.warns(UserWarning, match="1 of 1 voxels"):
        fit = model.fit(volume[0, 0, 0], S0=S0, sigma=SIGMA, n_fields=0, n_draws=0)
    assert fit.status == Status.NO_B0
    assert all(np.all(getattr(fit, name) == 0) for name in EVERYTHING)


def test_signals_that_no_walls_explain_are_a_misfit(model):
    rng = np.random.default_rng(0)
    fit = model.fit(rng.uniform(50, 100, len(ACQUISITION)), sigma=0.5, n_fields=0, n_draws=0)
    assert fit.status == Status.MISFIT


@pytest.mark.parametrize(
    ("case", "sigma"),
    [
        ("one b", None),
        ("one timing", SIGMA),
        ("four measurements", None),
        ("no b0", SIGMA),
        ("noise only", SIGMA),
    ],
)
def test_data_that_determine_little_get_intervals_that_say_so(case, sigma):
    acquisition = shells([(8, 15), (8, 45)], (1.0, 3.0), 8, n_b0=3)
    rng = np.random.default_rng(0)
    clean = 0 * acquisition.b if case == "noise only" else 100 * tissue_signals(acquisition)
    noise = SIGMA * rng.standard_normal((2, len(clean)))
    data = np.hypot(clean + noise[0], noise[1])
    kept = {
        "one b": acquisition.b < 2,
        "one timing": acquisition.big_delta == 45,
        "four measurements": np.isin(np.arange(len(acquisition)), [0, 3, 12, 35]),
        "no b0": ~acquisition.b0_mask,
        "noise only": acquisition.b >= 0,
    }[case]
    model = SpinverseModel(acquisition.subset(kept), grid=GRID)
    fit = model.fit(data[kept], sigma=sigma, n_fields=1)
    assert fit.status not in (Status.MISFIT, Status.BAD_SAMPLES)
    assert all(np.isfinite(getattr(fit, name)).all() for name in MAPS)
    low, high = fit.pore_diameter_low, fit.pore_diameter_high
    if case == "noise only":
        assert high > 2.5 * low  # of a factor of 30 in the prior
    else:
        # The tables of the tests are a closed form, some ten percent off.
        assert low / 1.3 < 9.0 < 1.3 * high


# ---------------------------------------------------------------- walls where they are asked for


@pytest.fixture(scope="module")
def slab():
    """Model, and noisy signals (2, 2, M) with S0 100: three times cylinders, once free water."""
    acquisition = shells([(8, 15), (8, 45)], (1.0, 3.0), 12, n_b0=3)
    signals = np.stack([*[tissue_signals(acquisition)] * 3, np.exp(-2 * acquisition.b)])
    noise = SIGMA * np.random.default_rng(2).standard_normal(signals.shape)
    data = np.abs(100 * signals + noise).reshape(2, 2, -1)
    return SpinverseModel(acquisition, grid=GRID), data


@pytest.fixture(scope="module")
def slab_fit(slab):
    model, data = slab
    return model.fit(data, sigma=SIGMA, walls=[[True, False], [False, False]], n_fields=1)


def test_walls_are_sought_and_stored_where_they_are_asked_for(slab_fit):
    assert slab_fit.has_walls.tolist() == [[True, False], [False, False]]
    assert slab_fit._values["permeability_fields"].shape == (1, 1, GRID.n_faces)
    assert slab_fit.permeability.shape == (2, 2, GRID.n_faces)
    assert not slab_fit.permeability[0, 1].any()
    assert len(slab_fit.interface((0, 0), field=0).triangles) > 0
    part = slab_fit[:, 0]
    assert part.has_walls.tolist() == [True, False]
    np.testing.assert_array_equal(part.permeability[0], slab_fit.permeability[0, 0])
    with pytest.raises(
        ValueError, match=r"^index is \(1, 0\), a voxel without permeability fields; .*walls="
    ):
        slab_fit.interface((1, 0))


def test_maps_do_not_depend_on_whether_walls_are_sought_beside(slab, slab_fit):
    model, data = slab
    maps = model.fit(data, sigma=SIGMA, walls=False)
    assert maps.packed_cells.all() and slab_fit.packed_cells.all()
    for name in (*SpinverseFit.MAPS, "wall_orientation", "sigma", "residual_rms", "S0_hat"):
        # Other voxels are computed together, so that sums are rounded differently.
        np.testing.assert_allclose(
            getattr(maps, name), getattr(slab_fit, name), rtol=1e-6, err_msg=name
        )
    np.testing.assert_allclose(maps.predict(), slab_fit.predict(), rtol=1e-6)
    # 44 degrees of freedom and more: 11 % of the noise.
    np.testing.assert_allclose(maps.residual_rms, SIGMA, rtol=0.4)
    assert (np.isin(maps.status, (Status.CONVERGED, Status.NOT_CONVERGED))).all()


def test_voxels_that_cannot_be_fitted_say_why_without_walls_too(slab):
    model, data = slab
    bad = data.copy()
    bad[0, 1, 3], bad[1, 0] = np.nan, 0
    with pytest.warns(UserWarning, match="2 of 3 voxels cannot be fitted") as caught:
        fit = model.fit(bad, [[1, 1], [1, 0]], sigma=SIGMA, walls=False, n_draws=0)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert fit.status.tolist() == [
        [Status.CONVERGED, Status.BAD_SAMPLES], [Status.NO_SIGNAL, Status.NOT_FITTED],
    ]  # fmt: skip
    assert fit.surface_to_volume[0, 0] > 0 and not fit.surface_to_volume[1].any()


def test_without_walls_their_fields_say_how_to_ask_for_them(slab):
    model, data = slab
    fit = model.fit(data[0, 0], sigma=SIGMA, walls=False, n_draws=0)
    assert not hasattr(fit, "surface_to_volume_low")
    for name in SpinverseFit.WALLS:
        with pytest.raises(AttributeError, match=f"^{name} belongs to .*walls=True"):
            getattr(fit, name)
    with pytest.raises(ValueError, match="without permeability fields; fit with walls=True"):
        fit.interface()


def test_packed_cells_have_more_to_say_than_the_maps_of_walls(slab_fit):
    tissue = slab_fit.tissue
    assert tissue.shape == (2, 2)
    for name in SpinverseFit.MAPS:
        np.testing.assert_array_equal(getattr(tissue, name), getattr(slab_fit, name))
    np.testing.assert_allclose(tissue.predict(), slab_fit.predict(), rtol=1e-12)
    with pytest.raises(ValueError, match="tissue needs packed cells"):
        SpinverseFit(slab_fit.model, np.zeros(()), {}).tissue  # noqa: B018


def test_fit_with_few_walls_is_loaded_as_it_was(tmp_path, slab_fit):
    slab_fit.save(tmp_path / "fit.npz")
    loaded = load_fit(tmp_path / "fit.npz")
    assert_same_fit(loaded, slab_fit)
    np.testing.assert_allclose(loaded.predict(), slab_fit.predict(), rtol=1e-12)
    np.testing.assert_array_equal(loaded.tissue.pore_diameter, slab_fit.tissue.pore_diameter)


def test_what_has_walls_alone_cannot_do_without_them(model, volume):
    with pytest.raises(ValueError, match="^walls is False, but .*FaceInversion"):
        model.fit(volume, walls=False)
    one = np.zeros((2, 2, 1), bool)
    one[0, 1] = True
    fit = model.fit(volume, sigma=SIGMA, walls=one, n_fields=0)
    assert ((fit.status != Status.NOT_FITTED) == one).all()


def test_the_noise_of_a_voxel_does_not_depend_on_which_voxels_have_walls():
    acquisition = shells([(8, 15)], (1.0,), 6, n_b0=6)
    clean = np.tile(100 * np.exp(-2 * acquisition.b), (12, 1))
    data = np.abs(clean + SIGMA * np.random.default_rng(3).standard_normal(clean.shape))
    model, some = quick_model(acquisition), np.arange(12) < 2
    in_all, in_some = (model.fit(data, walls=walls, n_fields=0) for walls in (True, some))
    np.testing.assert_allclose(in_some.sigma[some], in_all.sigma[some], rtol=1e-6)


def test_averages_over_directions_give_maps_but_no_walls():
    b = np.tile([0, 1, 2, 4], 3)
    powder = Acquisition(
        b=b, directions=np.zeros(3), small_delta=10, big_delta=np.repeat([20, 40, 60], 4),
        isotropic=True,
    )  # fmt: skip
    model, water = SpinverseModel(powder), np.exp(-2 * b)
    with pytest.raises(ValueError, match="^walls is True.*walls=False.*PackedCellsModel"):
        model.fit(water)
    fit = model.fit(water, sigma=0.01, walls=False, n_draws=0)
    assert fit.status == Status.CONVERGED
    # Free water is explained to a fifth of the noise.
    np.testing.assert_allclose(fit.predict(), water, atol=0.01)


# ---------------------------------------------------------------- arguments


def test_wrong_shapes_name_the_argument(model, volume, volume_fit):
    cases = [
        ("data", lambda: model.fit(volume[..., :-1])),
        ("data", lambda: model.fit(volume[None])),
        ("data", lambda: model.fit(np.float64(3))),
        ("mask", lambda: model.fit(volume, mask=np.ones((2, 2)))),
        ("walls", lambda: model.fit(volume, walls=np.ones((2, 2)))),
        ("S0", lambda: model.fit(volume, S0=np.ones(3))),
        ("sigma", lambda: model.fit(volume, sigma=np.ones((2, 2)))),
        ("S0", lambda: volume_fit.predict(S0=np.ones(3))),
        ("index", lambda: volume_fit.interface((0, 0))),
    ]
    for name, call in cases:
        with pytest.raises(ValueError, match=f"^{name} (has|is) "):
            call()


def test_values_out_of_range_name_the_argument(model, volume):
    data = volume[0, 0, 0]
    cases = [
        ("sigma has", lambda: model.fit(data, sigma=0.0)),
        ("sigma has", lambda: model.fit(data, sigma=np.nan)),
        ("n_fields is", lambda: model.fit(data, n_fields=-1)),
        ("inversion is", lambda: SpinverseModel(ACQUISITION, inversion="adam")),
        ("diffusivity is", lambda: SpinverseModel(ACQUISITION, diffusivity=2.0)),
        ("te is", lambda: SpinverseModel(ACQUISITION, te=0.06)),
        ("curriculum has", lambda: FaceInversion(curriculum=[Stage()])),
        ("gtab has", lambda: SpinverseModel(ACQUISITION.subset(ACQUISITION.b0_mask))),
    ]
    for start, call in cases:
        with pytest.raises(ValueError, match=f"^{start}"):
            call()


def test_grid_that_is_too_coarse_warns():
    strong = shells([(8, 15)], (20.0,), 3)
    model = quick_model(strong)
    with pytest.warns(UserWarning, match="too coarse for 3 of 4 measurements") as caught:
        model.fit([1.0, 0.1, 0.1, 0.1], sigma=0.1, n_fields=0)
    assert caught[0].filename == __file__


def test_priors_given_take_the_place_of_those_of_the_curriculum(volume):
    data = volume[0, 0, 0]
    heavy = quick_model(priors=[WallArea(1e4)]).fit(data, sigma=SIGMA, n_fields=0, n_draws=0)
    light = quick_model(priors=[]).fit(data, sigma=SIGMA, n_fields=0, n_draws=0)
    assert np.isinf(heavy.permeability).all()
    assert np.isinf(light.permeability).mean() < 0.8


# ---------------------------------------------------------------- predictions, views, files


def test_fit_predicts_its_own_signals(volume, volume_fit):
    predicted = volume_fit.predict()
    assert predicted.shape == volume.shape
    rms = np.sqrt(((predicted - volume) ** 2).mean(axis=-1))
    # The inversion takes fewer time steps than the prediction: 1e-4 of S0.
    np.testing.assert_allclose(rms, volume_fit.residual_rms, atol=0.05)


def test_fit_predicts_other_acquisitions_and_S0(volume_fit):
    other = Acquisition(b=[0, 2], directions=[[0, 0, 0], [1, 0, 0]], small_delta=8, big_delta=45)
    signals = volume_fit.predict(other, S0=1.0)
    assert signals.shape == (2, 2, 1, 2)
    np.testing.assert_allclose(signals[..., 0], 1.0, rtol=1e-5)
    each = volume_fit.predict(other, S0=np.array([[[1.0], [2.0]], [[3.0], [4.0]]]))
    np.testing.assert_allclose(each[1, 0, 0], 3 * signals[1, 0, 0])
    gtab = other.to_gtab()
    np.testing.assert_allclose(volume_fit.predict(gtab, S0=1.0), signals, rtol=1e-6)
    assert volume_fit[0, 0, 0].predict(other).shape == (2,)


def test_fit_is_indexed_as_its_arrays(volume_fit):
    choices = [
        (0, 0, 0),
        (1,),
        (slice(None), 1),
        volume_fit.surface_to_volume > volume_fit.surface_to_volume.mean(),
        (np.array([0, 1]), np.array([1, 0])),
        (-1, -1, -1),
    ]
    for index in choices:
        part = volume_fit[index]
        assert part.shape == volume_fit.status[index].shape
        for name in EVERYTHING:
            np.testing.assert_array_equal(getattr(part, name), getattr(volume_fit, name)[index])
        np.testing.assert_allclose(part.predict(), volume_fit.predict()[index], rtol=1e-6)
    assert volume_fit[..., 0].shape == (2, 2)
    with pytest.raises(IndexError):
        volume_fit[2]
    with pytest.raises(AttributeError, match="surface_to_volume"):
        getattr(volume_fit, "surface")  # noqa: B009


@pytest.mark.filterwarnings("ignore:Voxel .* is MISFIT")  # of a few iterations
def test_interface_is_the_mesh_of_one_voxel(volume_fit):
    mesh = volume_fit.interface((0, 1, 0), threshold=0.4)
    assert isinstance(mesh, InterfaceMesh)
    assert len(mesh.triangles) == (volume_fit.wall_probability[0, 1, 0] >= 0.4).sum() > 0
    alone = volume_fit[0, 1, 0].interface(threshold=0.4)
    np.testing.assert_array_equal(alone.triangles, mesh.triangles)


@pytest.mark.filterwarnings("ignore:Voxel .* is MISFIT")  # of a few iterations
def test_one_wall_field_is_drawn_on_request_with_its_doubts(volume_fit):
    voxel = volume_fit[0, 1, 0]
    closed = [
        wall_faces(GRID, field, 2.0) for field in (voxel.permeability, *voxel.permeability_fields)
    ]
    for field, walls in enumerate(closed):
        mesh = voxel.interface(field=field)
        assert len(mesh.triangles) == walls.sum() > 0
        np.testing.assert_array_equal(mesh.wall_probability, voxel.wall_probability[walls])
    # What only one of two fields has as a wall is not drawn as if it were sure.
    assert voxel.interface(threshold=0.9).triangles.shape[0] < closed[0].sum()
    with pytest.raises(ValueError, match="^field is 2; the fit has fields 0 to 1"):
        voxel.interface(field=2)


def test_walls_are_drawn_of_voxels_that_they_explain_and_of_no_others(model, volume):
    data = np.repeat(volume[0, 0, 0][None], 5, axis=0)
    data[1] = np.random.default_rng(0).uniform(50, 100, len(ACQUISITION))  # nobody's tissue
    data[2, 3], data[3] = np.nan, 0
    with pytest.warns(UserWarning, match="2 of 4 voxels cannot be fitted"):
        fit = model.fit(data, mask=[1, 1, 1, 1, 0], sigma=4.0, n_fields=0)
    refused = {2: "NaN or infinite.*BAD_SAMPLES", 3: "signal.*NO_SIGNAL", 4: "mask.*NOT_FITTED"}
    for voxel, reason in refused.items():
        for field in (None, 0):
            with pytest.raises(ValueError, match=f"^index is {voxel}, a voxel .*{reason}"):
                fit.interface(voxel, field=field)
    with pytest.warns(UserWarning, match="^Voxel 1 is MISFIT: .*do not explain") as caught:
        fit.interface(1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit.interface(0)


def test_pattern_that_samples_do_not_agree_on_is_not_determined(model, volume):
    fit = model.fit(volume[0, 0, 0], sigma=5.0, n_fields=3)
    assert fit.pattern_agreement < 0.8 and fit.status == Status.PATTERN_NOT_DETERMINED
    assert fit.permeability_fields.shape == (3, GRID.n_faces)
    assert (fit.predict() > 0).all()
    alone = model.fit(volume[0, 0, 0], sigma=5.0, n_fields=0, n_draws=0)
    assert alone.pattern_agreement == 1 and alone.status == Status.CONVERGED


CURRICULUM = (
    Stage((0, 1), priors=(WallArea(0.1), Continuity(0.1)), max_iterations=2, initial_value=0.7),
    Stage(priors=(Manifoldness(0.1, temperature=0.3), Binarisation(0.2)), max_iterations=2),
)


@pytest.mark.parametrize("boundary", ["periodic", "absorbing"])
def test_saved_fit_is_loaded_as_it_was(tmp_path, volume, boundary):
    model = SpinverseModel(
        ACQUISITION,
        grid=bcc_grid(3, 5.0, boundary=boundary),
        inversion=FaceInversion(
            curriculum=CURRICULUM,
            priors=(WallArea(np.float32(0.25)),) if boundary == "absorbing" else None,
        ),
        diffusivity=np.float32(1.9e-3),
        seed=np.int64(5),
    )
    fit = model.fit(volume[0], sigma=SIGMA, n_fields=1)
    path = tmp_path / "walls.npz"
    fit.save(path)
    loaded = load_fit(path)
    assert_same_fit(loaded, fit)
    for name in ("inversion", "diffusivity", "seed"):
        assert getattr(loaded.model, name) == getattr(model, name)
    np.testing.assert_allclose(loaded.predict(), fit.predict())
    again = loaded.model.fit(volume[0], sigma=SIGMA, n_fields=1)
    assert_nearly_same_fit(again, fit)
    with np.load(path, allow_pickle=False) as arrays:
        assert all(array.dtype != object for array in arrays.values())


def test_files_that_are_no_fit_are_refused(tmp_path, volume_fit):
    whole = tmp_path / "fit.npz"
    volume_fit.save(whole)
    stored = whole.read_bytes()
    np.savez(tmp_path / "other.npz", settings="{}")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("walls")
    (tmp_path / "cut.npz").write_bytes(stored[: len(stored) // 2])
    for name in ("other.npz", "array.npy", "empty.npz", "text.npz", "cut.npz"):
        with pytest.raises(ValueError, match=f"^path: .*{name} is not a fit"):
            load_fit(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_fit(tmp_path / "missing.npz")


def test_priors_of_one_s_own_cannot_be_saved(tmp_path, volume_fit):
    class Own(WallArea):
        pass

    fit = SpinverseFit(quick_model(priors=[Own(0.1)]), volume_fit.status, volume_fit._values)
    with pytest.raises(ValueError, match="inversion has .*Own.*cannot be saved"):
        fit.save(tmp_path / "fit.npz")
    assert not (tmp_path / "fit.npz").exists()


# ---------------------------------------------------------------- repeats and chunks


def test_same_seed_gives_the_same_fit_and_another_seed_another(model, volume, volume_fit):
    assert_nearly_same_fit(model.fit(volume, sigma=SIGMA, n_fields=1), volume_fit)
    other = quick_model(seed=1).fit(volume[0, 0, 0], sigma=SIGMA, n_fields=1)
    difference = np.abs(other.wall_probability - volume_fit[0, 0, 0].wall_probability)
    assert difference.max() > 0.01


def test_chunks_do_not_change_the_fit_of_voxels_of_different_noise(model, volume, monkeypatch):
    sigma = np.array([[0.5], [2.0], [4.0], [1.0]]).reshape(2, 2, 1)
    whole = model.fit(volume, sigma=sigma, n_fields=0, n_draws=0)
    monkeypatch.setattr(chunks, "_MIN_VOXELS", 1)
    assert_nearly_same_fit(model.fit(volume, sigma=sigma, n_fields=0, n_draws=0), whole)


def test_directions_of_the_test_acquisitions_are_unit():
    np.testing.assert_allclose(np.linalg.norm(spread_directions(9), axis=1), 1)


def test_inversions_of_equal_stages_are_equal_whatever_holds_them():
    stages = [Stage(initial_value=0.8)]
    assert FaceInversion(curriculum=stages) == FaceInversion(curriculum=tuple(stages))
    assert hash(FaceInversion(curriculum=stages)) == hash(FaceInversion(curriculum=tuple(stages)))


def test_the_default_inversion_follows_from_grid_and_data():
    """Closed cells need an absorbing box, a known S0, and no free water."""
    acquisition = shells([(8, 15)], (1.0,), 6)
    for boundary in ("periodic", "absorbing", "reflecting"):
        for known in (True, False):
            for water in (True, False):
                problem = WallProblem(
                    acquisition, bcc_grid(3, 5.0, boundary), S0_known=known, free_water=water
                )
                expected = FaceInversion
                if boundary == "absorbing" and known and not water:
                    expected = ClosedCellInversion
                if boundary == "periodic":
                    expected = TissueWallInversion
                assert type(choose_inversion(problem)) is expected


def test_samples_of_cells_need_packed_cells(volume_fit):
    with pytest.raises(ValueError, match=r"^sample is 1, but .* no packed cells.*field=1"):
        volume_fit.interface((0, 1, 0), sample=1)
