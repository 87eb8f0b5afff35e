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
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import cos, exp, inf, log, pi, sqrt

import numpy as np
from numba import njit, prange

from dipy_spinverse.tissue_fractions.simplex_least_squares import faces_of, with_background
from dipy_spinverse.tissue_fractions.simplex_posterior import (
    MOST_MIXED,
    fraction_samples,
    log_line_integral,
    truncated_quantile,
)

_BURN_IN = 50  # sweeps before the first sample; by hand
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
    smoothness: float,
    n: int,
) -> np.ndarray:
    """Posterior samples (n, V, T + 1) of fractions, the last of the background.

    As :func:`fraction_samples`; `smoothness` is the log ratio of prior densities of equal
    neighbours and of those with no tissue in common.
    """
    state = fraction_samples(gram, projection, share, 1)[:, 0].astype(float)
    state /= state.sum(axis=1, keepdims=True)
    gram, projection = with_background(gram, projection)
    classes = range(state.shape[1])
    pairs, triples = (np.array([*combinations(classes, k)]).reshape(-1, k) for k in (2, 3))
    log_density = _log_densities(share, len(classes))
    draws = np.empty((n, *state.shape), np.float32)
    for sweep in range(_BURN_IN + n):
        for checker in neighbours.halves:
            _sweep(
                checker, gram, projection, log_density, neighbours.of, smoothness, pairs, triples,
                state, sweep,
            )  # fmt: skip
        if sweep >= _BURN_IN:
            draws[sweep - _BURN_IN] = state
    return draws


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
