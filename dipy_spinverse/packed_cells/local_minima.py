"""The best parameters of a class of tissue: a dictionary, then Levenberg-Marquardt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp, ndtri
from scipy.stats import qmc

from dipy_spinverse.inversion.levenberg_marquardt import Damping, levenberg_marquardt
from dipy_spinverse.packed_cells.likelihood import VoxelData, normal_equations, residuals
from dipy_spinverse.packed_cells.orientations import vector_of
from dipy_spinverse.packed_cells.tissue_classes import LARGEST_Z, TissueClass, log_prior
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals

# Entries of the dictionary, a power of two.
_N_DICTIONARY = 2048
# Intervals of the squared cosine between gradient and axis, in which measurements are averaged.
_N_PROFILE = 4
# The best entries of each interval of the radius, with and without much of a hindered pool, are
# starts: minima differ most in these.
_RADIUS_BINS = 4
# Relative to the mean curvature, the same for all parameters, whose scale is that of the prior:
# valleys of good data are narrow and bent, and damping by each parameter's own curvature crawls.
_DAMPING = Damping(initial=1e-4, minimum=1e-12, maximum=1e6, growth=4.0)
# Of the gain that was expected, and how the damping changes where a step has less.
_GOOD, _POOR = 0.75, 0.25
_SHRINK, _HOLD, _GROW = 0.25, 0.7, 2.0
# Of z, in one step.
_LARGEST_STEP = 1.5
# Of more starts the better half goes on after a short search.
_FEW = 4
# Of the cost above the best minimum's, e^-12 of its density: others are dropped.
_LARGEST_EXCESS = 12
# Places that are computed at once: that many fit into the processor's cache.
_CHUNK, _CHUNK_WITH_SLOPES = 512, 96


class SearchBudget(NamedTuple):
    """Most steps of a search, and what it has to gain of the cost with each to go on.

    Of many starts the better half goes on after a few steps, or all do.
    """

    most_steps: int
    least_gain: float
    all_starts: bool = False


_SHORT = SearchBudget(6, 0.3)


@dataclass(frozen=True, eq=False)
class ClassProblem:
    """Voxels that one class of tissue is to explain.

    Attributes
    ----------
    model : TissueSignals
    tissue : TissueClass
    known : VoxelData
        Of V voxels.
    offset : ndarray (V, M)
        What the emulator gives beyond the signals of `model`, where it was asked.
    centre : ndarray (V, P) or float
        Of the prior.
    """

    model: TissueSignals
    tissue: TissueClass
    known: VoxelData
    offset: np.ndarray
    centre: np.ndarray | float = 0.0


@dataclass(frozen=True, eq=False)
class LocalMinima:
    """Local minima of the voxels, best first.

    Attributes
    ----------
    places : ndarray (V, K, P)
        Rotations are relative to `frames`.
    frames : ndarray (V, 3, 3)
        Those of the best minima.
    covariances : ndarray (V, K, P, P)
        Inverse of half the Gauss-Newton Hessian of the cost.
    costs : ndarray (V, K)
        Minus the logarithm of the posterior; infinite where a voxel has fewer minima.
    """

    places: np.ndarray
    frames: np.ndarray
    covariances: np.ndarray
    costs: np.ndarray

    @property
    def log_evidence(self) -> np.ndarray:
        """Logarithms (V,) of the integral of the posterior around the minima (Laplace)."""
        p = self.places.shape[2]
        volume = 0.5 * np.linalg.slogdet(self.covariances)[1]
        return logsumexp(volume - self.costs, axis=1) + 0.5 * p * np.log(2 * np.pi)

    @property
    def shares(self) -> np.ndarray:
        """Of the posterior (V, K), by Laplace's approximation around each minimum.

        Roots of them, as curved valleys are larger than the approximation knows.
        """
        log_share = 0.5 * (0.5 * np.linalg.slogdet(self.covariances)[1] - self.costs)
        share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
        return share / share.sum(axis=1, keepdims=True)

    def at(self, tissue: TissueClass, voxel: np.ndarray, mode: np.ndarray):
        """Places (N, P) and frames of minima, their rotations in the frames."""
        places = self.places[voxel, mode]
        return tissue.moved(np.zeros_like(places), self.frames[voxel], places)

    def best_in(self, tissue: TissueClass, frames: np.ndarray) -> np.ndarray:
        """Places (V, P) of the best minima, their rotations relative to frames (V, 3, 3)."""
        everywhere, best = np.arange(len(frames)), np.zeros(len(frames), dtype=int)
        places, turned = self.at(tissue, everywhere, best)
        if tissue.turns:
            places[:, -3:] = vector_of(turned @ np.swapaxes(frames, 1, 2))
        return places

    def of_voxels(self, index: np.ndarray) -> LocalMinima:
        """Some of the voxels."""
        return LocalMinima(
            self.places[index], self.frames[index], self.covariances[index], self.costs[index]
        )  # fmt: skip


def find_local_minima(
    problem: ClassProblem,
    starts: np.ndarray,
    frames: np.ndarray,
    n_modes: int,
    effort: SearchBudget,
) -> LocalMinima:
    """Minima of the voxels.

    Parameters
    ----------
    problem : ClassProblem
    starts : ndarray (V, K, P)
    frames : ndarray (V, 3, 3)
    n_modes : int
    effort : SearchBudget
    """
    n_voxels, n_starts, p = starts.shape
    voxel = np.repeat(np.arange(n_voxels), n_starts)
    # Rotations go into the frames: slopes by them hold where they are 0.
    places = starts.reshape(-1, p)
    at, turned = problem.tissue.moved(np.zeros_like(places), frames[voxel], places)
    if n_starts > _FEW and not effort.all_starts:
        at, turned, _, costs = minimise(problem, at, turned, voxel, _SHORT)
        rank = np.argsort(costs.reshape(n_voxels, n_starts), axis=1)[:, : n_starts // 2]
        better = (rank + n_starts * np.arange(n_voxels)[:, None]).ravel()
        at, turned, voxel = at[better], turned[better], voxel[better]
    found = minimise(problem, at, turned, voxel, effort)
    z, frames, covariances, costs = (each.reshape(n_voxels, -1, *each.shape[1:]) for each in found)
    return _distinct(problem.tissue, z, frames, covariances, costs, n_modes)


def dictionary_initial_values(
    model: TissueSignals, tissue: TissueClass, known: VoxelData, frames: np.ndarray
) -> np.ndarray:
    """Starts (V, K, P): the entries of a dictionary that fit best along the tensor's frame.

    Signals are averaged over intervals of the squared cosine to the axis.
    """
    plain = tissue.of_known_water
    places, profiles, bins = _dictionary(model, plain)
    label_of_shell = np.zeros(len(model.shells), int)
    label_of_shell[model.shells.of_measurement] = known.labels
    shell = model.shells.of_measurement
    square = np.einsum("vk,mk->vm", frames[:, 2], model.directions) ** 2
    cell = shell * _N_PROFILE + np.minimum((square * _N_PROFILE).astype(int), _N_PROFILE - 1)
    n_cells = len(model.shells) * _N_PROFILE
    n_voxels = len(frames)
    flat = (cell + np.arange(n_voxels)[:, None] * n_cells).ravel()
    weights = known.inverse_sd**2
    weight, product = (
        np.bincount(flat, x.ravel(), n_voxels * n_cells).reshape(n_voxels, n_cells)
        for x in (weights, weights * known.data)
    )
    explained = np.zeros((n_voxels, len(places)))
    of_cell = np.repeat(label_of_shell, _N_PROFILE)
    for label in range(known.n_labels):
        own = of_cell == label
        cross = product[:, own] @ profiles[:, own].T
        power = weight[:, own] @ (profiles[:, own] ** 2).T
        explained += cross**2 / np.maximum(power, 1e-12)
    starts = []
    for k in range(bins.max() + 1):
        members = np.flatnonzero(bins == k)
        starts.append(places[members[explained[:, members].argmax(axis=1)]])
    return tissue.like(plain, np.stack(starts, axis=1))


@lru_cache(maxsize=8)
def _dictionary(model, tissue):
    """Places (N, P), signals (N, S * 4) in each interval, and group (N,)."""
    p = tissue.n_parameters
    u = 0.03 + 0.94 * qmc.Sobol(p, seed=0).random(_N_DICTIONARY)
    for name in ("free_water", "dot", "hindered"):
        if name in tissue.parameters:
            # Most of them with little of either.
            u[:, tissue.columns(name)] *= 0.8
    places = ndtri(u)
    if tissue.turns:
        places[:, -3:] = 0
    square = (np.arange(_N_PROFILE) + 0.5) / _N_PROFILE
    axis, across = np.sqrt(square), np.sqrt((1 - square) / 2)
    directions = np.stack([across, across, axis], axis=1)
    shells = model.shells
    first = np.arange(len(shells) + 1) * _N_PROFILE
    profile = replace(
        model,
        shells=replace(shells, order=np.arange(first[-1]), first=first),
        directions=np.tile(directions, (len(shells), 1)),
        isotropic=np.zeros(first[-1], dtype=bool),
        echo=np.repeat(model.echo[shells.first[:-1]], _N_PROFILE),
    )
    frames = np.repeat(np.eye(3)[None], _N_DICTIONARY, axis=0)
    parts = np.arange(0, _N_DICTIONARY, _CHUNK)
    signals = [
        profile(tissue, places[k : k + _CHUNK], frames[k : k + _CHUNK]) for k in parts
    ]  # fmt: skip
    bins = np.minimum((u[:, 0] * _RADIUS_BINS).astype(int), _RADIUS_BINS - 1)
    if "hindered" in tissue.parameters:
        bins = 2 * bins + (u[:, tissue.columns("hindered")[0]] > 0.55)
    return places, np.concatenate(signals).astype(np.float32), bins


def minimise(
    problem: ClassProblem,
    z: np.ndarray,
    frames: np.ndarray,
    voxel: np.ndarray,
    effort: SearchBudget,
    damping: Damping = _DAMPING,
    relative: bool = True,
):
    """Places (N, P), frames, covariances (N, P, P) and costs (N,) where searches end.

    Damping is relative to the mean curvature, or to the prior's.
    """
    tissue = problem.tissue
    z, frames = z.copy(), frames.copy()
    cost, gradient, hessian = _expansion(problem, z, frames, voxel)
    identity = np.eye(z.shape[1])

    def advance(rows, level):
        rows, level = rows.numpy(), level.numpy()
        slope, curvature = gradient[rows], hessian[rows]
        scale = level * np.einsum("npp->n", curvature) / len(identity) if relative else level
        step = -np.linalg.solve(curvature + scale[:, None, None] * identity, slope[..., None])
        step *= np.minimum(1, _LARGEST_STEP / np.abs(step).max(axis=1, keepdims=True))
        expected = -(slope * step[..., 0]).sum(axis=1)
        expected -= 0.5 * (step * (curvature @ step)).sum(axis=(1, 2))
        step = step[..., 0]
        moved, turned = tissue.moved(z[rows], frames[rows], step)
        moved = np.clip(moved, -LARGEST_Z, LARGEST_Z)
        new = _expansion(problem, moved, turned, voxel[rows])
        gain = cost[rows] - new[0]
        better, ratio = gain > 0, gain / np.maximum(expected, 1e-300)
        small = better & (gain < effort.least_gain) & (ratio > _POOR)
        change = np.where(ratio > _GOOD, _SHRINK, np.where(ratio > _POOR, _HOLD, _GROW))
        kept = (z, frames, cost, gradient, hessian)
        for each, found in zip(kept, (moved, turned, *new), strict=True):
            each[rows[better]] = found[better]
        return tuple(torch.from_numpy(each) for each in (better, small, change))

    levenberg_marquardt(advance, torch.from_numpy(cost), damping, effort.most_steps)
    return z, frames, np.linalg.inv(hessian), cost


def costs(
    problem: ClassProblem, z: np.ndarray, frames: np.ndarray, voxel: np.ndarray
) -> np.ndarray:
    """Minus the logarithm (N,) of the posterior at places (N, P)."""
    cost = -log_prior(problem.tissue, z)
    for first in range(0, len(z), _CHUNK):
        part = slice(first, first + _CHUNK)
        v = voxel[part]
        signals = problem.model(problem.tissue, z[part], frames[part]) + problem.offset[v]
        white, _, information = residuals(problem.known, signals, v)
        cost[part] += 0.5 * np.einsum("nm,nm->n", white, white) + information
    return cost


def _expansion(problem, z, frames, voxel):
    """Cost (N,), gradient (N, P) and Gauss-Newton Hessian (N, P, P)."""
    tissue, known = problem.tissue, problem.known
    n, p = z.shape
    cost, gradient, hessian = np.empty(n), np.empty((n, p)), np.empty((n, p, p))
    for first in range(0, n, _CHUNK_WITH_SLOPES):
        part = slice(first, first + _CHUNK_WITH_SLOPES)
        v = voxel[part]
        signals, slopes = problem.model(tissue, z[part], frames[part], slopes=True)
        signals += problem.offset[v]
        white, amplitude, information = residuals(known, signals, v)
        cost[part] = 0.5 * np.einsum("nm,nm->n", white, white) + information
        gradient[part], hessian[part] = normal_equations(
            known, signals, amplitude, slopes, white, v
        )
    scalar = tissue.scalar
    apart = z.copy()
    if np.ndim(problem.centre):
        apart[:, scalar] -= problem.centre[voxel, scalar]
    cost -= log_prior(tissue, apart)
    gradient[:, scalar] += apart[:, scalar]
    # A rotation that the data leave open still ends at pi.
    hessian[:, np.arange(p), np.arange(p)] += 1.0
    return cost, gradient, hessian


def _distinct(tissue, places, frames, covariances, costs, n_modes):
    """Minima that are not within each other's error ellipsoid, best first."""
    order = np.argsort(costs, axis=1)
    row = np.arange(len(order))[:, None]
    places, frames, covariances, costs = (
        each[row, order] for each in (places, frames, covariances, costs)
    )
    n_voxels, n_starts = costs.shape
    if tissue.turns:
        turned = frames @ np.swapaxes(frames[:, :1], 2, 3)
        places[..., -3:] = vector_of(turned.reshape(-1, 3, 3)).reshape(n_voxels, -1, 3)
    precision = np.linalg.inv(covariances)
    apart = places[:, :, None] - places[:, None]
    distance = np.einsum("vijp,vjpq,vijq->vij", apart, precision, apart, optimize=True)
    kept = np.zeros((n_voxels, n_starts), dtype=bool)
    for k in range(n_starts):
        near = (kept[:, :k] & (distance[:, k, :k] < places.shape[2])).any(axis=1)
        kept[:, k] = (
            ~near & (costs[:, k] < costs[:, 0] + _LARGEST_EXCESS) & (kept.sum(axis=1) < n_modes)
        )
    rank = np.argsort(~kept, axis=1, kind="stable")[:, :n_modes]
    costs = np.where(kept, costs, np.inf)
    return LocalMinima(places[row, rank], frames[:, 0], covariances[row, rank], costs[row, rank])
