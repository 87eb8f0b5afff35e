"""The inversion: from the signals of voxels to wall fields that explain them, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey import Simulator, unique_encodings
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion.adam import adam
from dipy_spinverse.inversion.curriculum import Stage, default_curriculum
from dipy_spinverse.inversion.gauss_newton import gauss_newton
from dipy_spinverse.inversion.noise import noise_from_residual
from dipy_spinverse.inversion.uncertainty import Laplace, probability_below
from dipy_spinverse.inversion.unknowns import SignalModel

OPTIMIZERS = {"gauss-newton": gauss_newton, "adam": adam}

# The openness below which a face counts as a wall: half way between wall and open.
WALL_THRESHOLD = 0.5
# Random part of a start, the same in all voxels. A uniform start is symmetric under point
# reflection and so are all its iterates, whatever the data.
_START_SPREAD = 0.05
_START_FREE_WATER = 0.05
# The search goes on at a signal-to-noise ratio of 50 where there is less noise, or it is unknown;
# only its end is at the true level. Too sharp a misfit is full of minima.
_SEARCH_SIGMA = 0.02
# Simulated signals are not more exact than this.
_LEAST_SIGMA = 1e-4
_SAMPLE_ITERATIONS, _SAMPLE_TOLERANCE = 5, 1e-2
# Time steps per pulse; signals are then within 1e-4 of those of many.
_STEPS = 6


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Wall fields of V voxels, in units of the initial magnetisation that the data came in.

    Attributes
    ----------
    openness : ndarray (V, F)
        Estimate, 0 wall to 1 no membrane.
    openness_samples : ndarray (n, V, F)
        Other fields that explain the data within the noise.
    wall_probability : ndarray (V, F)
    amplitudes : ndarray (V, K)
        Initial magnetisation for each echo time.
    free_water, free_water_samples : ndarray (V,), (n, V)
        Fraction of free water outside the grid.
    sigma : ndarray (V,)
        Standard deviation of the noise, given or estimated.
    predicted : ndarray (V, M)
    converged : ndarray (V,) of bool
    """

    openness: np.ndarray
    openness_samples: np.ndarray
    wall_probability: np.ndarray
    amplitudes: np.ndarray
    free_water: np.ndarray
    free_water_samples: np.ndarray
    sigma: np.ndarray
    predicted: np.ndarray
    converged: np.ndarray


class Inversion:
    """An inversion prepared for many voxels of one acquisition on one grid.

    Parameters
    ----------
    acquisition : Acquisition
    grid : TetrahedralGrid
    diffusivity : float
        um^2/ms.
    optimizer : {"gauss-newton", "adam"}
    curriculum : sequence of Stage or None
        The optimiser's own where None.
    priors : sequence or None
        Take the place of those of every stage, where given.
    amplitudes : bool
        Whether the initial magnetisation is unknown.
    free_water : bool
        Whether to fit a fraction of free water.
    free_diffusivity : float
        Of that water, um^2/ms.
    n_samples : int
        Number of further fields that explain the data.
    seed : int
    device : str
    """

    def __init__(
        self,
        acquisition: Acquisition,
        grid: TetrahedralGrid,
        *,
        diffusivity: float,
        optimizer: str,
        curriculum: Sequence[Stage] | None,
        priors: Sequence | None,
        amplitudes: bool,
        free_water: bool,
        free_diffusivity: float,
        n_samples: int,
        seed: int,
        device: str,
    ):
        self._optimise = OPTIMIZERS[optimizer]
        representatives, self._encoding = unique_encodings(acquisition)
        self._repeats = np.bincount(self._encoding)
        self._acquisition = acquisition.subset(representatives)
        self._settings = {
            "diffusivity": diffusivity,
            "steps": _STEPS,
            "dtype": "float32",
            "device": device,
        }
        self._grid = grid
        simulator = Simulator(self._acquisition, grid, **self._settings)
        self._model = SignalModel(
            simulator,
            self._acquisition,
            amplitudes=amplitudes,
            free_water=free_water,
            free_diffusivity=free_diffusivity,
        )
        if curriculum is None:
            curriculum = default_curriculum(optimizer, grid.boundary)
        self._stages = [self._prepared(stage, priors) for stage in curriculum]
        last = replace(curriculum[-1], diffusion_times=None, start=None)
        self._last_stage = self._prepared(last, priors)
        self._rng = np.random.default_rng(seed)
        self._random_start = self._normal(self._model.n_faces)
        shapes = (self._model.n_unknowns, len(self._acquisition))
        self._random_samples = [[self._normal(n) for n in shapes] for _ in range(n_samples)]

    def _normal(self, n):
        return torch.as_tensor(self._rng.standard_normal(n), device=self._settings["device"])

    def _prepared(self, stage, priors):
        """(stage, mask of its measurements, signal model of them)."""
        if priors is not None:
            stage = replace(stage, priors=tuple(priors))
        mask = stage.measurements(self._acquisition)
        if mask.all():
            return stage, mask, self._model
        simulator = Simulator(self._acquisition.subset(mask), self._grid, **self._settings)
        return stage, mask, self._model.restricted_to(simulator, torch.as_tensor(mask))

    def run(self, data: np.ndarray, sigma: np.ndarray | None) -> Reconstruction:
        """Find wall fields for V voxels.

        Parameters
        ----------
        data : ndarray (V, M)
            Signals over (a guess of) the initial magnetisation.
        sigma : ndarray (V,) or None
            Standard deviation of the noise in the same units; estimated from the residual where
            None.
        """
        averaged = np.zeros((len(data), len(self._repeats)))
        np.add.at(averaged.T, self._encoding, data.T)
        signals = torch.as_tensor(averaged / self._repeats, device=self._settings["device"])
        searched = np.full(len(data), _SEARCH_SIGMA)
        if sigma is not None:
            searched = np.maximum(searched, sigma)

        unknowns, converged = signals.new_zeros(len(signals), self._model.n_unknowns), None
        for prepared in self._stages:
            unknowns, converged = self._run_stage(prepared, signals, searched, unknowns)
        if sigma is None:
            laplace = self._laplace(signals, searched, unknowns)
            residual = self._predicted(unknowns) - data
            sigma = noise_from_residual(residual, laplace.n_determined().cpu().numpy())
        noise = np.maximum(sigma, _LEAST_SIGMA)
        # Voxel by voxel, so that no fit depends on the others. Adam's schedule ends here.
        sharper = torch.as_tensor(noise != searched, device=signals.device)
        if sharper.any() and self._optimise is gauss_newton:
            rows = signals[sharper], noise[noise != searched], unknowns[sharper]
            unknowns[sharper], converged[sharper] = self._run_stage(self._last_stage, *rows)

        laplace = self._laplace(signals, noise, unknowns)
        samples = [
            self._sample(signals, noise, unknowns, laplace, *random)
            for random in self._random_samples
        ]
        return self._reconstruction(unknowns, samples, laplace, noise, converged)

    def _start(self, signals, openness):
        """Unknowns (V, N): a random field, and the amplitudes that go with it."""
        model = self._model
        unknowns = signals.new_full((len(signals), model.n_unknowns), _START_FREE_WATER)
        face_part = openness + _START_SPREAD * self._random_start
        unknowns[:, : model.n_faces] = face_part.clamp(0, 1)
        # The least weighted measurements fix the amplitudes before anything else is known.
        acquisition = self._acquisition
        least_b = np.full(len(acquisition.echo_times), np.inf)
        np.minimum.at(least_b, acquisition.te_index, acquisition.b)
        chosen = acquisition.b <= least_b[acquisition.te_index] + 1e-6
        sigma = torch.as_tensor(np.where(chosen, 1.0, np.inf)).to(signals).expand_as(signals)
        return model.with_best_amplitudes(unknowns, model.in_grid(unknowns), signals, sigma)

    def _noise_of_encodings(self, noise):
        sigma = noise[:, None] / np.sqrt(self._repeats)
        return torch.as_tensor(sigma, device=self._settings["device"])

    def _run_stage(self, prepared, signals, noise, unknowns):
        stage, mask, model = prepared
        if stage.start is not None:
            unknowns = self._start(signals, stage.start)
        sigma = self._noise_of_encodings(noise)
        return self._optimise(model, signals[:, mask], sigma[:, mask], unknowns, stage)

    def _laplace(self, signals, noise, unknowns):
        sigma = self._noise_of_encodings(noise)
        predicted, jacobian = self._model.sensitivities(unknowns)
        return Laplace.at(
            unknowns,
            jacobian / sigma[..., None],
            (predicted - signals) / sigma,
            self._model.bounds(unknowns),
        )

    def _sample(self, signals, noise, unknowns, laplace, unit_normal, unit_noise):
        """Another field: the fit of data with noise added, from a start drawn from Laplace."""
        lower, upper = self._model.bounds(unknowns)
        start = (unknowns + laplace.sample(unit_normal, unit_noise)).clamp(lower, upper)
        sigma = self._noise_of_encodings(noise)
        stage = replace(
            self._last_stage[0], max_iterations=_SAMPLE_ITERATIONS, tolerance=_SAMPLE_TOLERANCE
        )
        # In Matheron's rule, as in `Laplace.sample`, the drawn noise is taken from the data.
        noisy = signals - sigma * unit_noise
        return gauss_newton(self._model, noisy, sigma, start, stage)[0]

    def _predicted(self, unknowns):
        return self._model.signals(unknowns).cpu().numpy()[:, self._encoding]

    def _reconstruction(self, unknowns, samples, laplace, noise, converged):
        model, n_faces = self._model, self._model.n_faces
        sd = laplace.standard_deviation()[:, :n_faces]
        fields = [field[:, :n_faces] for field in (unknowns, *samples)]
        walls = sum(probability_below(WALL_THRESHOLD, field, sd) for field in fields)
        free_water = [model.split(field)[2][:, 0].cpu().numpy() for field in (unknowns, *samples)]
        columns = slice(n_faces, n_faces + model.n_amplitudes)
        amplitudes = unknowns[:, columns].cpu().numpy()
        if not model.n_amplitudes:
            amplitudes = np.ones((len(unknowns), len(self._acquisition.echo_times)))
        openness = torch.stack(fields).cpu().numpy()
        return Reconstruction(
            openness=openness[0],
            openness_samples=openness[1:],
            wall_probability=(walls / len(fields)).cpu().numpy(),
            amplitudes=amplitudes,
            free_water=free_water[0],
            free_water_samples=np.stack(free_water)[1:],
            sigma=noise,
            predicted=self._predicted(unknowns),
            converged=converged.cpu().numpy(),
        )
