"""Walls of tissue: packings as drawn, and their corrections where the data give evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from inversion_cases import shells, spread_directions

from dipy_spinverse import Acquisition, SpinverseModel, Status, TissueWallInversion, bcc_grid
from dipy_spinverse.acquisition.encodings import pulsed_gradients
from dipy_spinverse.bloch_torrey import relative_transmissibility, simulate
from dipy_spinverse.inversion import WallProblem
from dipy_spinverse.packed_cells.maps import PARAMETERS
from dipy_spinverse.spinverse import packings, wall_corrections
from dipy_spinverse.spinverse.packings import packing_of, rescaled_grid
from dipy_spinverse.spinverse.tissue_walls import signal_correction
from dipy_spinverse.spinverse.wall_corrections import (
    PackingSignals,
    _evidence_maximum,
    _predicts_held_out,
    corrected_walls,
)
from dipy_spinverse.walls.maps import wall_maps

LATTICE = bcc_grid(4, 5.0)
AXIS = np.array([2.0, 1.0, -2.0]) / 3
ACQUISITION = shells([(8, 15), (8, 45)], (1.0, 3.0), 15, n_b0=2)


def tissue(radius=2.0, fraction=0.4, permeability=0.02, spheres=False):
    """Parameters of a draw."""
    own = {"radius": radius, "fraction": fraction, "permeability": permeability}
    values = dict.fromkeys(PARAMETERS, 0.0) | own
    values |= {f"sphere_{name}": value for name, value in own.items()}
    return values | {
        "sphere_share": float(spheres), "diffusivity_inside": 2.0, "diffusivity_outside": 2.0,
    }  # fmt: skip


def packing(seed=0, **numbers):
    return packing_of(LATTICE, tissue(**numbers), AXIS, np.random.default_rng(seed))


def maps_of(found):
    tau = relative_transmissibility(found.grid, found.permeability, found.diffusivity)
    time = (found.grid.period_um.max()) ** 2 / found.diffusivity
    maps = wall_maps(
        found.grid, torch.as_tensor(tau)[None], diffusivity=found.diffusivity, diffusion_time=time
    )
    return {name: value[0] for name, value in maps.items()}


# Of cylinders 2 f / R, of spheres 3 f / R; small bodies get a short lattice and large ones a long.
@pytest.mark.parametrize("radius", [0.5, 6.0])
@pytest.mark.parametrize(("spheres", "fraction"), [(False, 0.5), (True, 0.4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_packing_has_the_surface_fraction_and_permeability_of_its_draw(
    radius, spheres, fraction, seed
):
    maps = maps_of(packing(seed, radius=radius, fraction=fraction, spheres=spheres))
    surface = (3 if spheres else 2) * fraction / radius
    # Staircases of about one lattice cube per radius: 1 to 7 %.
    assert maps["surface_to_volume"] == pytest.approx(surface, rel=0.1)
    assert maps["restricted_fraction"] == pytest.approx(fraction, rel=0.05)
    assert maps["wall_permeability"] == pytest.approx(0.02, rel=0.1)


def test_packing_that_the_lattice_cannot_hold_is_less_dense_with_as_much_surface():
    maps = maps_of(packing(radius=2.0, fraction=0.78))
    assert 0.5 < maps["restricted_fraction"] < 0.7  # water gets around the bodies
    assert maps["surface_to_volume"] == pytest.approx(2 * 0.78 / 2.0, rel=0.1)
    sparse = maps_of(packing(radius=2.0, fraction=0.01))
    assert sparse["surface_to_volume"] == pytest.approx(2 * 0.01 / 2.0, rel=0.2)


def test_packing_lies_along_the_axis_of_its_draw():
    found = packing(permeability=0.0)
    along, across = AXIS, np.cross(AXIS, [1.0, 0, 0])
    both = Acquisition(
        b=[0, 2, 2], directions=[[0, 0, 0], along, across / np.linalg.norm(across)],
        small_delta=8, big_delta=45,
    )  # fmt: skip
    signals = PackingSignals(found, both).signals(found.scaled_transmissibility)
    assert signals[1] == pytest.approx(np.exp(-2 * 2.0), abs=0.02)  # free along cylinders
    assert signals[2] > 0.3
    # The same with waveforms.
    pulses = pulsed_gradients(both.b, both.directions, 8, 45, ramp=1e-3)
    np.testing.assert_allclose(
        PackingSignals(found, pulses).signals(found.scaled_transmissibility), signals, atol=2e-3
    )


def test_lattice_of_another_length_has_the_signals_of_a_scaled_world():
    fine, coarse = (bcc_grid(4, size) for size in (2.0, 5.0))
    for name in ("volumes", "face_areas", "face_distances", "displacements", "period_um"):
        np.testing.assert_allclose(getattr(rescaled_grid(coarse, 0.4), name), getattr(fine, name))


NOISE = 0.004


def changed(found):
    """Walls with a partition: the faces across one plane of the lattice are half closed."""
    across = np.abs(found.grid.face_normals[:, 2]) > 0.5
    scaled_transmissibility = found.scaled_transmissibility.copy()
    low = np.abs(found.grid.face_points.mean(axis=1)[:, 2]) < 0.26 * found.grid.period_um[2]
    scaled_transmissibility[across & low] *= 0.3
    return scaled_transmissibility


def test_changes_of_walls_hardly_hang_on_the_steps_in_time(monkeypatch):
    found = packing()
    few = PackingSignals(found, ACQUISITION).change(changed(found))
    monkeypatch.setattr(wall_corrections, "_STEPS", 32)
    many = PackingSignals(found, ACQUISITION).change(changed(found))
    # 0.2 % here: much less than what noise leaves to be known of a change.
    np.testing.assert_allclose(few, many, atol=0.005 * np.abs(many).max())


def test_walls_leave_the_packing_where_the_data_ask_for_it():
    found = packing()
    patch = PackingSignals(found, ACQUISITION)
    other = Acquisition(
        b=np.full(20, 2.0), directions=spread_directions(20), small_delta=8, big_delta=30
    )
    weight = np.full(len(ACQUISITION), 1 / NOISE)
    noise = np.random.default_rng(0).standard_normal(len(ACQUISITION))
    residual = weight * patch.change(changed(found)) + noise
    assert (residual**2).mean() > 10
    left = corrected_walls(patch, weight, residual)
    assert left is not None and left.n_determined > 1
    assert ((0 <= left.scaled_transmissibility) & (left.scaled_transmissibility <= 1)).all()
    # The evidence takes for noise what is not linear in so large a change.
    assert ((residual - left.change) ** 2).mean() < 0.01 * (residual**2).mean()
    # And it foretells measurements of another time and other directions.
    unseen = PackingSignals(found, other)
    expected, foretold = unseen.change(changed(found)), unseen.change(left.scaled_transmissibility)
    assert ((expected - foretold) ** 2).mean() < 0.1 * (expected**2).mean()


@pytest.mark.parametrize("seed", range(4))
def test_walls_stay_in_the_packing_where_there_is_only_noise(seed):
    patch = PackingSignals(packing(), ACQUISITION)
    noise = np.random.default_rng(seed).standard_normal(len(ACQUISITION))
    weight = np.full(len(ACQUISITION), 1 / NOISE)
    assert corrected_walls(patch, weight, noise) is None
    # Nor where the noise is larger than was said: that is not a reason for walls.
    assert corrected_walls(patch, weight, 3 * noise) is None


def test_noise_seldom_looks_like_changes_of_walls():
    rng = np.random.default_rng(5)
    basis = np.linalg.qr(rng.standard_normal((120, 20)))[0]
    strength = np.geomspace(1e-3, 1.0, 20)
    folds = [np.arange(120) % 4 == k for k in range(4)]
    asked = foretold = 0
    for _ in range(300):
        noise = 1.5 * rng.standard_normal(120)
        asked += _evidence_maximum(strength, basis.T @ noise, 120, noise @ noise)[1] > 0
        foretold += _predicts_held_out(basis, noise, folds)
    # One of 1000, and two standard errors: 2 %. Three times as often is chance in 300 draws.
    assert asked <= 3 and foretold <= 20
    changed = basis @ (10 * np.sqrt(strength) * rng.standard_normal(20)) + rng.standard_normal(120)
    variance, prior = _evidence_maximum(strength, basis.T @ changed, 120, changed @ changed)
    assert variance == pytest.approx(1, abs=0.3) and prior == pytest.approx(100, rel=0.8)
    assert _predicts_held_out(basis * np.sqrt(strength * prior / variance), changed, folds)


@pytest.fixture(scope="module")
def fitted():
    """Fit of cylinders along the axis, from the packed cells themselves."""
    model = SpinverseModel(ACQUISITION, diffusivity=2e-3)
    start = np.stack([np.cross(AXIS, [0, 0, 1.0]), np.zeros(3), AXIS])
    start[0] /= np.linalg.norm(start[0])
    start[1] = np.cross(AXIS, start[0])
    values = {name: np.array([value]) for name, value in tissue(3.0, 0.5).items()}
    values |= {"dispersion_1": np.array([1e-3]), "dispersion_2": np.array([1e-3])}
    stored = {
        "_parameters": np.stack([values[name] for name in PARAMETERS], axis=1),
        "_class": np.zeros(1, int), "_frame": start[None],
    }  # fmt: skip
    layout = model.tissue_model.layout(0)
    stored |= {
        name: np.zeros((1, *layout[name][1])) for name in ("_polarity_asymmetry", "_fast_fraction")
    }
    signals = model.tissue_model.signals_of_fit(stored, ACQUISITION)[0]
    noise = 0.01 * np.random.default_rng(3).standard_normal((2, len(ACQUISITION)))
    data = 100 * np.hypot(signals + noise[0], noise[1])
    return model.fit(data, sigma=1.0, n_fields=2, n_draws=60), data


def test_fields_explain_the_signals_as_packed_cells_do_and_say_that_places_are_unknown(fitted):
    fit, data = fitted
    assert fit.wall_status == Status.CONVERGED
    assert fit.status == Status.PATTERN_NOT_DETERMINED
    # Seven unknowns of 64 measurements: 9 % each.
    assert np.sqrt(((fit.predict() - data) ** 2).mean()) == pytest.approx(1.0, abs=0.3)
    # Every place of the lattice is alike: no face is surely a wall.
    assert 0 < fit.wall_probability.max() < 0.6
    np.testing.assert_allclose(fit.field_diffusivity, 2e-3, rtol=1e-12)  # as specified, mm^2/s
    np.testing.assert_allclose(fit.tissue.diffusivity_inside, 2e-3, rtol=1e-12)
    assert fit.pattern_agreement < 0.5


def test_mesh_of_a_field_is_in_um_and_in_the_frame_of_the_gradients(fitted):
    fit, _ = fitted
    mesh = fit.interface(field=0)
    # Normals of cylinders are across their axis, but for the staircase.
    along = np.abs(mesh.normals @ fit.wall_orientation)
    assert np.median(along) < 0.1
    volume = LATTICE.volume_um3 * fit.field_scale[0] ** 3
    assert mesh.area_um2 / volume == pytest.approx(fit.tissue.surface_to_volume_likeliest, rel=0.1)
    low, high = fit.tissue.surface_to_volume_low, fit.tissue.surface_to_volume_high
    other = fit.interface(field=1).area_um2 / (LATTICE.volume_um3 * fit.field_scale[1] ** 3)
    assert 0.8 * low < other < 1.2 * high


def test_sample_is_drawn_as_smooth_closed_cells_along_its_axis(fitted, tmp_path):
    fit, _ = fitted
    for k in (0, 2):
        mesh = fit.interface(sample=k)
        in_spheres, radius, fraction, permeability = fit.field_bodies[k]
        assert not in_spheres and (mesh.permeability == permeability).all()
        along = np.abs(mesh.normals @ fit.field_frame[k][2])
        assert (np.minimum(along, 1 - along) < 1e-6).all()  # walls and ends of cylinders
        centre = mesh.vertices_um[mesh.triangles[mesh.components == 0]].reshape(-1, 3).mean(axis=0)
        across = (mesh.vertices_um[mesh.triangles[mesh.components == 0]] - centre) @ (
            fit.field_frame[k][:2].T
        )
        assert np.linalg.norm(across, axis=-1).max() == pytest.approx(radius, rel=0.01)
    surface = 2 * fraction / radius
    low, high = fit.tissue.surface_to_volume_low, fit.tissue.surface_to_volume_high
    assert 0.8 * low < surface < 1.2 * high
    mesh.save(tmp_path / "cells.ply")
    mesh.save(tmp_path / "cells.surf.gii")
    with pytest.raises(ValueError, match="^sample is 3; the fit has samples 0 to 2"):
        fit.interface(sample=3)
    with pytest.raises(ValueError, match="field and sample"):
        fit.interface(field=0, sample=0)


def test_an_empty_mesh_says_why_it_is_empty(fitted):
    fit, _ = fitted
    with pytest.warns(UserWarning, match=r"empty mesh: no face .* 0\.9 .*field=0"):
        assert len(fit.interface(threshold=0.9).triangles) == 0


def test_walls_of_tissue_need_a_periodic_grid():
    box = bcc_grid(2, 5.0, boundary="absorbing")
    model = SpinverseModel(ACQUISITION, grid=box, inversion=TissueWallInversion())
    with pytest.raises(ValueError, match="^grid has boundary=.absorbing., .*walls=False"):
        model.fit(np.exp(-ACQUISITION.b), sigma=0.02)


def test_bodies_that_fill_the_lattice_close_the_water_between_them():
    few, all_walls = packing(), packing()
    closed = replace(all_walls, permeability=np.zeros(LATTICE.n_faces))
    assert packings._water_is_connected(few, 0.4)
    assert not packings._water_is_connected(closed, 0.4)


def test_correction_of_signals_is_that_of_the_changed_walls():
    """Zero for a packing as drawn; otherwise the difference of two simulations."""
    problem = WallProblem(ACQUISITION, LATTICE)
    found = packing()
    changed_walls = found.permeability.copy()
    changed_walls[np.isfinite(changed_walls)] = np.inf
    fields = {
        "scale": found.scale, "frame": found.frame, "diffusivity": 1e-3 * found.diffusivity,
        "share": 0.7, "bodies": found.bodies,
    }  # fmt: skip
    values = {f"field_{name}": np.array([[value]] * 2) for name, value in fields.items()}
    values["packing_permeability"] = np.stack([found.permeability] * 2)
    values["permeability"] = np.stack([found.permeability, changed_walls])
    correction = signal_correction(problem, values, ACQUISITION)
    with_walls, without = (
        simulate(found.rotated(ACQUISITION), found.grid, walls, diffusivity=found.diffusivity)
        for walls in (found.permeability, changed_walls)
    )
    np.testing.assert_array_equal(correction[0], 0)
    # Other time steps of both.
    np.testing.assert_allclose(correction[1], 0.7 * (without - with_walls), atol=5e-3)
