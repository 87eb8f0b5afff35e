"""Packed cylinders and spheres: packings, tables, tissue model, posterior."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_form_tables import closed_form_table

from dipy_spinverse import Acquisition
from dipy_spinverse.bloch_torrey.finite_volumes.operator import relative_transmissibility
from dipy_spinverse.bloch_torrey.finite_volumes.simulator import Simulator
from dipy_spinverse.packed_cells import packed_cells_posterior, posterior
from dipy_spinverse.packed_cells.tables import cache
from dipy_spinverse.packed_cells.tables.packing import random_packing
from dipy_spinverse.packed_cells.tables.signal_table import (
    LEAKLESS,
    TableSetting,
    build_signal_table,
    relative_q,
    simulate_packings,
)
from dipy_spinverse.packed_cells.tables.two_pools import Pulses, two_pool_signal
from dipy_spinverse.packed_cells.tissue_classes import (
    ALIGNED,
    CLASSES,
    axis_of,
    class_signals,
    tissue_class,
)
from dipy_spinverse.packed_cells.tissue_model import tissue_model, watson_coefficients
from dipy_spinverse.voxels.tensor_frames import tensor_frames

TIMINGS = np.array([[8.0, 15.0], [8.0, 40.0]])
Q_MAX = np.array([0.6, 0.36])
SIGMA = 0.02


def protocol(rotation=None, shells=(1.0, 2.5, 4.5)):
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(16, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    if rotation is not None:
        directions = directions @ rotation.T
    rows = []
    for small, big in TIMINGS:
        rows += [(0.0, np.zeros(3), small, big)] * 3
        rows += [(b, g, small, big) for b in shells for g in directions]
    b, g, small, big = (np.array(column) for column in zip(*rows, strict=True))
    return Acquisition(b=b, directions=g, small_delta=small, big_delta=big, te=60)


@pytest.fixture(scope="module")
def tables():
    settings = (TableSetting(shape, TIMINGS, Q_MAX, 2.0) for shape in ("cylinder", "sphere"))
    return {setting.shape: closed_form_table(setting) for setting in settings}


@pytest.fixture
def use_tables(tables, monkeypatch):
    monkeypatch.setattr(posterior, "cached_table", lambda shape, *_: tables[shape])
    return tables


def magnitudes(signals, rng, sigma=SIGMA):
    noise = rng.normal(size=(2, *signals.shape)) * sigma
    return np.hypot(signals + noise[0], noise[1])


def drawn_tissue(tables, name, n, seed):
    """Draws of the prior of a class, their signals and surface to volume."""
    tissue = tissue_class(name, free_water=False)
    rng = np.random.default_rng(seed)
    u = rng.random((n, tissue.n_parameters))
    z = np.log(u / (1 - u))
    if name != "spheres":
        # Uniform on the disc of the hemisphere.
        at = tissue.columns("axis_0", "axis_1")
        disc = rng.normal(size=(n, 2))
        radius = np.sqrt(2 * rng.random((n, 1)))
        z[:, at] = disc / np.linalg.norm(disc, axis=1, keepdims=True) * radius
    model = tissue_model(protocol(), tables, 2.0, 3.0)
    frames = np.repeat(np.eye(3)[None], n, axis=0)
    return tissue, z, class_signals(model, tissue, z, frames)


@pytest.mark.parametrize("shape", ["cylinder", "sphere"])
def test_packing_has_the_volume_and_the_area_of_its_bodies(shape):
    packing = random_packing(shape, 0.5, 4.0, np.random.default_rng(0))
    assert packing.fraction == pytest.approx(0.5, abs=0.005)
    walls = packing.resistance > 0
    area = (packing.grid.face_areas[walls] / packing.resistance[walls]).sum()
    dimension = 2 if shape == "cylinder" else 3
    # 4 cubes per radius: 3 %, as of single bodies; faces shared by two bodies add up in series.
    assert area / packing.grid.volumes.sum() == pytest.approx(0.5 * dimension, rel=0.05)


def test_one_layer_of_cylinders_stands_for_all():
    packing = random_packing("cylinder", 0.4, 2.0, np.random.default_rng(1))
    grid = packing.scaled_grid(3.0)
    assert (np.bincount(grid.face_tetrahedra.ravel()) == 4).all()
    along = Acquisition(b=[1.0, 1.0], directions=[[0, 0, 1], [1, 0, 0]], small_delta=8,
                        big_delta=40)  # fmt: skip
    tau = relative_transmissibility(grid, packing.face_permeability(0.0)[None], 2.0)
    signal = Simulator(along, grid, steps=8).signals(torch.from_numpy(tau))[0].numpy()
    # Free along the axis, but for the roughness of walls on a lattice of 1.5 um.
    assert signal[0] == pytest.approx(np.exp(-2.0), abs=0.03)
    assert signal[1] > 0.4


def test_packing_refuses_what_cannot_be_packed():
    with pytest.raises(ValueError, match="fraction is 0.95"):
        random_packing("cylinder", 0.95, 3.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="shape is 'cube'"):
        random_packing("cube", 0.5, 3.0, np.random.default_rng(0))


@pytest.mark.parametrize("shape", ["cylinder", "sphere"])
def test_two_pools_have_the_limits_of_no_exchange_and_of_no_gradient(shape):
    q = np.array([1e-4, 2.0])
    pulses = Pulses(q, np.full(2, 8.0), np.full(2, 40.0))
    small_cells = np.array([[0.3, 0.4, 0.0]])
    signal = two_pool_signal(shape, small_cells, pulses, 2.0)[0]
    assert signal[0] == pytest.approx(1, abs=1e-5)
    # Only the water inside is left: 0.4, less the little that 0.3 um restrict.
    assert signal[1] == pytest.approx(0.4, abs=0.03)


def test_table_gives_back_what_it_was_made_of(tables):
    table = tables["cylinder"]
    model = tissue_model(protocol(), tables, 2.0, 3.0)
    rng = np.random.default_rng(5)
    coordinates = table.lower + (table.upper - table.lower) * rng.random((200, 3))
    exact = TableSetting("cylinder", TIMINGS, Q_MAX, 2.0).closed_form(coordinates)
    error = np.exp(model.log_signals("cylinder", coordinates)[0]) - exact
    # The spline between 25 x 17 x 19 nodes, at the corners of the range.
    assert np.median(np.abs(error)) < 2e-4
    assert np.abs(error).max() < 5e-3


def test_signal_between_tabulated_q_is_that_of_a_gaussian(tables):
    table = tables["sphere"]
    q = np.linspace(0, Q_MAX[0], 7)
    weights = table.q_interpolation(np.zeros(7, int), q)
    log_signals = -3.0 * np.tile(relative_q(), (2, 1)) ** 2 * Q_MAX[:, None] ** 2
    np.testing.assert_allclose(weights @ log_signals.ravel(), -3.0 * q**2, atol=1e-10)


@pytest.mark.parametrize("name", [*CLASSES, ALIGNED])
def test_derivatives_are_those_of_the_signals(tables, name):
    tissue = tissue_class(name, free_water=True)
    model = tissue_model(protocol(), tables, 2.0, 3.0)
    rng = np.random.default_rng(0)
    z = rng.uniform(-1.3, 1.3, size=(6, tissue.n_parameters))
    frames = np.repeat(np.linalg.qr(rng.normal(size=(3, 3)))[0][None], 6, axis=0)
    _, jacobian = class_signals(model, tissue, z, frames, slopes=True)
    step = 1e-5
    for k in range(tissue.n_parameters):
        change = step * (np.arange(tissue.n_parameters) == k)
        ends = [class_signals(model, tissue, z + s * change, frames) for s in (1, -1)]
        # Central differences: rounding 1e-11 over the step, squares of the step.
        np.testing.assert_allclose(jacobian[..., k], (ends[0] - ends[1]) / (2 * step), atol=1e-6)


def test_dispersion_goes_from_parallel_to_isotropic():
    mean, _ = watson_coefficients(np.array([0.0005, 0.3, 0.999]))
    assert mean[0, 1] == pytest.approx(1, abs=3e-3)
    assert 0.2 < mean[1, 1] < 0.8
    assert mean[2, 1] == pytest.approx(0, abs=2e-3)


def test_axes_are_unit_vectors_and_uniform_over_the_map():
    rng = np.random.default_rng(0)
    disc = rng.uniform(-1.42, 1.42, (4000, 2))
    disc = disc[(disc**2).sum(axis=1) < 2]
    axes = axis_of(disc, np.repeat(np.eye(3)[None], len(disc), axis=0))
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1, atol=1e-12)
    # Third component uniform in 0..1: mean 1/2, standard error 0.005.
    assert axes[:, 2].mean() == pytest.approx(0.5, abs=0.02)


def test_posterior_is_the_same_for_the_same_seed(use_tables):
    *_, signals = drawn_tissue(use_tables, "cylinders", 2, 0)
    data = magnitudes(signals, np.random.default_rng(1))
    first, again, other = (
        packed_cells_posterior(
            protocol(), data, SIGMA, n_draws=50, seed=seed, classes=("cylinders",)
        )
        for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(first.maps["pore_diameter"], again.maps["pore_diameter"])
    assert (first.maps["pore_diameter"] != other.maps["pore_diameter"]).any()


def test_turned_tissue_has_a_turned_axis_and_the_same_surface(use_tables):
    rotation = np.linalg.qr(np.random.default_rng(8).normal(size=(3, 3)))[0]
    tissue, z, signals = drawn_tissue(use_tables, "cylinders", 2, 2)
    data = magnitudes(signals, np.random.default_rng(1))
    results = [
        packed_cells_posterior(protocol(turn), data, SIGMA, classes=("cylinders",))
        for turn in (None, rotation)
    ]
    axes = [each.best["wall_orientation"] for each in results]
    cosine = np.abs(np.einsum("vk,vk->v", axes[0] @ rotation.T, axes[1]))
    # The search stops within a small part of the error of the axis.
    assert (cosine > 0.999).all()
    surface = [each.best["surface_to_volume"] for each in results]
    np.testing.assert_allclose(surface[0], surface[1], rtol=0.02)


def test_frames_are_those_of_the_tensor_whatever_the_echo_times():
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    tensor = basis @ np.diag([0.3, 0.6, 1.7]) @ basis.T
    full = protocol()
    acquisition = Acquisition(
        full.b, full.directions, full.small_delta, full.big_delta, te=full.big_delta + 20
    )
    decay = np.exp(-full.b * np.einsum("mi,ij,mj->m", full.directions, tensor, full.directions))
    data = decay * np.where(acquisition.te_index == 0, 1.0, 0.4)
    (frame,) = tensor_frames(acquisition, data[None])
    # The ridge of 1e-8 of the trace.
    np.testing.assert_allclose(np.abs(frame @ basis), np.eye(3), atol=1e-5)


def test_axis_is_found_across_the_only_gradient_direction(use_tables):
    full = protocol()
    along_x = np.where(full.b0_mask[:, None], 0, [1.0, 0, 0])
    acquisition = Acquisition(
        full.b, along_x, full.small_delta, full.big_delta, te=60, b0_threshold=full.b0_threshold
    )
    model = tissue_model(acquisition, use_tables, 2.0, 3.0)
    place = np.array([[np.log(3), 0.6, np.log(0.01 + LEAKLESS)]])
    signals = model.cylinders(place, np.array([[0.0, 0, 1]]), np.zeros(1))
    data = magnitudes(signals, np.random.default_rng(1))
    result = packed_cells_posterior(acquisition, data, SIGMA, classes=("cylinders",))
    # 17 degrees; an axis along the gradient would have 1.
    assert abs(result.best["wall_orientation"][0, 0]) < 0.3
    # 102 measurements: standard error 0.14.
    assert result.chi_square[0] / result.degrees_of_freedom[0] < 1.5


def test_units_of_the_data_do_not_matter(use_tables):
    *_, signals = drawn_tissue(use_tables, "spheres", 2, 2)
    data = magnitudes(signals, np.random.default_rng(1))
    setting = {"n_draws": 50, "classes": ("spheres",)}
    one = packed_cells_posterior(protocol(), data, SIGMA, **setting)
    thousand = packed_cells_posterior(protocol(), data * 1000, SIGMA * 1000, **setting)
    np.testing.assert_allclose(
        one.mean("surface_to_volume"), thousand.mean("surface_to_volume"), rtol=1e-3
    )


def test_noise_is_estimated_where_it_is_not_given(use_tables):
    *_, signals = drawn_tissue(use_tables, "spheres", 4, 2)
    data = magnitudes(signals, np.random.default_rng(1))
    result = packed_cells_posterior(protocol(), data, n_draws=50, classes=("spheres",))
    # 102 measurements: 7 % standard error each.
    np.testing.assert_allclose(result.sigma, SIGMA, rtol=0.25)


@pytest.mark.parametrize("case", ["one shell", "one timing", "noise only"])
def test_poor_data_give_wide_intervals_and_no_nan(use_tables, case):
    acquisition = protocol()
    *_, signals = drawn_tissue(use_tables, "cylinders", 2, 7)
    data = magnitudes(signals, np.random.default_rng(1))
    kept = np.ones(len(acquisition), dtype=bool)
    if case == "one shell":
        kept = (acquisition.b < 1.1) & (acquisition.big_delta == 40)
    if case == "one timing":
        kept = acquisition.big_delta == 40
    if case == "noise only":
        data = magnitudes(np.zeros_like(data), np.random.default_rng(1))
    acquisition, data = acquisition.subset(kept), data[:, kept]
    result = packed_cells_posterior(acquisition, data, SIGMA, classes=("cylinders",))
    for values in (*result.maps.values(), *result.best.values(), result.predicted):
        assert np.isfinite(values).all()
    if case != "one timing":
        # The prior's interval of the radius is a factor of 17 wide.
        low, high = result.interval("body_diameter")
        assert (high > 3 * low).all()


def test_wrong_input_is_named(use_tables):
    acquisition = protocol()
    good = np.ones((2, len(acquisition)))
    cases = [
        ({"data": good[0]}, "data has shape"),
        ({"data": good * np.nan}, "data has voxels"),
        ({"sigma": [1, 2, 3]}, "sigma has shape"),
        ({"sigma": -1.0}, "sigma is between"),
        ({"diffusivity": 0}, "diffusivity is 0"),
        ({"n_draws": -1}, "n_draws is -1"),
        ({"classes": ("cubes",)}, "classes is"),
    ]
    for change, message in cases:
        arguments = {"data": good, "sigma": SIGMA, **change}
        with pytest.raises(ValueError, match=message):
            packed_cells_posterior(acquisition, **arguments)


def test_damaged_cache_is_built_again(tables, monkeypatch, tmp_path):
    built = []

    def build(setting):
        built.append(setting.shape)
        return tables[setting.shape]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "build_signal_table", build)
    for damage in (False, False, True):
        cache._recent.clear()
        if damage:
            next((tmp_path / "dipy_spinverse").glob("*.npz")).write_bytes(b"broken")
        table = cache.cached_table("sphere", protocol(), 2.0)
        np.testing.assert_array_equal(table.coefficients, tables["sphere"].coefficients)
    cache._recent.clear()
    assert built == ["sphere", "sphere"]


def test_cache_that_cannot_be_written_is_no_error(tables, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(cache, "build_signal_table", lambda setting: tables[setting.shape])
    cache._recent.clear()
    assert cache.cached_table("sphere", protocol(), 2.0) is tables["sphere"]
    cache._recent.clear()


@pytest.mark.slow
def test_intervals_cover_the_truth(use_tables, monkeypatch):
    # Signals of the very tables: no tissue that differs from them.
    for module in ("posterior", "tissue_model"):
        monkeypatch.setattr(
            f"dipy_spinverse.packed_cells.{module}.packing_spread",
            lambda shape, fraction: np.zeros((4, *np.shape(fraction))),
        )
    inside = []
    for name in ("cylinders", "spheres"):
        tissue, z, signals = drawn_tissue(use_tables, name, 40, 11)
        data = magnitudes(signals, np.random.default_rng(1))
        result = packed_cells_posterior(protocol(), data, SIGMA, classes=(name,))
        truth = posterior.tissue_maps(
            posterior.tissue_parameters(tissue, z), np.zeros((len(z), 3))
        )
        for key in ("surface_to_volume", "restricted_fraction", "wall_permeability"):
            low, high = result.interval(key)
            inside.append((low <= truth[key]) & (truth[key] <= high))
    # 240 intervals of 80 voxels: standard error about 1.5 %.
    assert 0.90 <= np.mean(inside) <= 0.99


@pytest.mark.slow
def test_table_agrees_with_packings_on_a_finer_lattice():
    setting = TableSetting("cylinder", np.array([[8.0, 30.0]]), np.array([0.42]), 2.0)
    table = build_signal_table(setting)
    coordinates, signals = simulate_packings(setting, 12, 99, refinement=1.5)
    acquisition = Acquisition(b=[1.0], directions=[[1, 0, 0]], small_delta=8, big_delta=30)
    model = tissue_model(acquisition, {"cylinder": table}, 2.0, 3.0)
    error = np.exp(model.log_signals("cylinder", coordinates)[0]) - signals[0]
    # Single packings of four cylinders differ by about 1 %.
    assert np.median(np.abs(error)) < 0.006


def test_water_without_cells_is_told_as_such(use_tables):
    acquisition = protocol()
    rng = np.random.default_rng(5)
    data = magnitudes(np.tile(np.exp(-2 * acquisition.b), (3, 1)), rng)
    result = packed_cells_posterior(acquisition, data, SIGMA, n_draws=100)
    assert (result.class_probabilities["no cells"] > 0.5).all()
    for name in ("surface_to_volume", "restricted_fraction", "wall_anisotropy"):
        low, high = result.interval(name)
        assert (low == 0).all() and (result.best[name] == 0).all(), name
    freedom = len(acquisition) - len(acquisition.echo_times)
    assert (result.degrees_of_freedom == freedom).all()
    # Chi-square over its degrees of freedom: five standard deviations.
    np.testing.assert_allclose(result.chi_square / freedom, 1, atol=5 * np.sqrt(2 / freedom))


def test_aligned_cylinders_lie_across_the_only_gradient_and_are_found(use_tables):
    acquisition = protocol()
    x = np.where(acquisition.b0_mask[:, None], 0.0, [1.0, 0, 0])
    one_direction = Acquisition(
        acquisition.b, x, acquisition.small_delta, acquisition.big_delta, te=60
    )
    model = tissue_model(one_direction, use_tables, 2.0, 3.0)
    kappa = np.array([0.005, 0.02, 0.08])
    coordinates = np.stack([np.full(3, np.log(3.0)), np.full(3, 0.5), np.log(kappa + LEAKLESS)], 1)
    clean = model.cylinders(coordinates, np.tile([0, 0, 1.0], (3, 1)), np.zeros(3))
    data = magnitudes(clean, np.random.default_rng(7))
    result = packed_cells_posterior(one_direction, data, SIGMA, classes=(ALIGNED,))
    assert np.abs(result.maps["wall_orientation"][..., 0]).max() < 1e-6
    assert (result.maps["orientation_dispersion"] == 0).all()
    low, high = result.interval("wall_permeability")
    assert ((low < kappa) & (kappa < high)).all()
    assert (np.diff(result.mean("wall_permeability")) > 0).all()


def test_draws_of_a_voxel_do_not_depend_on_the_others(use_tables):
    acquisition = protocol()
    rng = np.random.default_rng(6)
    model = tissue_model(acquisition, use_tables, 2.0, 3.0)
    signals = model.spheres(np.array([[1.0, 0.4, -4.0], [1.5, 0.3, -2.0]]))
    data = magnitudes(np.vstack([signals, np.exp(-2 * acquisition.b)]), rng)
    together = packed_cells_posterior(acquisition, data, SIGMA, n_draws=20)
    alone = packed_cells_posterior(acquisition, data[1:2], SIGMA, n_draws=20)
    # Sums in another order.
    np.testing.assert_allclose(
        together.maps["pore_diameter"][:, 1], alone.maps["pore_diameter"][:, 0], rtol=1e-4
    )
