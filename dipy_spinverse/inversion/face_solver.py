"""Estimation of the permeability of every face of a grid, for many voxels at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from dipy_spinverse.bloch_torrey import Simulator, unique_encodings
from dipy_spinverse.inversion.curriculum import CARVING_CURRICULUM, DEFAULT_CURRICULUM, Stage
from dipy_spinverse.inversion.gauss_newton import gauss_newton
from dipy_spinverse.inversion.protocols import Prior, Reconstruction, WallProblem
from dipy_spinverse.inversion.uncertainty import Laplace, probability_below
from dipy_spinverse.inversion.unknowns import WALL_THRESHOLD, SignalModel
from dipy_spinverse.voxels.progress import report_progress
from dipy_spinverse.voxels.rician import noise_from_residual
from dipy_spinverse.walls.patterns import align_fields

# Standard deviation of initial scaled transmissibilities, the same in all voxels. A uniform field
# is symmetric under point reflection, and so are all its iterates, whatever the data. Chosen by
# hand, as the initial fraction of free water.
_INITIAL_SD = 0.05
_INITIAL_FREE_WATER = 0.05
# Noise level of the stages relative to S0, at least: with less noise the objective has many local
# minima. Only the last stage is repeated at the true noise level. Chosen by hand.
_MIN_STAGE_SIGMA = 0.02
# Accuracy of simulated signals, relative to S0, with so many time steps per pulse; by hand.
_MIN_SIGMA, _STEPS = 1e-4, 6


class FaceSolver:
    """Estimates the permeability of every face of a grid: a :class:`protocols.WallSolver`.

    `priors` replace those of all stages of the curriculum.
    """

    estimates_noise = False
    _optimise = staticmethod(gauss_newton)

    def __init__(
        self,
        problem: WallProblem,
        curriculum: Sequence[Stage] | None = None,
        priors: Sequence[Prior] | None = None,
    ):
        self._problem, self._priors = problem, priors
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
            absorbing = problem.grid.boundary == "absorbing"
            curriculum = CARVING_CURRICULUM if absorbing else DEFAULT_CURRICULUM
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

    def run(self, data: np.ndarray, sigma: np.ndarray | None) -> Reconstruction:
        """Permeability fields for data (V, M), with noise levels (V,) or those of the residual."""
        averaged = np.zeros((len(data), len(self._repeats)))
        np.add.at(averaged.T, self._encoding, data.T)
        signals = torch.as_tensor(averaged / self._repeats, device=self._problem.device)
        perturbations, unit_noise = self._random.split(
            (self._model.n_faces, len(self._acquisition)), 1
        )
        known = np.zeros(len(data)) if sigma is None else sigma
        stage_sigma = np.maximum(known, _MIN_STAGE_SIGMA)

        unknowns, converged = self._after_stages(signals, stage_sigma, perturbations[0])
        if sigma is None:
            laplace = self._laplace(signals, stage_sigma, unknowns)
            residual = self._predicted(unknowns) - data
            sigma = noise_from_residual(residual, laplace.n_determined().cpu().numpy())
        noise = np.maximum(sigma, _MIN_SIGMA)
        unknowns, converged = self._at_true_noise(signals, noise, unknowns, converged)

        fields = [unknowns]
        stage_sigma = np.maximum(noise, _MIN_STAGE_SIGMA)
        report_progress(1 / len(perturbations))
        for k, (perturbation, sample) in enumerate(
            zip(perturbations[1:], unit_noise[1:], strict=True)
        ):
            noisy = signals + self._noise_of_encodings(noise) * sample
            field = self._after_stages(noisy, stage_sigma, perturbation)
            fields.append(self._at_true_noise(noisy, noise, *field)[0])
            report_progress((k + 2) / len(perturbations))
        laplace = self._laplace(signals, noise, unknowns)
        return self._reconstruction(fields, laplace, noise, converged)

    def _after_stages(self, signals, noise, perturbation):
        """Unknowns (V, N) after all stages, and whether the last one has converged (V,)."""
        unknowns = signals.new_zeros(len(signals), self._model.n_unknowns)
        for prepared in self._stages:
            if prepared[0].initial_value is not None:
                unknowns = self._initial(signals, prepared[0].initial_value, perturbation)
            unknowns, converged = self._run_stage(prepared, signals, noise, unknowns)
        return unknowns, converged

    def _at_true_noise(self, signals, noise, unknowns, converged):
        """After the last stage again, where the true noise level is below that of the stages."""
        below_minimum = torch.as_tensor(noise < _MIN_STAGE_SIGMA, device=signals.device)
        if below_minimum.any():
            rows = signals[below_minimum], noise[noise < _MIN_STAGE_SIGMA], unknowns[below_minimum]
            unknowns[below_minimum], converged[below_minimum] = self._run_stage(
                self._last_stage, *rows
            )
        return unknowns, converged

    def _initial(self, signals, initial_value, perturbation):
        """Initial unknowns (V, N): a random field, and its least-squares amplitudes."""
        model = self._model
        unknowns = signals.new_full((len(signals), model.n_unknowns), _INITIAL_FREE_WATER)
        scaled = initial_value + _INITIAL_SD * perturbation
        unknowns[:, : model.n_faces] = scaled.clamp(0, 1)
        # From the measurements with the lowest b of each echo time.
        acquisition = self._acquisition
        least_b = np.full(len(acquisition.echo_times), np.inf)
        np.minimum.at(least_b, acquisition.te_index, acquisition.b)
        least_weighted = acquisition.b <= least_b[acquisition.te_index] + 1e-6
        sigma = torch.as_tensor(np.where(least_weighted, 1.0, np.inf)).to(signals)
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

    def _reconstruction(self, fields, laplace, noise, converged):
        model, n_faces, unknowns = self._model, self._model.n_faces, fields[0]
        sd = laplace.standard_deviation()[:, :n_faces].cpu().numpy()
        scaled = torch.stack([field[:, :n_faces] for field in fields]).cpu().numpy()
        for voxel in range(scaled.shape[1]):
            walls = 1 - scaled[:, voxel]
            scaled[1:, voxel] = 1 - align_fields(self._problem.grid, walls[1:], walls[0])
        probability = probability_below(WALL_THRESHOLD, scaled, sd)
        free_water = [model.split(field)[2][:, 0].cpu().numpy() for field in fields]
        amplitudes = np.ones((len(unknowns), len(self._acquisition.echo_times)))
        if model.n_amplitudes:
            amplitudes = unknowns[:, n_faces : n_faces + model.n_amplitudes].cpu().numpy()
        return Reconstruction(
            scaled_transmissibility=scaled[0],
            scaled_transmissibility_fields=scaled[1:],
            wall_probability=probability.mean(axis=0),
            amplitudes=amplitudes,
            free_water=free_water[0],
            free_water_fields=np.stack(free_water)[1:],
            sigma=noise,
            predicted=self._predicted(unknowns),
            converged=converged.cpu().numpy(),
        )
