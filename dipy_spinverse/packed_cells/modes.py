"""The best parameters of a class of tissue: a dictionary, then Levenberg-Marquardt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import qmc

from dipy_spinverse.inversion.levenberg_marquardt import Damping, levenberg_marquardt
from dipy_spinverse.packed_cells.likelihood import Likelihood, residuals, whiten
from dipy_spinverse.packed_cells.tissue_classes import (
    HEMISPHERE,
    TissueClass,
    class_signals,
    log_prior,
)
from dipy_spinverse.packed_cells.tissue_model import TissueModel
from dipy_spinverse.voxels.rician import rician_excess

# Entries of the dictionary, a power of two.
_N_DICTIONARY = 512
# The best entries of each interval of the radius are starts: minima differ most in it.
_RADIUS_BINS = 4
_STARTS_PER_BIN = 2
# Relative to the curvature along each parameter, with costs of half a chi-square.
_DAMPING = Damping(first=1e-2, least=1e-8, largest=1e6, growth=8.0)
_SHRINK = 0.2
_MOST_STEPS = 25
# Of the cost: a search that gains less ends.
_LEAST_GAIN = 1e-3
# Of z, in one step.
_LARGEST_STEP = 2.0
# Of z: 0.03 % of a parameter's range from its end.
_LARGEST_Z = 8.0
# Of the cost above the best minimum's, e^-12 of its density: others are dropped.
_LARGEST_EXCESS = 12
# Places that are computed at once.
_CHUNK = 1024
# Of the derivative of the mean magnitude, in amplitudes over sigma.
_DIFFERENCE = 0.01


@dataclass(frozen=True, eq=False)
class ClassProblem:
    """Voxels that one class of tissue is to explain.

    Attributes
    ----------
    model : TissueModel
    tissue : TissueClass
    likelihood : Likelihood
        Of V voxels.
    frames : ndarray (V, 3, 3)
        Rows; the last is the direction where the search for an axis starts.
    """

    model: TissueModel
    tissue: TissueClass
    likelihood: Likelihood
    frames: np.ndarray

    def signals(self, z: np.ndarray, voxel: np.ndarray, slopes: bool = False):
        """Signals (N, M) at places (N, P) of voxels (N,); see :func:`class_signals`."""
        return class_signals(self.model, self.tissue, z, self.frames[voxel], slopes)

    def log_posterior(
        self, z: np.ndarray, voxel: np.ndarray, noise_unknown: bool = False
    ) -> np.ndarray:
        """Logarithms (N,) of prior times likelihood, the amplitudes integrated out.

        Unknown noise is integrated out too, with a prior uniform in its logarithm.
        """
        likelihood = self.likelihood
        n_te = int(likelihood.te_index.max()) + 1
        degrees = likelihood.data.shape[1] - n_te
        result = log_prior(self.tissue, z)
        for first in range(0, len(z), _CHUNK):
            part = slice(first, first + _CHUNK)
            signals = self.signals(z[part], voxel[part])
            white, _, information = residuals(likelihood, signals, voxel[part])
            chi_square = np.einsum("nm,nm->n", white, white)
            if noise_unknown:
                chi_square = degrees * np.log(chi_square + 1e-300)
            result[part] -= 0.5 * chi_square + information
        return result


@dataclass(frozen=True, eq=False)
class Modes:
    """Local minima of the voxels, best first.

    Attributes
    ----------
    places : ndarray (V, K, P)
    covariances : ndarray (V, K, P, P)
        Inverse of half the Gauss-Newton Hessian of the cost.
    costs : ndarray (V, K)
        Half chi-square minus log prior; infinite where a voxel has fewer minima.
    """

    places: np.ndarray
    covariances: np.ndarray
    costs: np.ndarray


def find_modes(problem: ClassProblem, n_modes: int, starts: np.ndarray | None = None) -> Modes:
    """Minima of the voxels, from the entries of a dictionary that fit best.

    Parameters
    ----------
    problem : ClassProblem
    n_modes : int
        K, the most minima kept.
    starts : ndarray (V, K, P), optional
        Instead of the dictionary.
    """
    if starts is None:
        starts = _dictionary_starts(problem)
    n_voxels, n_starts, n_parameters = starts.shape
    voxel = np.repeat(np.arange(n_voxels), n_starts)
    places, covariances, costs = _minima(problem, starts.reshape(-1, n_parameters), voxel)
    return _distinct(
        places.reshape(starts.shape),
        covariances.reshape(n_voxels, n_starts, n_parameters, n_parameters),
        costs.reshape(n_voxels, n_starts),
        n_modes,
    )


def _dictionary_starts(problem):
    tissue, n_voxels = problem.tissue, len(problem.frames)
    p = tissue.n_parameters
    u = qmc.Sobol(p, seed=0).random(_N_DICTIONARY)
    u = 0.05 + 0.9 * u
    if not tissue.bounded.all():
        # Where it can be seen, the axis is that of the tensor.
        u[:, tissue.columns("axis_0", "axis_1")] = 0.5
    if "free_water" in tissue.parameters:
        u[:, -1] *= 0.3
    z = np.log(u / (1 - u))
    radius = u[:, 0]
    bins = np.minimum((radius * _RADIUS_BINS).astype(int), _RADIUS_BINS - 1)
    cost = np.empty((n_voxels, _N_DICTIONARY))
    for v in range(0, n_voxels, max(1, _CHUNK // _N_DICTIONARY)):
        part = np.arange(v, min(v + max(1, _CHUNK // _N_DICTIONARY), n_voxels))
        voxel = np.repeat(part, _N_DICTIONARY)
        entries = np.tile(z, (len(part), 1))
        cost[part] = -problem.log_posterior(entries, voxel).reshape(len(part), -1)
    starts = []
    for k in range(_RADIUS_BINS):
        members = np.flatnonzero(bins == k)
        best = np.argsort(cost[:, members], axis=1)[:, :_STARTS_PER_BIN]
        starts.append(z[members[best]])
    return np.concatenate(starts, axis=1)


def _minima(problem, z, voxel):
    """Places (N, P), covariances (N, P, P) and costs (N,) where the searches from z end."""
    z = z.copy()
    cost, gradient, hessian = _expansion(problem, z, voxel)
    identity = np.eye(z.shape[1])

    def advance(rows, damping):
        rows, damping = rows.numpy(), damping.numpy()
        diagonal = np.einsum("npp->np", hessian[rows])
        damped = hessian[rows] + (damping[:, None] * (diagonal + 1e-3))[..., None] * identity
        step = -np.linalg.solve(damped, gradient[rows][..., None])[..., 0]
        step = np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
        moved = _within(problem.tissue, z[rows] + step)
        new = _expansion(problem, moved, voxel[rows])
        better = new[0] < cost[rows]
        small = better & (cost[rows] - new[0] < _LEAST_GAIN)
        for kept, found in zip((z, cost, gradient, hessian), (moved, *new), strict=True):
            kept[rows[better]] = found[better]
        return torch.from_numpy(better), torch.from_numpy(small), _SHRINK

    levenberg_marquardt(advance, torch.from_numpy(cost), _DAMPING, _MOST_STEPS)
    return z, np.linalg.inv(hessian + 1e-9 * identity), cost


def _within(tissue, z):
    """Places with bounded logits; an axis beyond the hemisphere comes back at its antipode."""
    moved = np.clip(z, -_LARGEST_Z, _LARGEST_Z)
    if not tissue.bounded.all():
        at = tissue.columns("axis_0", "axis_1")
        disc = z[:, at]
        radius = np.linalg.norm(disc, axis=1, keepdims=True)
        radius_in = np.minimum(radius, 2 - 1e-6)
        opposite = -disc / np.maximum(radius, 1e-12) * np.sqrt(4 - radius_in**2)
        moved[:, at] = np.where(radius > HEMISPHERE, opposite * (1 - 1e-9), disc)
    return moved


def _expansion(problem, z, voxel):
    """Cost (N,), gradient (N, P) and Gauss-Newton Hessian (N, P, P)."""
    tissue, likelihood = problem.tissue, problem.likelihood
    n, p = z.shape
    cost, gradient, hessian = np.empty(n), np.empty((n, p)), np.empty((n, p, p))
    for first in range(0, n, _CHUNK // 4):
        part = slice(first, first + _CHUNK // 4)
        v = voxel[part]
        signals, slopes = problem.signals(z[part], v, slopes=True)
        white, amplitude, _ = residuals(likelihood, signals, v)
        scale = amplitude[:, likelihood.te_index]
        relative = np.maximum(scale * signals, 0) / likelihood.sigma[v][:, None]
        per_amplitude = 1 + (
            rician_excess(relative + _DIFFERENCE) - rician_excess(relative)
        ) / _DIFFERENCE  # fmt: skip
        changes = whiten(likelihood, (scale * per_amplitude)[..., None] * slopes, v)
        # The amplitudes follow: only what they cannot explain counts.
        of_amplitude = whiten(likelihood, _per_echo(likelihood, signals * per_amplitude), v)
        basis = np.linalg.qr(of_amplitude)[0]
        changes -= basis @ (np.swapaxes(basis, 1, 2) @ changes)
        cost[part] = 0.5 * np.einsum("nm,nm->n", white, white)
        gradient[part] = -np.einsum("nm,nmp->np", white, changes)
        hessian[part] = np.swapaxes(changes, 1, 2) @ changes
    u = expit(z)
    bounded = tissue.bounded
    cost -= log_prior(tissue, z)
    gradient[:, bounded] += (2 * u - 1)[:, bounded]
    diagonal = np.arange(p)[bounded]
    hessian[:, diagonal, diagonal] += (2 * u * (1 - u))[:, bounded]
    free = np.arange(p)[~bounded]
    # An axis that the data leave open still has a bounded disc.
    hessian[:, free, free] += 1.0
    return cost, gradient, hessian


def _per_echo(likelihood, signals):
    n_te = int(likelihood.te_index.max()) + 1
    return signals[..., None] * (likelihood.te_index[:, None] == np.arange(n_te))


def _distinct(places, covariances, costs, n_modes):
    """Minima that are not within each other's error ellipsoid, best first."""
    order = np.argsort(costs, axis=1)
    places = np.take_along_axis(places, order[..., None], axis=1)
    covariances = np.take_along_axis(covariances, order[..., None, None], axis=1)
    costs = np.take_along_axis(costs, order, axis=1)
    precision = np.linalg.inv(covariances)
    apart = places[:, :, None] - places[:, None]
    distance = np.einsum("vijp,vjpq,vijq->vij", apart, precision, apart)
    n_voxels, n_starts = costs.shape
    kept = np.zeros((n_voxels, n_starts), dtype=bool)
    for k in range(n_starts):
        near = (kept[:, :k] & (distance[:, k, :k] < places.shape[2])).any(axis=1)
        kept[:, k] = (
            ~near & (costs[:, k] < costs[:, 0] + _LARGEST_EXCESS) & (kept.sum(axis=1) < n_modes)
        )
    rank = np.argsort(~kept, axis=1, kind="stable")[:, :n_modes]
    costs = np.where(kept, costs, np.inf)
    return Modes(
        np.take_along_axis(places, rank[..., None], axis=1),
        np.take_along_axis(covariances, rank[..., None, None], axis=1),
        np.take_along_axis(costs, rank, axis=1),
    )
