"""Fractions of voxels that are thought to be like their neighbours: a Markov field of an image.

Beside what is thought of a voxel by itself, an image has the prior probability
``exp(-smoothness sum |f_i - f_j| / sqrt(2))``, the sum being over neighbours i, j: the total
variation of its fractions, which keeps edges. Draws are of the posterior of all voxels together.
A voxel is drawn beside its neighbours by moves along lines through its fractions: to each end of
the line, where one class is no longer in the voxel, or between them, each with its probability
[1]_. That of neighbours is normal for given precisions of their differences, which are drawn
before [2]_.

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
    between,
    fraction_samples,
    log_line,
)

_SETTLING = 50  # sweeps before the first draw
_LEAST_CURVATURE, _LEAST_APART, _LEAST_MOVE = 1e-6, 1e-12, 1e-3


@dataclass(frozen=True, eq=False)
class NeighbourGraph:
    """Which voxels of an image are side by side.

    Attributes
    ----------
    of : ndarray (V, 2 D) of int
        Voxels before and behind along each axis; -1 where none was fitted.
    halves : (ndarray, ndarray)
        Voxels, in two parts within which none are neighbours.
    """

    of: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]

    @classmethod
    def on_grid(cls, rows: np.ndarray, shape: tuple[int, ...]) -> NeighbourGraph:
        """Of voxels that are these places of a flattened image."""
        places = np.stack(np.unravel_index(rows, shape), axis=1) + 1
        at = np.full([n + 2 for n in shape], -1)
        at[tuple(places.T)] = np.arange(len(rows))
        steps = np.eye(len(shape), dtype=int)
        of = [at[tuple((places + step).T)] for step in (*steps, *-steps)]
        odd = places.sum(axis=1) % 2 == 1
        return cls(np.stack(of, axis=1), (np.flatnonzero(~odd), np.flatnonzero(odd)))


def markov_field_samples(
    gram: np.ndarray,
    projection: np.ndarray,
    share: np.ndarray,
    neighbours: NeighbourGraph,
    smoothness: float,
    n: int,
) -> np.ndarray:
    """Draws (n, V, T + 1) of the fractions of an image, the last of the background.

    Parameters
    ----------
    gram, projection, share
        As in :func:`mixtures.fraction_samples`.
    neighbours : NeighbourGraph
    smoothness : float
        Logarithm of how much less probable two neighbours are that have no tissue in common.
    n : int
    """
    state = fraction_samples(gram, projection, share, 1)[:, 0].astype(float)
    state /= state.sum(axis=1, keepdims=True)
    gram, projection = with_background(gram, projection)
    classes = range(state.shape[1])
    pairs, triples = (np.array([*combinations(classes, k)]).reshape(-1, k) for k in (2, 3))
    log_density = _log_densities(share, len(classes))
    draws = np.empty((n, *state.shape), np.float32)
    for sweep in range(_SETTLING + n):
        for half in neighbours.halves:
            _sweep(
                half, gram, projection, log_density, neighbours.of, smoothness, pairs, triples,
                state, sweep,
            )  # fmt: skip
        if sweep >= _SETTLING:
            draws[sweep - _SETTLING] = state
    return draws


def _log_densities(share, n_classes):
    """Logarithm of the prior density on each face, by the sum of 2^k of its classes k."""
    faces, dims = faces_of(n_classes, MOST_MIXED)
    result = np.full(2**n_classes, -inf)
    for face, dim, part in zip(faces, dims, share, strict=True):
        volume = np.prod(np.arange(1, dim + 1))  # one over that of the simplex
        result[sum(2**k for k in face[: dim + 1])] = np.log(part * volume)
    return result


@njit(cache=True, nogil=True)
def _hashed(x):
    """Steele, Lea and Flood's mixing of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _uniform(counter):
    """The next of a voxel's random numbers between 0 and 1: alike on any number of threads."""
    counter[0] += np.uint64(0x9E3779B97F4A7C15)
    return (float(_hashed(counter[0]) >> np.uint64(11)) + 0.5) / 9007199254740992.0


@njit(cache=True, nogil=True)
def _precision(apart, smoothness, counter):
    """Of a normal difference whose mixture is exp(-smoothness |difference|): inverse Gaussian."""
    mean, shape = smoothness / max(apart, _LEAST_APART), smoothness * smoothness
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
            half = 0.5 * _precision(sqrt(square), smoothness, counter)
            for i in range(n):
                g[i, i] += half
                p[i] += half * state[neighbour, i]
        for i, j in pairs:
            direction[:] = 0.0
            direction[i], direction[j] = 1.0, -1.0
            _along(state[v], direction, g, p, log_density, counter)
        for i, j, m in triples:
            direction[:] = 0.0
            if _least_determined(gram[v], i, j, m, direction):
                _along(state[v], direction, g, p, log_density, counter)


@njit(cache=True, nogil=True)
def _least_determined(g, i, j, k, direction):
    """How three classes take each other's place with least change; False if one is not in it."""
    a = g[i, i] - 2 * g[i, k] + g[k, k]
    c = g[i, j] - g[i, k] - g[j, k] + g[k, k]
    d = g[j, j] - 2 * g[j, k] + g[k, k]
    # The eigenvector of the smaller eigenvalue of ((a, c), (c, d)).
    smaller = 0.5 * (a + d) - sqrt(0.25 * (a - d) ** 2 + c * c)
    x, y = (c, smaller - a) if abs(smaller - a) > abs(smaller - d) else (smaller - d, c)
    largest = max(abs(x), abs(y), abs(x + y))
    if min(abs(x), abs(y), abs(x + y)) <= _LEAST_MOVE * largest:
        return False
    direction[i], direction[j], direction[k] = x / largest, y / largest, -(x + y) / largest
    return True


@njit(cache=True, nogil=True)
def _along(f, direction, g, p, log_density, counter):
    """Move fractions along a line to one of its ends, or between them."""
    n, low, high = len(f), -inf, inf
    at_low, at_high, within, absent = -1, -1, 0, 0
    for i in range(n):
        within += (1 << i) if f[i] > 0 or direction[i] != 0 else 0
        absent += 1 if f[i] == 0 and direction[i] != 0 else 0
        if direction[i] > 0 and -f[i] / direction[i] > low:
            low, at_low = -f[i] / direction[i], i
        if direction[i] < 0 and -f[i] / direction[i] < high:
            high, at_high = -f[i] / direction[i], i
    if absent > 1 or high - low <= _LEAST_APART:  # lines through corners have no probability
        return
    # Along the line from its low end: slope b and curvature c of the logarithm of the density.
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
    middle = log_density[within] + log_line(c, b, width)
    # Lines end on a face as densely as they are slanted to it.
    first = log_density[within - (1 << at_low)] - log(abs(direction[at_low]))
    last = log_density[within - (1 << at_high)] - log(abs(direction[at_high]))
    last += b * width - 0.5 * c * width * width
    largest = max(first, middle, last)
    first, middle, last = exp(first - largest), exp(middle - largest), exp(last - largest)
    u = _uniform(counter) * (first + middle + last)
    x = low
    if u >= first + middle:
        x = high
    elif u >= first:
        mean, root = b / c, sqrt(c)
        inside = between(-mean * root, (width - mean) * root, (u - first) / middle) / root
        x = low + min(max(mean + inside, 0.0), width)
    for i in range(n):
        f[i] = max(f[i] + x * direction[i], 0.0)
    if u < first:
        f[at_low] = 0.0
    elif u >= first + middle:
        f[at_high] = 0.0
