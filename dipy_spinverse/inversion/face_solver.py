"""The inversion: from the signals of voxels to wall fields that explain them, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from dipy_spinverse.bloch_torrey import Simulator, unique_encodings
from dipy_spinverse.inversion.adam import adam
from dipy_spinverse.inversion.curriculum import Stage, StageResult, default_curriculum
from dipy_spinverse.inversion.gauss_newton import gauss_newton
from dipy_spinverse.inversion.protocols import Optimiser, Prior, WallProblem
from dipy_spinverse.inversion.reconstruction import Reconstruction
from dipy_spinverse.inversion.uncertainty import Laplace, probability_below
from dipy_spinverse.inversion.unknowns import WALL_THRESHOLD, SignalModel
from dipy_spinverse.voxels.noise import noise_from_residual
from dipy_spinverse.voxels.progress import tell
from dipy_spinverse.walls.patterns import align_fields

OPTIMIZERS: dict[str, Optimiser[SignalModel]] = {"gauss-newton": gauss_newton, "adam": adam}

# Standard deviation of initial scaled transmissibilities, the same in all voxels. A uniform field
# is symmetric under point reflection, and so are all its iterates, whatever the data.
_START_SPREAD = 0.05
# Fraction.
_START_FREE_WATER = 0.05
# Of the initial magnetisation: the search goes on at a signal-to-noise ratio of 50 where there is
# less noise, or it is unknown; only its end is at the true level. Too sharp a misfit is full of
# minima.
_SEARCH_SIGMA = 0.02
# Simulated signals are not more exact than this.
_LEAST_SIGMA = 1e-4
# Time steps per pulse; signals are then within 1e-4 of those of many.
_STEPS = 6


class FaceSolver:
    """Estimates the permeability of every face of a grid: a :class:`protocols.WallSolver`.

    Parameters
    ----------
    problem : WallProblem
    optimizer : {"gauss-newton", "adam"}, optional
    curriculum : sequence of Stage, optional
        By default that of the optimiser and the boundary of the grid.
    priors : sequence of Prior, optional
        Priors of all stages, instead of those of the curriculum.
    """

    estimates_noise = False

    def __init__(
        self,
        problem: WallProblem,
        optimizer: str = "gauss-newton",
        curriculum: Sequence[Stage] | None = None,
        priors: Sequence[Prior] | None = None,
    ):
        self._problem, self._priors = problem, priors
        self._optimise = OPTIMIZERS[optimizer]
        representatives, self._encoding = unique_encodings(problem.acquisition)
        self._repeats = np.bincount(self._encoding)
        self._acquisition = problem.acquisition.subset(representatives)
        self._model = SignalModel(
            self._simulator(self._acquisition),
            self._acquisition,
            amplitudes=not problem.S0_known,
            free_water=problem.free_water,
            free_diffusivity=problem.free_diffusivity,
        )
        if curriculum is None:
            curriculum = default_curriculum(optimizer, problem.grid.boundary)
        self._stages = [self._prepared(stage) for stage in curriculum]
        self._last_stage = self._prepared(
            replace(curriculum[-1], diffusion_times=None, initial_value=None)
        )
        # Of each field, the estimate first: random initial values, and noise.
        rng = np.random.default_rng(problem.seed)
        shape = (problem.n_fields + 1, self._model.n_faces + len(self._acquisition))
        self._random = torch.as_tensor(rng.standard_normal(shape), device=problem.device)

    def _simulator(self, acquisition):
        return Simulator(
            acquisition,
            self._problem.grid,
            diffusivity=self._problem.diffusivity,
            steps=_STEPS,
            dtype="float32",
            device=self._problem.device,
        )

    def _prepared(self, stage):
        """(stage, mask of its measurements, signal model of them)."""
        if self._priors is not None:
            stage = replace(stage, priors=tuple(self._priors))
        mask = stage.measurements(self._acquisition)
        if mask.all():
            return stage, mask, self._model
        simulator = self._simulator(self._acquisition.subset(mask))
        return stage, mask, self._model.restricted_to(simulator, torch.as_tensor(mask))

    @property
    def n_stages(self) -> int:
        """Number of entries of the history: the stages, and the last at the true noise."""
        return len(self._stages) + 1

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
        signals = torch.as_tensor(averaged / self._repeats, device=self._problem.device)
        starts, unit_noise = self._random.split((self._model.n_faces, len(self._acquisition)), 1)
        searched = np.full(len(data), _SEARCH_SIGMA)
        if sigma is not None:
            searched = np.maximum(searched, sigma)

        unknowns, history = self._searched(signals, searched, starts[0])
        if sigma is None:
            laplace = self._laplace(signals, searched, unknowns)
            residual = self._predicted(unknowns) - data
            sigma = noise_from_residual(residual, laplace.n_determined().cpu().numpy())
        noise = np.maximum(sigma, _LEAST_SIGMA)
        unknowns, history = self._sharpened(signals, noise, unknowns, history)

        fields = [unknowns]
        searched = np.maximum(noise, _SEARCH_SIGMA)
        tell(1 / len(starts))
        for k, (start, drawn) in enumerate(zip(starts[1:], unit_noise[1:], strict=True)):
            noisy = signals + self._noise_of_encodings(noise) * drawn
            field, no_history = self._searched(noisy, searched, start)
            fields.append(self._sharpened(noisy, noise, field, no_history)[0])
            tell((k + 2) / len(starts))
        laplace = self._laplace(signals, noise, unknowns)
        return self._reconstruction(fields, laplace, noise, history)

    def _searched(self, signals, noise, random_start):
        """Unknowns (V, N) after all stages, from a start of its own, and what each stage did."""
        unknowns, history = signals.new_zeros(len(signals), self._model.n_unknowns), []
        for prepared in self._stages:
            if prepared[0].initial_value is not None:
                unknowns = self._start(signals, prepared[0].initial_value, random_start)
            unknowns, progress = self._run_stage(prepared, signals, noise, unknowns)
            history.append(progress)
        return unknowns, history

    def _sharpened(self, signals, noise, unknowns, history):
        """After the last stage again, at the true noise, where the search took more."""
        last = history[-1]
        last = StageResult(last.converged.clone(), 0 * last.iterations, last.misfit.clone())
        # Voxel by voxel, so that no fit depends on the others. Adam's schedule ends before.
        sharper = torch.as_tensor(noise < _SEARCH_SIGMA, device=signals.device)
        if sharper.any() and self._optimise is gauss_newton:
            rows = signals[sharper], noise[noise < _SEARCH_SIGMA], unknowns[sharper]
            unknowns[sharper], progress = self._run_stage(self._last_stage, *rows)
            for before, after in zip(last, progress, strict=True):
                before[sharper] = after
        return unknowns, [*history, last]

    def _start(self, signals, initial_value, random_start):
        """Unknowns (V, N): a random field, and the amplitudes that go with it."""
        model = self._model
        unknowns = signals.new_full((len(signals), model.n_unknowns), _START_FREE_WATER)
        face_part = initial_value + _START_SPREAD * random_start
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
        return torch.as_tensor(sigma, device=self._problem.device)

    def _run_stage(self, prepared, signals, noise, unknowns):
        stage, mask, model = prepared
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

    def _predicted(self, unknowns):
        return self._model.signals(unknowns).cpu().numpy()[:, self._encoding]

    def _reconstruction(self, fields, laplace, noise, history):
        model, n_faces, unknowns = self._model, self._model.n_faces, fields[0]
        sd = laplace.standard_deviation()[:, :n_faces].cpu().numpy()
        scaled = torch.stack([field[:, :n_faces] for field in fields])
        scaled = scaled.cpu().numpy()
        for voxel in range(scaled.shape[1]):
            walls = 1 - scaled[:, voxel]
            scaled[1:, voxel] = 1 - align_fields(self._problem.grid, walls[1:], walls[0])
        probability = probability_below(WALL_THRESHOLD, scaled, sd)
        free_water = [model.split(field)[2][:, 0].cpu().numpy() for field in fields]
        columns = slice(n_faces, n_faces + model.n_amplitudes)
        amplitudes = unknowns[:, columns].cpu().numpy()
        if not model.n_amplitudes:
            amplitudes = np.ones((len(unknowns), len(self._acquisition.echo_times)))
        return Reconstruction(
            scaled_transmissibility=scaled[0],
            scaled_transmissibility_fields=scaled[1:],
            wall_probability=probability.mean(axis=0),
            amplitudes=amplitudes,
            free_water=free_water[0],
            free_water_fields=np.stack(free_water)[1:],
            sigma=noise,
            predicted=self._predicted(unknowns),
            converged=history[-1].converged.cpu().numpy(),
            iterations=torch.stack([each.iterations for each in history], 1).cpu().numpy(),
            misfit=torch.stack([each.misfit for each in history], 1).cpu().numpy(),
        )
