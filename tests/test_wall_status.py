"""What is said of walls alone: their status by the worst timing, their maps, their diffusivity."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inversion_cases import shells, spread_directions

from dipy_spinverse import Acquisition, FaceInversion, SpinverseModel, Status, bcc_grid
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.inversion import (
    FaceSolver,
    Reconstruction,
    Stage,
    WallProblem,
    scaled_transmissibility,
)
from dipy_spinverse.inversion.protocols import WallSolver
from dipy_spinverse.spinverse.permeability_fields import FieldChunk, _worst_timing
from dipy_spinverse.substrates import spheres
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.walls.maps import wall_maps

GRID = bcc_grid(4, 3.0)
# Two echo times of 42 measurements.
ACQUISITION = shells([(8, 15), (8, 45)], (1.0, 3.0), 15, n_b0=12)
LATE = ACQUISITION.te_index == 1
SIGNALS = np.exp(-1.2 * ACQUISITION.b)
SPHERE = spheres(GRID, [0, 0, 0], 3.5, permeability=0.02)


class Found:
    """An inversion that has found its walls, and what they predict."""

    estimates_noise = False

    def __init__(self, sigma=0.01, free_water=0.0, open_transmissibility=1.0):
        self.sigma, self.free_water = sigma, free_water
        tau = relative_transmissibility(GRID, SPHERE, 2.0) * open_transmissibility
        self.scaled_transmissibility = scaled_transmissibility(tau)

    def run(self, data, sigma):
        n = len(data)
        return Reconstruction(
            scaled_transmissibility=np.repeat(self.scaled_transmissibility[None], n, axis=0),
            scaled_transmissibility_fields=np.zeros((0, n, GRID.n_faces)),
            wall_probability=1.0 * np.repeat(self.scaled_transmissibility[None] < 0.5, n, axis=0),
            amplitudes=np.ones((n, 2)), free_water=np.full(n, self.free_water),
            free_water_fields=np.zeros((0, n)),
            sigma=np.full(n, self.sigma) if sigma is None else sigma,
            predicted=np.repeat(SIGNALS[None], n, axis=0), converged=np.ones(n, bool),
        )  # fmt: skip


def fit(monkeypatch, noise, sigma=None, **found):
    """A fit of data that are off by the noise of each measurement, to walls with `SIGNALS`."""
    assert isinstance(Found(), WallSolver)
    monkeypatch.setattr(FaceInversion, "solver", lambda *_: Found(**found))
    model = SpinverseModel(ACQUISITION, grid=GRID, inversion=FaceInversion())
    signs = np.random.default_rng(1).choice([-1, 1], len(SIGNALS))
    return model.fit(SIGNALS + noise * signs, S0=1.0, sigma=sigma, n_fields=0)


def test_residual_of_one_timing_is_judged_by_itself(monkeypatch):
    quiet = fit(monkeypatch, 0.01, sigma=0.01)
    assert quiet.status == Status.CONVERGED
    # 1.6 times the noise in one of the two, a third of it in the other: 1.15 times in all.
    assert fit(monkeypatch, np.where(LATE, 0.019, 0.004), sigma=0.012).status == Status.MISFIT


def test_noise_that_differs_between_echo_times_is_no_misfit_and_hides_none(monkeypatch):
    unequal = np.where(LATE, 0.04, 0.01)
    b0 = ACQUISITION.b0_mask
    assert fit(monkeypatch, unequal).status == Status.CONVERGED
    # Four times the noise, where it is the smaller: no more than the noise of the other.
    hidden = np.where(LATE | b0, unequal, 0.04)
    assert fit(monkeypatch, hidden).status == Status.MISFIT


def test_free_water_beside_the_grid_has_no_walls(monkeypatch):
    tau = relative_transmissibility(GRID, SPHERE, 2.0)
    time = float(ACQUISITION.diffusion_time.max())
    maps = wall_maps(GRID, tau[None], diffusivity=2.0, diffusion_time=time)
    found = fit(monkeypatch, 0.01, sigma=0.01, free_water=0.3)
    # Of a sphere: 4 pi R^2 of the grid's volume, and of the voxel 0.7 of that.
    formula = 0.7 * 4 * np.pi * 3.5**2 / GRID.volume_um3
    assert found.surface_to_volume == pytest.approx(0.7 * maps["surface_to_volume"][0])
    assert found.surface_to_volume == pytest.approx(formula, rel=0.08)  # of a staircase
    inside = 0.7 * 4 / 3 * np.pi * 3.5**3 / GRID.volume_um3
    assert found.restricted_fraction == pytest.approx(inside, rel=0.08)
    assert found.wall_permeability == pytest.approx(0.02, rel=0.08)
    assert found.free_water_fraction == pytest.approx(0.3)


def test_open_faces_that_stand_for_less_diffusivity_are_said(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(monkeypatch, 0.01, sigma=0.01).interface()
    slower = fit(monkeypatch, 0.01, sigma=0.01, open_transmissibility=0.93)
    with pytest.warns(UserWarning, match=r"of 1\.86e-3, not 2\.00e-3 mm\^2/s") as caught:
        slower.interface()
    assert caught[0].filename == __file__


def test_each_field_is_of_data_with_noise_of_its_own_added(monkeypatch):
    seen = []

    def counting(model, data, sigma, start, stage):
        seen.append(data.numpy().copy())
        return start, torch.ones(len(start), dtype=torch.bool)

    monkeypatch.setattr(FaceSolver, "_optimise", staticmethod(counting))
    stages = Stage(diffusion_times=(0,), initial_value=0.5), Stage(diffusion_times=(1,))
    inversion = FaceSolver(WallProblem(ACQUISITION, GRID, n_fields=2), stages)
    found = inversion.run(np.stack([SIGNALS, SIGNALS]), np.array([0.02, 0.05]))
    assert found.scaled_transmissibility_fields.shape[0] == 2
    estimate, *fields = seen[1::2]  # each has two stages
    added = np.array([field - estimate for field in fields])
    repeats = np.where(estimate == 1, 12, 1)[0]
    relative = added * np.sqrt(repeats) / np.array([0.02, 0.05])[:, None]
    # 15 different encodings of each of four shells, and b0: 8 % for one standard deviation.
    assert relative.std() == pytest.approx(1, abs=0.25)
    assert abs(np.corrcoef(relative[0, 0], relative[1, 0])[0, 1]) < 0.6


def test_data_in_chunks_have_what_the_status_needs():
    voxels = Voxels(np.stack([SIGNALS, SIGNALS + 0.1 * LATE]), np.ones((2, 2)), np.full(2, 0.01))
    values = FieldChunk(WallProblem(ACQUISITION, GRID), Found(), True)(voxels)
    np.testing.assert_allclose(values["worst_reduced_chi_square"], [0, 100], atol=1e-9)
    assert values["worst_degrees_of_freedom"].tolist() == [42, 42] and values["n_groups"] == 2


def test_the_worst_timing_of_a_voxel_does_not_depend_on_others():
    """Nor do echo times of other noise look worse: their b0 say how noisy they are."""
    acquisition = Acquisition(
        np.tile(np.repeat([0.0, 2.0], [8, 24]), 2), spread_directions(64), 8.0,
        np.repeat([20.0, 60.0], 32), te=np.repeat([50.0, 100.0], 32),
    )  # fmt: skip
    rng, noise = np.random.default_rng(0), np.array([[1.0, 3.0], [0.02, 0.01]])
    signals = 100 + noise[:, acquisition.te_index] * rng.standard_normal((2, 64))
    predicted = np.full((2, 64), 100.0)
    sigma = np.sqrt((noise**2).mean(axis=1))
    result = SimpleNamespace(predicted=predicted, sigma=sigma)
    both = _worst_timing(acquisition, signals, result, False)
    for v in range(2):
        result = SimpleNamespace(predicted=predicted[[v]], sigma=sigma[[v]])
        alone = _worst_timing(acquisition, signals[[v]], result, False)
        for name in ("worst_reduced_chi_square", "worst_degrees_of_freedom"):
            assert alone[name][0] == pytest.approx(both[name][v])
    # Noise of 7 degrees of freedom.
    assert (both["worst_reduced_chi_square"] < 3).all()
