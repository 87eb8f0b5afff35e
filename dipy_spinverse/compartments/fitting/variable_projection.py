"""Levenberg-Marquardt with the linear amplitudes eliminated (variable projection) [1]_.

All voxels at once. Bounds are kept by projection; a parameter at its bound that would leave is
held. Rician magnitudes are fitted by least squares to the measurements times I1/I0 of their
signal-to-noise [2]_: this bounds the likelihood from above and touches it where it was computed,
so that each step that lowers the sum of squares raises the likelihood.

References
----------
.. [1] Golub and Pereyra, Inverse Problems 19 (2003) R1, https://doi.org/10.1088/0266-5611/19/2/201
.. [2] Solo and Noh, Proc. IEEE ISBI (2007) 121, https://doi.org/10.1109/ISBI.2007.356803
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from torch import Tensor

from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.compartments.fibres import S0_corrections
from dipy_spinverse.compartments.fitting.fractions import nonnegative_amplitudes
from dipy_spinverse.compartments.fitting.parameters import (
    NonlinearParameters,
    apply_step,
    n_nonlinear,
    physical_values,
)
from dipy_spinverse.inversion.levenberg_marquardt import Damping, levenberg_marquardt
from dipy_spinverse.voxels.rician import log_likelihoods, rician_target

# Relative to the curvature of each direction.
_DAMPING = Damping(initial=1e-2, minimum=1e-7, maximum=1e6, growth=8.0)
_SHRINK = 0.1
_MOST_STEPS = 40
# Of the range of a scalar, and rad.
_SMALL_STEP = 1e-3
# Of the sum of squares.
_SMALL_GAIN = 1e-5
# Of differences: noise of arithmetic and curvature change slopes by less than 1e-3.
_DIFFERENCE = {torch.float32: 1e-3, torch.float64: 1e-5}
# rad, of one step.
_LARGEST_TURN = 0.5


@dataclass(frozen=True, eq=False)
class EchoTimeScale:
    """What the b0 say of several echo times.

    Attributes
    ----------
    S0 : Tensor (V, K) or (1, K)
        Of each, over that of the first.
    index : Tensor (M,) of int
        Echo time of each measurement.
    """

    S0: Tensor
    index: Tensor

    def of_voxels(self, index) -> EchoTimeScale:
        """Some of the voxels."""
        return self if len(self.S0) == 1 else EchoTimeScale(self.S0[index], self.index)


@dataclass(frozen=True, eq=False)
class SeparableProblem:
    """Measurements of V voxels and what explains them.

    Attributes
    ----------
    definition : Definition
    pools : callable
        From values to signals (V, K, M), as `signals.pool_signals` makes.
    data : Tensor (V, M)
    scale : Scale or None
        None where all echo times have the same S0, or compartments relax.
    sigma : Tensor (V,) or None
        Noise in each channel for the Rician likelihood, None for the Gaussian one.
    """

    definition: Definition
    pools: Callable[[dict[str, Tensor]], Tensor]
    data: Tensor
    scale: EchoTimeScale | None
    sigma: Tensor | None

    def of_voxels(self, index) -> SeparableProblem:
        """Some of the voxels."""
        sigma = None if self.sigma is None else self.sigma[index]
        scale = None if self.scale is None else self.scale.of_voxels(index)
        return SeparableProblem(self.definition, self.pools, self.data[index], scale, sigma)

    def columns(self, place: NonlinearParameters, voxels=slice(None)) -> Tensor:
        """Signals of the pools (R, K, M) at places of the voxels (R,), all where not given."""
        return self.columns_of(physical_values(self.definition, place), voxels)

    def columns_of(self, values: dict[str, Tensor], voxels=slice(None)) -> Tensor:
        """As `columns`, of values."""
        signals = self.pools(values)
        if self.scale is None:
            return signals
        S0 = self.scale.of_voxels(voxels).S0 * S0_corrections(self.definition, values)
        return S0[:, None, self.scale.index] * signals

    def misfit(self, columns: Tensor, amplitudes: Tensor) -> Tensor:
        """Sum of squares, or minus twice the logarithm of the likelihood, (V,)."""
        predicted = predicted_signals(columns, amplitudes)
        if self.sigma is None:
            return ((self.data - predicted) ** 2).sum(dim=1)
        return -2 * log_likelihoods(self.data, predicted, self.sigma, rician=True)


def optimal_amplitudes(columns: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Best amplitudes (V, K) and sum of squares (V,) of columns (V or 1, K, M)."""
    arrays = columns.contiguous().numpy(), target.contiguous().numpy()
    gram, projection = (torch.from_numpy(each) for each in _normal_equations(*arrays))
    amplitudes = nonnegative_amplitudes(gram, projection)
    return amplitudes, torch.from_numpy(_squares(*arrays, amplitudes.numpy()))


@njit(cache=True, nogil=True, fastmath=True)
def _normal_equations(columns, target):
    """A^T A (V, K, K) and A^T y (V, K)."""
    n_voxels, n_pools = len(target), columns.shape[1]
    gram = np.empty((n_voxels, n_pools, n_pools), columns.dtype)
    projection = np.empty((n_voxels, n_pools), columns.dtype)
    for v in range(n_voxels):
        own, y = columns[min(v, len(columns) - 1)], target[v]
        for k in range(n_pools):
            projection[v, k] = _product(own[k], y)
            for j in range(k + 1):
                gram[v, k, j] = gram[v, j, k] = _product(own[k], own[j])
    return gram, projection


@njit(cache=True, nogil=True, fastmath=True)
def _product(first, second):
    total = 0.0  # in double precision: three fibres and water are nearly dependent
    for m in range(len(first)):
        total += first[m] * second[m]
    return total


@njit(cache=True, nogil=True, fastmath=True)
def _squares(columns, target, amplitudes):
    """|y - A w|^2 (V,)."""
    result, rest = np.empty(len(target), target.dtype), np.empty(target.shape[1], target.dtype)
    for v in range(len(target)):
        rest[:] = target[v]
        for k in range(columns.shape[1]):
            own, amount = columns[min(v, len(columns) - 1), k], amplitudes[v, k]
            for m in range(len(rest)):
                rest[m] -= amount * own[m]
        result[v] = _product(rest, rest)
    return result


def predicted_signals(columns: Tensor, amplitudes: Tensor) -> Tensor:
    """Signals (V, M) of pools (V, K, M) with amplitudes (V, K)."""
    return (amplitudes[:, None] @ columns)[:, 0]


def variable_projection(problem: SeparableProblem, start: NonlinearParameters):
    """Search from a start until no voxel gains.

    Parameters
    ----------
    problem : Problem
    start : Place

    Returns
    -------
    place : Place
    columns : Tensor (V, K, M)
        Signals of the pools there.
    amplitudes : Tensor (V, K)
    converged : Tensor (V,) of bool
    """
    place = NonlinearParameters(start.unit.clone(), start.frames.clone())
    columns = problem.columns(place)
    amplitudes, _ = optimal_amplitudes(columns, problem.data)

    def advance(rows, damping):
        part, at = problem.of_voxels(rows), place.of_voxels(rows)
        own = columns[rows], amplitudes[rows]
        new, columns[rows], amplitudes[rows], better, small = _step(part, at, *own, damping)
        place.put(rows, new)
        return better, small, _SHRINK

    converged, _ = levenberg_marquardt(advance, problem.data[:, 0], _DAMPING, _MOST_STEPS)
    return place, columns, amplitudes, converged


def _step(problem, place, columns, amplitudes, damping):
    slopes = signal_jacobian(problem, place, columns, amplitudes)
    target = rician_target(problem.data, predicted_signals(columns, amplitudes), problem.sigma)
    amplitudes, cost = optimal_amplitudes(columns, target)
    residual = target - predicted_signals(columns, amplitudes)
    slopes = project_out_amplitudes(columns, amplitudes, slopes)
    gradient = (slopes @ residual[..., None])[..., 0]
    curvature = slopes @ slopes.mT
    n = place.unit.shape[1]
    leaves = torch.zeros_like(gradient, dtype=torch.bool)
    leaves[:, :n] = ((place.unit <= 0) & (gradient[:, :n] < 0)) | (
        (place.unit >= 1) & (gradient[:, :n] > 0)
    )
    free = (~leaves).to(gradient.dtype)
    curvature = curvature * free[:, None] * free[..., None]
    diagonal = torch.diagonal(curvature, dim1=1, dim2=2)
    # A direction that changes nothing gets no step.
    floor = 1e-6 * diagonal.sum(dim=1, keepdim=True) + 1e-12
    damped = curvature + torch.diag_embed(damping[:, None] * diagonal + floor + (1 - free))
    factor, _ = torch.linalg.cholesky_ex(damped)
    step = torch.cholesky_solve((gradient * free)[..., None], factor)[..., 0].nan_to_num()
    expected = (step * gradient * free).sum(dim=1)
    step[:, n:] = step[:, n:].clamp(-_LARGEST_TURN, _LARGEST_TURN)
    step[:, :n] = (place.unit + step[:, :n]).clamp(0, 1) - place.unit
    trial = apply_step(problem.definition, place, step)
    trial_columns = problem.columns(trial)
    trial_amplitudes, trial_cost = optimal_amplitudes(trial_columns, target)
    better = trial_cost < cost
    small = (step.abs() < _SMALL_STEP).all(dim=1) | (expected < _SMALL_GAIN * cost)
    small |= better & (cost - trial_cost < _SMALL_GAIN * cost)
    keep = better[:, None]
    new = NonlinearParameters(
        torch.where(keep, trial.unit, place.unit),
        torch.where(keep[..., None, None], trial.frames, place.frames),
    )
    columns = torch.where(keep[..., None], trial_columns, columns)
    return new, columns, torch.where(keep, trial_amplitudes, amplitudes), better, small


def signal_jacobian(
    problem: SeparableProblem, place: NonlinearParameters, columns: Tensor, amplitudes: Tensor
) -> Tensor:
    """Slopes (V, N, M) of the signals, with amplitudes, at a place where pools are `columns`.

    By differences towards the middle of the bounds, all at once: forward derivatives of the same
    accuracy cost several times as much.
    """
    n, n_voxels = n_nonlinear(problem.definition), len(place.unit)
    length = _DIFFERENCE[place.unit.dtype]
    step = length * torch.eye(n, dtype=place.unit.dtype)[:, None].repeat(1, n_voxels, 1)
    n_scalars = place.unit.shape[1]
    step[..., :n_scalars] *= torch.where(place.unit > 0.5, -1, 1)
    voxels = torch.arange(n_voxels).repeat(n)
    moved_to = apply_step(problem.definition, place.of_voxels(voxels), step.flatten(0, 1))
    signals = predicted_signals(problem.columns(moved_to, voxels), amplitudes.repeat(n, 1))
    change = signals.unflatten(0, (n, n_voxels)) - predicted_signals(columns, amplitudes)
    slopes = change / torch.diagonal(step, dim1=0, dim2=2).T[..., None]
    return slopes.movedim(0, 1)


def project_out_amplitudes(columns: Tensor, amplitudes: Tensor, slopes: Tensor) -> Tensor:
    """Slopes (V, N, M) less what a change of the amplitudes that are not zero can undo."""
    used = columns * (amplitudes > 0)[..., None]
    gram = used @ used.mT
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)
    gram = gram + torch.diag_embed(1e-6 * diagonal + (diagonal == 0))
    factor, _ = torch.linalg.cholesky_ex(gram)
    return slopes - torch.cholesky_solve(used @ slopes.mT, factor).mT @ used
