"""Levenberg-Marquardt with the linear amplitudes eliminated (variable projection) [1]_.

All voxels at once. Bounds are kept by projection: a parameter at a bound whose gradient points
outwards does not move. Rician magnitudes are fitted by least squares to the measurements times
I1/I0 of their signal-to-noise ratio [2]_: this sum of squares bounds minus the log-likelihood from
above and touches it where it was computed, so that each step that lowers it raises the likelihood.

References
----------
.. [1] Golub and Pereyra, Inverse Problems 19 (2003) R1, https://doi.org/10.1088/0266-5611/19/2/201
.. [2] Solo and Noh, Proc. IEEE ISBI (2007) 121, https://doi.org/10.1109/ISBI.2007.356803
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.compartments.fibres import S0_corrections
from dipy_spinverse.compartments.fitting.amplitudes import optimal_amplitudes, predicted_signals
from dipy_spinverse.compartments.fitting.parameters import (
    NonlinearParameters,
    apply_step,
    n_nonlinear,
    physical_values,
)
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals
from dipy_spinverse.inversion.levenberg_marquardt import Damping, levenberg_marquardt
from dipy_spinverse.voxels.rician import (
    log_likelihoods,
    noise_from_residual,
    rician_information,
    rician_target,
)

# Marquardt's scheme, relative to the curvature of each direction; factors chosen by hand.
_DAMPING = Damping(initial=1e-2, minimum=1e-7, maximum=1e6, growth=8.0)
_DAMPING_DECREASE = 0.1
_MAX_STEPS = 40
# A voxel has converged where a step is smaller than this (range of a scalar, rad) or lowers the
# sum of squares by a smaller share; both chosen by hand.
_SMALL_STEP, _SMALL_GAIN = 1e-3, 1e-5
# Of differences, near the root of the arithmetic's precision: rounding and curvature change
# derivatives by less than 1e-3.
_DIFFERENCE = {torch.float32: 1e-3, torch.float64: 1e-5}
_LARGEST_ROTATION = 0.5  # rad, of one step: the tangent plane is flat to 10 %


@dataclass(frozen=True, eq=False)
class SeparableProblem:
    """Measurements of V voxels and the model of their signals, linear in the amplitudes.

    `S0` (V, T) is the mean b0 signal of each echo time over that of the first, None where all have
    the same or compartments relax; `labels` (M,) are those of the measurements. `sigma`
    (V,) is the standard deviation of the noise in each channel, None until it is known. `rician`
    data are magnitudes with the Rician likelihood, others have the Gaussian one. `n_averages`
    (V, M) is the number of which each measurement is the mean, 0 if it is left out; None if all
    are 1. The posterior has the likelihood to the power 1 / `inflation` (V,), wider where the
    model is rejected. `known` (V, P) are scaled values of known scalars, NaN of others.
    """

    definition: Definition
    pools: Callable[[dict[str, Tensor]], Tensor]
    data: Tensor
    S0: Tensor | None
    labels: Tensor
    sigma: Tensor | None = None
    rician: bool = False
    n_averages: Tensor | None = None
    inflation: Tensor | None = None
    known: Tensor | None = None

    @property
    def noise(self) -> Tensor:
        """`sigma`, once it is known."""
        assert self.sigma is not None
        return self.sigma

    @property
    def left_out(self) -> Tensor:
        """Whether measurements (V, M) are left out."""
        nothing = torch.zeros_like(self.data, dtype=torch.bool)
        return nothing if self.n_averages is None else self.n_averages == 0

    def without(self, outliers: np.ndarray) -> SeparableProblem:
        """The same with measurements (V, M) left out."""
        n_averages = torch.ones_like(self.data) if self.n_averages is None else self.n_averages
        return replace(self, n_averages=n_averages * torch.from_numpy(~outliers))

    def of_voxels(self, index) -> SeparableProblem:
        """That of some of the voxels."""
        names = "S0", "sigma", "n_averages", "inflation", "known"
        tensors = {name: getattr(self, name) for name in names}
        chosen: dict[str, Any] = {
            name: x if x is None else x[index] for name, x in tensors.items()
        }
        return replace(self, data=self.data[index], **chosen)

    def with_known(self, unit: Tensor) -> Tensor:
        """Scaled scalars (V, P), or (1, P) of all, with those that are known."""
        return unit if self.known is None else torch.where(self.known.isnan(), unit, self.known)

    def weighted(self, signals: Tensor) -> Tensor:
        """Signals (V, M) or (V, K, M), over the relative noise of means."""
        if self.n_averages is None:
            return signals
        root = torch.sqrt(self.n_averages)
        return signals * (root if signals.ndim == 2 else root[:, None])

    def basis_signals(self, parameters: NonlinearParameters, voxels=slice(None)) -> Tensor:
        """Signals of the pools (R, K, M) at parameters of the voxels (R,), all by default."""
        return self.basis_signals_of(physical_values(self.definition, parameters), voxels)

    def basis_signals_of(self, values: dict[str, Tensor], voxels=slice(None)) -> Tensor:
        """As `basis_signals`, of physical values."""
        signals = self.pools(values)
        if self.S0 is None:
            return signals
        S0 = self.S0[voxels] * S0_corrections(self.definition, values)
        return S0[:, None, self.labels] * signals

    def target(self, predicted: Tensor) -> Tensor:
        """Target of least squares near `predicted` (V, M): the data, or their Rician surrogate."""
        sigma = self.sigma if self.rician else None
        return rician_target(self.data, predicted, sigma, self.n_averages)

    def misfit(self, predicted: Tensor) -> Tensor:
        """Sum of squares, or minus twice the Rician log-likelihood, (V,)."""
        if self.rician:
            return -2 * self.log_likelihoods(predicted)
        return (self.weighted(self.data - predicted) ** 2).sum(dim=1)

    def log_likelihoods(self, predicted: Tensor) -> Tensor:
        """Of predicted signals (V, M), up to a constant of the data, (V,)."""
        data = self.data, predicted, self.noise
        return log_likelihoods(*data, self.rician, self.n_averages)


def separable_problem(
    definition: Definition,
    acquisition: BaseAcquisition,
    signals: Tensor,
    S0: Tensor | None = None,
    labels: np.ndarray | None = None,
) -> SeparableProblem:
    """The least-squares problem of signals (V, M) over S0 (V, L), which also set the precision.

    Labels (M,) are those of the echo times by default.
    """
    encoding = encoding_of(acquisition, signals.dtype, timed=definition.timed)
    S0 = S0 if definition.n_S0_corrections else None
    labels, n_averages = acquisition.te_index if labels is None else labels, None
    if (acquisition.n_averages > 1).any():
        n_averages = torch.tensor(acquisition.n_averages, dtype=signals.dtype).expand_as(signals)
    pools = pool_signals(definition, encoding)
    return SeparableProblem(
        definition, pools, signals, S0, torch.tensor(labels), n_averages=n_averages
    )


@dataclass(frozen=True, eq=False)
class Solution:
    """Parameters of V voxels, with basis signals (V, K, M) and amplitudes (V, K) of pools."""

    parameters: NonlinearParameters
    basis_signals: Tensor
    amplitudes: Tensor
    converged: Tensor

    @property
    def predicted(self) -> Tensor:
        """Signals (V, M)."""
        return predicted_signals(self.basis_signals, self.amplitudes)

    def of_voxels(self, index) -> Solution:
        """That of some of the voxels."""
        tensors = (x[index] for x in (self.basis_signals, self.amplitudes, self.converged))
        return Solution(self.parameters.of_voxels(index), *tensors)


def solution_at(
    problem: SeparableProblem, parameters: NonlinearParameters, target: Tensor | None = None
) -> Solution:
    """Parameters with their optimal amplitudes for a target (V, M), the data by default."""
    basis_signals = problem.basis_signals(parameters)
    target = problem.data if target is None else target
    amplitudes, _ = optimal_amplitudes(problem.weighted(basis_signals), problem.weighted(target))
    converged = torch.zeros(len(amplitudes), dtype=torch.bool)
    return Solution(parameters, basis_signals, amplitudes, converged)


def variable_projection(
    problem: SeparableProblem, initial_values: NonlinearParameters
) -> Solution:
    """Local minimum from initial values: damped steps until no voxel gains."""
    unit, frames = initial_values.unit.clone(), initial_values.frames.clone()
    solution = solution_at(problem, NonlinearParameters(unit, frames))

    def advance(rows, damping):
        trial, lower, small = _step(problem.of_voxels(rows), solution.of_voxels(rows), damping)
        solution.parameters.put(rows, trial.parameters)
        solution.basis_signals[rows] = trial.basis_signals
        solution.amplitudes[rows] = trial.amplitudes
        return lower, small, _DAMPING_DECREASE

    converged = levenberg_marquardt(advance, problem.data[:, 0], _DAMPING, _MAX_STEPS)
    return replace(solution, converged=converged)


def _step(problem, solution, damping):
    """Solution after one step, (V,) whether the misfit is lower, and whether it has converged."""
    basis_signals, unit = solution.basis_signals, solution.parameters.unit
    weighted = problem.weighted
    jacobian = weighted(signal_jacobian(problem, solution))
    target = weighted(problem.target(solution.predicted))
    amplitudes, misfit = optimal_amplitudes(weighted(basis_signals), target)
    residual = target - predicted_signals(weighted(basis_signals), amplitudes)
    jacobian = project_out_amplitudes(weighted(basis_signals), amplitudes, jacobian)
    step, expected_gain = _damped_step(unit, jacobian, residual, damping)
    trial = apply_step(problem.definition, solution.parameters, step)
    trial_basis = problem.basis_signals(trial)
    trial_amplitudes, trial_misfit = optimal_amplitudes(weighted(trial_basis), target)
    lower = trial_misfit < misfit
    small = (step.abs() < _SMALL_STEP).all(dim=1) | (expected_gain < _SMALL_GAIN * misfit)
    small |= lower & (misfit - trial_misfit < _SMALL_GAIN * misfit)
    accept = lower[:, None]
    parameters = NonlinearParameters(
        torch.where(accept, trial.unit, unit),
        torch.where(accept[..., None, None], trial.frames, solution.parameters.frames),
    )
    basis_signals = torch.where(accept[..., None], trial_basis, basis_signals)
    amplitudes = torch.where(accept, trial_amplitudes, amplitudes)
    return Solution(parameters, basis_signals, amplitudes, small), lower, small


def _damped_step(unit, jacobian, residual, damping):
    """(J^T J + damping diag) step = J^T residual, inside the bounds (V, N); its expected gain."""
    gradient = (jacobian @ residual[..., None])[..., 0]
    curvature = jacobian @ jacobian.mT
    n = unit.shape[1]
    at_bound = torch.zeros_like(gradient, dtype=torch.bool)
    at_bound[:, :n] = ((unit <= 0) & (gradient[:, :n] < 0)) | ((unit >= 1) & (gradient[:, :n] > 0))
    free = (~at_bound).to(gradient.dtype)
    curvature = curvature * free[:, None] * free[..., None]
    diagonal = torch.diagonal(curvature, dim1=1, dim2=2)
    # A direction that changes nothing gets no step.
    floor = 1e-6 * diagonal.sum(dim=1, keepdim=True) + 1e-12
    damped = curvature + torch.diag_embed(damping[:, None] * diagonal + floor + (1 - free))
    factor, _ = torch.linalg.cholesky_ex(damped)
    step = torch.cholesky_solve((gradient * free)[..., None], factor)[..., 0].nan_to_num()
    expected_gain = (step * gradient * free).sum(dim=1)
    step[:, n:] = step[:, n:].clamp(-_LARGEST_ROTATION, _LARGEST_ROTATION)
    step[:, :n] = (unit + step[:, :n]).clamp(0, 1) - unit
    return step, expected_gain


def signal_jacobian(problem: SeparableProblem, solution: Solution) -> Tensor:
    """Derivatives (V, N, M) of the signals in the non-linear parameters, at fixed amplitudes.

    By differences towards the middle of the bounds, all at once: forward-mode derivatives of the
    same accuracy cost several times as much.
    """
    parameters, n = solution.parameters, n_nonlinear(problem.definition)
    n_voxels, n_scalars = parameters.unit.shape
    length = _DIFFERENCE[parameters.unit.dtype]
    step = length * torch.eye(n, dtype=parameters.unit.dtype)[:, None].repeat(1, n_voxels, 1)
    step[..., :n_scalars] *= torch.where(parameters.unit > 0.5, -1, 1)
    voxels = torch.arange(n_voxels).repeat(n)
    shifted = apply_step(problem.definition, parameters.of_voxels(voxels), step.flatten(0, 1))
    basis_signals = problem.basis_signals(shifted, voxels)
    signals = predicted_signals(basis_signals, solution.amplitudes.repeat(n, 1))
    change = signals.unflatten(0, (n, n_voxels)) - solution.predicted
    jacobian = change / torch.diagonal(step, dim1=0, dim2=2).T[..., None]
    return jacobian.movedim(0, 1)


def scaled_derivatives(
    problem: SeparableProblem, solution: Solution, inverse_sd: Tensor
) -> Tensor:
    """Derivatives (V, N + K, M) of the signals over the noise in parameters and amplitudes."""
    jacobian = signal_jacobian(problem, solution)
    return torch.cat([jacobian, solution.basis_signals], dim=1) * inverse_sd[:, None]


def project_out_amplitudes(basis_signals: Tensor, amplitudes: Tensor, jacobian: Tensor) -> Tensor:
    """Jacobian (V, N, M) projected off the basis signals with positive amplitudes."""
    active = basis_signals * (amplitudes > 0)[..., None]
    gram = active @ active.mT
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)
    gram = gram + torch.diag_embed(1e-6 * diagonal + (diagonal == 0))
    factor, _ = torch.linalg.cholesky_ex(gram)
    return jacobian - torch.cholesky_solve(active @ jacobian.mT, factor).mT @ active


def residual_noise(problem: SeparableProblem, solution: Solution) -> Tensor:
    """Standard deviation (V,) of the noise from the residual of a fit."""
    residual = problem.weighted(problem.data - solution.predicted).numpy()
    n_unknowns = problem.definition.n_unknowns + problem.left_out.sum(dim=1).numpy()
    sigma = noise_from_residual(residual, n_unknowns)
    return torch.tensor(sigma, dtype=problem.data.dtype)


@dataclass(frozen=True, eq=False)
class GaussianApproximation:
    """Gaussian measurements: values (V, M) and inverse standard deviations (V, M)."""

    values: Tensor
    inverse_sd: Tensor


def gaussian_approximation(problem: SeparableProblem, predicted: Tensor) -> GaussianApproximation:
    """Gaussian data with the score and the information of the likelihood at `predicted`."""
    sigma = problem.noise
    if problem.inflation is not None:
        plain = gaussian_approximation(replace(problem, inflation=None), predicted)
        return replace(plain, inverse_sd=plain.inverse_sd / problem.inflation.sqrt()[:, None])
    if not problem.rician:
        inverse_sd = problem.weighted((1 / sigma[:, None]).expand_as(problem.data))
        return GaussianApproximation(problem.data, inverse_sd)
    score = problem.target(predicted) - predicted
    information = rician_information(predicted / sigma[:, None], problem.n_averages)
    values = predicted + score / information
    inverse_sd = problem.weighted(torch.sqrt(information)) / sigma[:, None]
    return GaussianApproximation(values, inverse_sd)
