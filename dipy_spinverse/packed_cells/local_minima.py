"""Posterior of one tissue class, and its local minima by Levenberg-Marquardt.

Costs are minus the logarithm of the posterior. Parameters are the standard-normal coordinates z of
``tissue_classes``; the rotation of the frame is relative to a frame that each search updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp

from dipy_spinverse.inversion.levenberg_marquardt import Damping, levenberg_marquardt
from dipy_spinverse.packed_cells.likelihood import TissueData, normal_equations, residuals
from dipy_spinverse.packed_cells.orientations import vector_of
from dipy_spinverse.packed_cells.tissue_classes import LARGEST_Z, TissueClass, log_prior
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals

# Three minima instead of six save 7 % of the time, but miss some voxels' best minimum
# (benchmarks/notes/tissue.md).
_MAX_MINIMA = 6
# Relative to the mean curvature, the same for all parameters, whose scale is that of the prior:
# damping by each parameter's own curvature progresses slowly in narrow bent valleys
# (benchmarks/notes/real_data.md). From 1e-4 more first steps were rejected
# (benchmarks/notes/emulator.md).
_DAMPING = Damping(initial=1e-3, minimum=1e-12, maximum=1e6, growth=4.0)
# Ratios of actual to predicted decrease of a good and of a poor step, as usual in trust regions
# (Nocedal and Wright, Numerical Optimization, 2006, ch. 4); the factors are chosen by hand.
_GOOD, _POOR = 0.75, 0.25
_SHRINK, _SHRINK_SLIGHTLY, _GROW = 0.25, 0.7, 2.0
_LARGEST_STEP = 1.5  # of z, prior standard deviations
# Of more initial values the better half continues after a short search: a better quarter missed
# minima (benchmarks/notes/emulator.md).
_FEW = 4
# Minima with less than e^-12 of the best one's density are dropped.
_LARGEST_COST_DIFFERENCE = 12
# Signals that are computed at once; with slopes, 256 were faster than 96.
_CHUNK, _CHUNK_WITH_SLOPES = 512, 256


class ClassSearchBudget(NamedTuple):
    """Largest number of steps, and the decrease of the cost that each needs to continue.

    Of many initial values the better half continues after a few steps, or all do.
    """

    max_steps: int
    min_decrease: float
    all_initial_values: bool = False


_SHORT = ClassSearchBudget(6, 0.3)


@dataclass(frozen=True, eq=False)
class ClassPosterior:
    """Posterior of one tissue class, given the data of V voxels.

    `correction` (V, M) is added to the signals of `model`: the error of their interpolation at a
    reference point. `prior_mean` is (V, P), or 0.
    """

    model: TissueSignals
    tissue: TissueClass
    data: TissueData
    correction: np.ndarray
    prior_mean: np.ndarray | float = 0.0

    def cost(self, z: np.ndarray, frames: np.ndarray, voxel: np.ndarray) -> np.ndarray:
        """Minus the log posterior (N,) at z (N, P) of voxels (N,), with a prior mean of 0."""
        cost = -log_prior(self.tissue, z)
        for start in range(0, len(z), _CHUNK):
            rows = slice(start, start + _CHUNK)
            v = voxel[rows]
            signals = self.model(self.tissue, z[rows], frames[rows]) + self.correction[v]
            residual, _, log_determinant = residuals(self.data, signals, v)
            cost[rows] += 0.5 * np.einsum("nm,nm->n", residual, residual) + log_determinant
        return cost

    def expansion(self, z: np.ndarray, frames: np.ndarray, voxel: np.ndarray):
        """Cost (N,), its gradient (N, P) and Gauss-Newton Hessian (N, P, P)."""
        n, p = z.shape
        cost, gradient, hessian = np.empty(n), np.empty((n, p)), np.empty((n, p, p))
        for start in range(0, n, _CHUNK_WITH_SLOPES):
            rows = slice(start, start + _CHUNK_WITH_SLOPES)
            v = voxel[rows]
            signals, slopes = self.model(self.tissue, z[rows], frames[rows], slopes=True)
            signals += self.correction[v]
            residual, amplitudes, log_determinant = residuals(self.data, signals, v)
            cost[rows] = 0.5 * np.einsum("nm,nm->n", residual, residual) + log_determinant
            gradient[rows], hessian[rows] = normal_equations(
                self.data, signals, amplitudes, slopes, residual, v
            )
        scalar = self.tissue.scalar
        deviation = z.copy()
        if not isinstance(self.prior_mean, float):
            deviation[:, scalar] -= self.prior_mean[voxel, scalar]
        cost -= log_prior(self.tissue, deviation)
        gradient[:, scalar] += deviation[:, scalar]
        # Rotations, too: those that the data do not determine stay below pi.
        hessian[:, np.arange(p), np.arange(p)] += 1.0
        return cost, gradient, hessian


@dataclass(frozen=True, eq=False)
class LocalMinima:
    """Up to K distinct local minima z (V, K, P) of each voxel, best first.

    Rotations are relative to the frames (V, 3, 3) of the best minima, covariances (V, K, P, P) are
    inverse Gauss-Newton Hessians, costs (V, K) are infinite where a voxel has fewer minima.
    `correction` (V, M) is that of the :class:`ClassPosterior` at the best minima.
    """

    z: np.ndarray
    frames: np.ndarray
    covariances: np.ndarray
    costs: np.ndarray
    correction: np.ndarray

    @property
    def log_evidence(self) -> np.ndarray:
        """Log evidence (V,) by Laplace's approximation, summed over the minima."""
        p = self.z.shape[2]
        log_volume = 0.5 * np.linalg.slogdet(self.covariances)[1]
        return logsumexp(log_volume - self.costs, axis=1) + 0.5 * p * np.log(2 * np.pi)

    @property
    def weights(self) -> np.ndarray:
        """Weights (V, K) of the minima: square roots of Laplace's, normalised.

        Laplace's approximation underestimates the volume of curved valleys.
        """
        log_weight = 0.5 * (0.5 * np.linalg.slogdet(self.covariances)[1] - self.costs)
        weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
        return weight / weight.sum(axis=1, keepdims=True)

    def at(self, tissue: TissueClass, voxel: np.ndarray, index: np.ndarray):
        """z (N, P) and frames (N, 3, 3) of minima, with their rotations in the frames."""
        z = self.z[voxel, index]
        return tissue.moved(np.zeros_like(z), self.frames[voxel], z)

    def best_in(self, tissue: TissueClass, frames: np.ndarray) -> np.ndarray:
        """z (V, P) of the best minima, their rotations relative to frames (V, 3, 3)."""
        z, minima_frames = self.at(tissue, np.arange(len(frames)), np.zeros(len(frames), int))
        if tissue.turns:
            z[:, -3:] = vector_of(minima_frames @ np.swapaxes(frames, 1, 2))
        return z

    def of_voxels(self, index: np.ndarray) -> LocalMinima:
        """Subset of the voxels."""
        return LocalMinima(*(values[index] for values in vars(self).values()))


def find_local_minima(
    posterior: ClassPosterior,
    initial_values: np.ndarray,
    frames: np.ndarray,
    budget: ClassSearchBudget,
) -> LocalMinima:
    """Local minima of V voxels from initial values (V, K, P) in frames (V, 3, 3)."""
    n_voxels, n_initial, p = initial_values.shape
    voxel = np.repeat(np.arange(n_voxels), n_initial)
    # Derivatives by the rotation are exact at rotation 0 only: rotations go into the frames.
    z = initial_values.reshape(-1, p)
    z, frames = posterior.tissue.moved(np.zeros_like(z), frames[voxel], z)
    if n_initial > _FEW and not budget.all_initial_values:
        z, frames, _, costs = minimise_costs(posterior, z, frames, voxel, _SHORT)
        rank = np.argsort(costs.reshape(n_voxels, n_initial), axis=1)[:, : n_initial // 2]
        selected = (rank + n_initial * np.arange(n_voxels)[:, None]).ravel()
        z, frames, voxel = z[selected], frames[selected], voxel[selected]
    minima = minimise_costs(posterior, z, frames, voxel, budget)
    by_voxel = (values.reshape(n_voxels, -1, *values.shape[1:]) for values in minima)
    return _distinct(posterior, *by_voxel)


def minimise_costs(
    posterior: ClassPosterior, z: np.ndarray, frames: np.ndarray, voxel: np.ndarray,
    budget: ClassSearchBudget, damping: Damping = _DAMPING, relative_damping: bool = True,
):  # fmt: skip
    """z (N, P), frames, covariances (N, P, P) and costs (N,) at the end of N searches.

    Damping is relative to the mean curvature of the cost, or else to the curvature of the prior.
    """
    tissue = posterior.tissue
    z, frames = z.copy(), frames.copy()
    cost, gradient, hessian = posterior.expansion(z, frames, voxel)
    identity = np.eye(z.shape[1])

    def advance(rows, level):
        rows, level = rows.numpy(), level.numpy()
        slope, curvature = gradient[rows], hessian[rows]
        if relative_damping:
            level = level * np.einsum("npp->n", curvature) / len(identity)
        step = -np.linalg.solve(curvature + level[:, None, None] * identity, slope[..., None])
        step *= np.minimum(1, _LARGEST_STEP / np.abs(step).max(axis=1, keepdims=True))
        predicted = -(slope * step[..., 0]).sum(axis=1)
        predicted -= 0.5 * (step * (curvature @ step)).sum(axis=(1, 2))
        new_z, new_frames = tissue.moved(z[rows], frames[rows], step[..., 0])
        new_z = np.clip(new_z, -LARGEST_Z, LARGEST_Z)
        new_cost, *derivatives = posterior.expansion(new_z, new_frames, voxel[rows])
        decrease = cost[rows] - new_cost
        accepted, ratio = decrease > 0, decrease / np.maximum(predicted, 1e-300)
        small = accepted & (decrease < budget.min_decrease) & (ratio > _POOR)
        change = np.where(ratio > _GOOD, _SHRINK, np.where(ratio > _POOR, _SHRINK_SLIGHTLY, _GROW))
        state, new_state = (z, frames, cost, gradient, hessian), (new_z, new_frames, new_cost)
        for values, new_values in zip(state, (*new_state, *derivatives), strict=True):
            values[rows[accepted]] = new_values[accepted]
        return tuple(torch.from_numpy(values) for values in (accepted, small, change))

    levenberg_marquardt(advance, torch.from_numpy(cost), damping, budget.max_steps)
    return z, frames, np.linalg.inv(hessian), cost


def _distinct(posterior, z, frames, covariances, costs):
    """Minima outside of each other's error ellipsoids, best first."""
    order = np.argsort(costs, axis=1)
    row = np.arange(len(order))[:, None]
    z, frames, covariances, costs = (
        values[row, order] for values in (z, frames, covariances, costs)
    )
    n_voxels, n_searches = costs.shape
    if posterior.tissue.turns:
        rotations = frames @ np.swapaxes(frames[:, :1], 2, 3)
        z[..., -3:] = vector_of(rotations.reshape(-1, 3, 3)).reshape(n_voxels, -1, 3)
    precision = np.linalg.inv(covariances)
    difference = z[:, :, None] - z[:, None]
    distance = np.einsum("vijp,vjpq,vijq->vij", difference, precision, difference, optimize=True)
    distinct = np.zeros((n_voxels, n_searches), dtype=bool)
    for k in range(n_searches):
        repeated = (distinct[:, :k] & (distance[:, k, :k] < z.shape[2])).any(axis=1)
        distinct[:, k] = (
            ~repeated
            & (costs[:, k] < costs[:, 0] + _LARGEST_COST_DIFFERENCE)
            & (distinct.sum(axis=1) < _MAX_MINIMA)
        )
    rank = np.argsort(~distinct, axis=1, kind="stable")[:, :_MAX_MINIMA]
    costs = np.where(distinct, costs, np.inf)
    return LocalMinima(
        z[row, rank], frames[:, 0], covariances[row, rank], costs[row, rank], posterior.correction
    )
