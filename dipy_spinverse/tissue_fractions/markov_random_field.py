"""Markov random field of fractions: the joint posterior of all voxels of an image.

The prior is that of single voxels times ``exp(-smoothness sum |f_i - f_j| / sqrt(2))`` over
neighbours i, j: total variation, which preserves edges. Gibbs sampling [1]_ updates one voxel
given its neighbours along lines through its fractions: to either end of the line, where one class
vanishes, or between the ends. The prior of differences is a scale mixture of normal densities,
whose precisions are sampled as well [2]_.

References
----------
.. [1] Geman and Geman, IEEE Trans. Pattern Anal. Mach. Intell. 6 (1984),
   https://doi.org/10.1109/TPAMI.1984.4767596
.. [2] Park and Casella, J. Am. Stat. Assoc. 103 (2008),
   https://doi.org/10.1198/016214508000000337
.. [3] Besag, The Statistician 24 (1975), https://doi.org/10.2307/2987782
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import cos, exp, inf, log, pi, sqrt

import numpy as np
from numba import njit, prange

from dipy_spinverse.tissue_fractions.partial_volume_mixture import cells
from dipy_spinverse.tissue_fractions.simplex_least_squares import faces_of, with_background
from dipy_spinverse.tissue_fractions.simplex_posterior import (
    MOST_MIXED,
    fraction_samples,
    log_line_integral,
    truncated_quantile,
)

# Sweeps before the first sample, and after a change of shared parameters; by hand.
_BURN_IN, _FEWER = 50, 12
# Of the smoothness: its initial value and limit (from 3, intervals were too narrow at thin grey
# matter: benchmarks/results/tissue_fractions), sweeps between updates, Newton steps, voxels used.
_INITIAL_SMOOTHNESS, _MOST_SMOOTHNESS = 1.5, 2.0
_UPDATE, _NEWTON_STEPS, _MOST_VOXELS = 5, 3, 5000
# Curvature of a line, difference of neighbours, change of a class along a line: below, rounding.
_LEAST_CURVATURE, _LEAST_DIFFERENCE, _LEAST_CHANGE = 1e-6, 1e-12, 1e-3


@dataclass(frozen=True, eq=False)
class NeighbourGraph:
    """Voxels before and after each voxel along the axes of an image; -1 if not fitted.

    `of` (V, 2 D); `halves`: a checkerboard, two sets of voxels without neighbours in the same set.
    """

    of: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]

    @classmethod
    def on_grid(cls, rows: np.ndarray, shape: tuple[int, ...]) -> NeighbourGraph:
        """Of voxels with these indices in a flattened image."""
        positions = np.stack(np.unravel_index(rows, shape), axis=1) + 1
        at = np.full([n + 2 for n in shape], -1)
        at[tuple(positions.T)] = np.arange(len(rows))
        steps = np.eye(len(shape), dtype=int)
        of = [at[tuple((positions + step).T)] for step in (*steps, *-steps)]
        odd = positions.sum(axis=1) % 2 == 1
        return cls(np.stack(of, axis=1), (np.flatnonzero(~odd), np.flatnonzero(odd)))


def markov_field_samples(
    gram: np.ndarray,
    projection: np.ndarray,
    share: np.ndarray,
    neighbours: NeighbourGraph,
    smoothness: float | None,
    n: int,
) -> np.ndarray:
    """Posterior samples (n, V, T + 1) of fractions, the last of the background.

    Normal equations (V, K, T, T) and (V, K, T) are those of K samples of shared parameters, of
    which each serves n / K samples; `share` as in :func:`fraction_samples`; `smoothness` is the
    log ratio of prior densities of equal neighbours and of those with no tissue in common,
    estimated by pseudo-likelihood if None.
    """
    first_gram, first_projection = _sample(gram, projection, 0)
    state = fraction_samples(first_gram, first_projection, share, 1)[:, 0].astype(float)
    state /= state.sum(axis=1, keepdims=True)
    classes = range(state.shape[1])
    pairs, triples = (np.array([*combinations(classes, k)]).reshape(-1, k) for k in (2, 3))
    log_density = _log_densities(share, len(classes))
    of_sample = np.sort(np.arange(n) % gram.shape[1])
    draws = np.empty((n, *state.shape), np.float32)
    strength, sweep = _INITIAL_SMOOTHNESS if smoothness is None else smoothness, 0
    for k in range(gram.shape[1]):
        normal = with_background(*_sample(gram, projection, k))
        n_burn_in = _BURN_IN if k == 0 else _FEWER
        kept = np.flatnonzero(of_sample == k)
        for row in (*[-1] * n_burn_in, *kept):
            for checker in neighbours.halves:
                _sweep(
                    checker, *normal, log_density, neighbours.of, strength, pairs, triples, state,
                    sweep,
                )  # fmt: skip
            sweep += 1
            if row >= 0:
                draws[row] = state
            elif smoothness is None and k == 0 and sweep % _UPDATE == 0:
                strength = estimate_smoothness(state, share, neighbours, strength)
    return draws


def _sample(gram, projection, k):
    """Normal equations of one sample of shared parameters."""
    return gram[:, k].astype(float), projection[:, k].astype(float)


def estimate_smoothness(
    fractions: np.ndarray, share: np.ndarray, neighbours: NeighbourGraph, smoothness: float
) -> float:
    """Smoothness that maximises the pseudo-likelihood [3]_ of fractions (V, T + 1): Newton steps.

    Each voxel, given its neighbours, is compared with the cells of all faces.
    """
    rows = np.linspace(0, len(fractions) - 1, min(len(fractions), _MOST_VOXELS)).astype(int)
    centres, of_cell = (part.numpy() for part in cells(fractions.shape[1])[:2])
    near, known = fractions[neighbours.of[rows]], neighbours.of[rows] >= 0
    of_cells = np.zeros((len(rows), len(centres)))
    of_data = np.zeros(len(rows))
    for k in range(near.shape[1]):
        to_cells = np.linalg.norm(near[:, k, None] - centres, axis=2) / sqrt(2)
        of_cells += known[:, [k]] * to_cells
        of_data += known[:, k] * np.linalg.norm(near[:, k] - fractions[rows], axis=1) / sqrt(2)
    log_prior = np.log(share / np.bincount(of_cell))[of_cell]
    for _ in range(_NEWTON_STEPS):
        weights = log_prior - smoothness * of_cells
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights * of_cells).sum(axis=1)
        variance = (weights * of_cells**2).sum(axis=1) - mean**2
        smoothness += (mean - of_data).sum() / max(variance.sum(), 1e-9)
        smoothness = min(max(smoothness, 0.0), _MOST_SMOOTHNESS)
    return float(smoothness)


def _log_densities(share, n_classes):
    """Log prior density on each face, indexed by the sum of 2^k over its classes k."""
    faces, dims = faces_of(n_classes, MOST_MIXED)
    result = np.full(2**n_classes, -inf)
    for face, dim, probability in zip(faces, dims, share, strict=True):
        volume = np.prod(np.arange(1, dim + 1))  # reciprocal volume of the simplex
        result[sum(2**k for k in face[: dim + 1])] = np.log(probability * volume)
    return result


@njit(cache=True, nogil=True)
def _hashed(x):
    """SplitMix64 finaliser (Steele, Lea and Flood, https://doi.org/10.1145/2660193.2660195)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _uniform(counter):
    """Next uniform random number of a voxel, the same for any number of threads."""
    counter[0] += np.uint64(0x9E3779B97F4A7C15)
    return (float(_hashed(counter[0]) >> np.uint64(11)) + 0.5) / 9007199254740992.0


@njit(cache=True, nogil=True)
def _precision(distance, smoothness, counter):
    """Precision of a difference with density exp(-smoothness |difference|): inverse Gaussian.

    By the method of Michael, Schucany and Haas, https://doi.org/10.1080/00031305.1976.10479147.
    """
    mean, shape = smoothness / max(distance, _LEAST_DIFFERENCE), smoothness * smoothness
    normal = sqrt(-2 * log(_uniform(counter))) * cos(2 * pi * _uniform(counter))
    ratio = 0.5 * mean * normal * normal / shape
    smaller = mean / (1 + ratio + sqrt(ratio * (ratio + 2)))
    if _uniform(counter) * (mean + smaller) <= mean:
        return smaller
    return mean * mean / smaller


@njit(cache=True, nogil=True, parallel=True)
def _sweep(
    rows, gram, projection, log_density, neighbours, smoothness, pairs, triples, state, sweep
):
    n = state.shape[1]
    for k in prange(len(rows)):
        v = rows[k]
        counter = np.empty(1, np.uint64)
        counter[0] = _hashed(np.uint64(sweep) * np.uint64(0xD1B54A32D192ED03) + np.uint64(v))
        g, p, direction = gram[v].copy(), projection[v].copy(), np.zeros(n)
        for neighbour in neighbours[v]:
            if neighbour < 0:
                continue
            square = 0.0
            for i in range(n):
                square += 0.5 * (state[v, i] - state[neighbour, i]) ** 2
            half_precision = 0.5 * _precision(sqrt(square), smoothness, counter)
            for i in range(n):
                g[i, i] += half_precision
                p[i] += half_precision * state[neighbour, i]
        for i, j in pairs:
            direction[:] = 0.0
            direction[i], direction[j] = 1.0, -1.0
            _sample_line(state[v], direction, g, p, log_density, counter)
        for i, j, m in triples:
            direction[:] = 0.0
            if _least_determined(gram[v], i, j, m, direction):
                _sample_line(state[v], direction, g, p, log_density, counter)


@njit(cache=True, nogil=True)
def _least_determined(g, i, j, k, direction):
    """Exchange of three classes of least curvature; False if it involves only two."""
    a = g[i, i] - 2 * g[i, k] + g[k, k]
    c = g[i, j] - g[i, k] - g[j, k] + g[k, k]
    d = g[j, j] - 2 * g[j, k] + g[k, k]
    # The eigenvector of the smaller eigenvalue of ((a, c), (c, d)).
    smaller = 0.5 * (a + d) - sqrt(0.25 * (a - d) ** 2 + c * c)
    x, y = (c, smaller - a) if abs(smaller - a) > abs(smaller - d) else (smaller - d, c)
    largest = max(abs(x), abs(y), abs(x + y))
    if min(abs(x), abs(y), abs(x + y)) <= _LEAST_CHANGE * largest:
        return False
    direction[i], direction[j], direction[k] = x / largest, y / largest, -(x + y) / largest
    return True


@njit(cache=True, nogil=True)
def _sample_line(f, direction, g, p, log_density, counter):
    """Sample fractions along a line: at either end, or between them."""
    n, low, high = len(f), -inf, inf
    at_low, at_high, present, absent = -1, -1, 0, 0
    for i in range(n):
        present += (1 << i) if f[i] > 0 or direction[i] != 0 else 0
        absent += 1 if f[i] == 0 and direction[i] != 0 else 0
        if direction[i] > 0 and -f[i] / direction[i] > low:
            low, at_low = -f[i] / direction[i], i
        if direction[i] < 0 and -f[i] / direction[i] < high:
            high, at_high = -f[i] / direction[i], i
    if absent > 1 or high - low <= _LEAST_DIFFERENCE:  # lines through corners have measure zero
        return
    # Log density along the line, from its low end: slope b and curvature -c.
    b, c = 0.0, _LEAST_CURVATURE
    for i in range(n):
        if direction[i] == 0:
            continue
        slope = p[i]
        for j in range(n):
            slope -= g[i, j] * (f[j] + low * direction[j])
            c += direction[i] * g[i, j] * direction[j]
        b += direction[i] * slope
    width = high - low
    interior_mass = log_density[present] + log_line_integral(c, b, width)
    # Jacobian of the projection of lines onto the face that they end on.
    low_mass = log_density[present - (1 << at_low)] - log(abs(direction[at_low]))
    high_mass = log_density[present - (1 << at_high)] - log(abs(direction[at_high]))
    high_mass += b * width - 0.5 * c * width * width
    largest = max(low_mass, interior_mass, high_mass)
    low_mass, interior_mass, high_mass = (
        exp(low_mass - largest),
        exp(interior_mass - largest),
        exp(high_mass - largest),
    )
    u = _uniform(counter) * (low_mass + interior_mass + high_mass)
    x = low
    if u >= low_mass + interior_mass:
        x = high
    elif u >= low_mass:
        mean, root = b / c, sqrt(c)
        inside = (
            truncated_quantile(-mean * root, (width - mean) * root, (u - low_mass) / interior_mass)
            / root
        )
        x = low + min(max(mean + inside, 0.0), width)
    for i in range(n):
        f[i] = max(f[i] + x * direction[i], 0.0)
    if u < low_mass:
        f[at_low] = 0.0
    elif u >= low_mass + interior_mass:
        f[at_high] = 0.0
