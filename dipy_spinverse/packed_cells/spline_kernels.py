"""Compiled sums: the tensor spline of a signal table, and signals along given directions."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _cubic(position, n, weight, slope):
    """First index, weights and slopes (4,) of the cubic B-splines at a position in 0..n-1."""
    first = min(max(int(np.floor(position)), 0), n - 2)
    t = position - first
    s = 1 - t
    weight[0] = s * s * s / 6
    weight[1] = (4 - 6 * t * t + 3 * t * t * t) / 6
    weight[2] = (4 - 6 * s * s + 3 * s * s * s) / 6
    weight[3] = t * t * t / 6
    slope[0] = -s * s / 2
    slope[1] = (-4 * t + 3 * t * t) / 2
    slope[2] = (4 * s - 3 * s * s) / 2
    slope[3] = t * t / 2
    return first


@njit(cache=True, nogil=True, fastmath=True)
def tensor_spline(coefficients, positions, with_slopes):
    """Values (C, N, P) of tensor splines: the value and, with slopes, its three derivatives.

    `coefficients` is (n0 + 2, n1 + 2, n2 + 2, P), `positions` (N, 3) in 0..n-1 of each axis.
    """
    n_points, width = len(positions), coefficients.shape[3]
    result = np.zeros((4 if with_slopes else 1, n_points, width), coefficients.dtype)
    first = np.empty(3, np.int64)
    weight, slope = np.empty((3, 4)), np.empty((3, 4))
    for n in range(n_points):
        for axis in range(3):
            size = coefficients.shape[axis] - 2
            first[axis] = _cubic(positions[n, axis], size, weight[axis], slope[axis])
        for a in range(4):
            for b in range(4):
                for c in range(4):
                    row = coefficients[first[0] + a, first[1] + b, first[2] + c]
                    w = weight[0, a] * weight[1, b] * weight[2, c]
                    if with_slopes:
                        w0 = slope[0, a] * weight[1, b] * weight[2, c]
                        w1 = weight[0, a] * slope[1, b] * weight[2, c]
                        w2 = weight[0, a] * weight[1, b] * slope[2, c]
                        for p in range(width):
                            result[0, n, p] += w * row[p]
                            result[1, n, p] += w0 * row[p]
                            result[2, n, p] += w1 * row[p]
                            result[3, n, p] += w2 * row[p]
                    else:
                        for p in range(width):
                            result[0, n, p] += w * row[p]
    return result


@njit(cache=True, nogil=True, fastmath=True)
def directional_sum(coefficients, cosines, shells):
    """Chebyshev sums (C, N, M) in 2 cos^2 - 1 with the coefficients (C, N, S, K) of each shell."""
    n_sets, n_points, _, n_terms = coefficients.shape
    n_directions = cosines.shape[1]
    result = np.empty((n_sets, n_points, n_directions))
    terms = np.empty(n_terms)
    for n in range(n_points):
        for m in range(n_directions):
            t = 2 * cosines[n, m] ** 2 - 1
            terms[0], terms[1] = 1.0, t
            for k in range(2, n_terms):
                terms[k] = 2 * t * terms[k - 1] - terms[k - 2]
            for c in range(n_sets):
                row = coefficients[c, n, shells[m]]
                total = 0.0
                for k in range(n_terms):
                    total += row[k] * terms[k]
                result[c, n, m] = total
    return result


@njit(cache=True, nogil=True, fastmath=True)
def directional_slope(coefficients, cosines, shells):
    """Derivatives (N, M) by the cosine of the first set of the sums above, (N, S, K)."""
    n_points, _, n_terms = coefficients.shape
    n_directions = cosines.shape[1]
    result = np.empty((n_points, n_directions))
    for n in range(n_points):
        for m in range(n_directions):
            t = 2 * cosines[n, m] ** 2 - 1
            row = coefficients[n, shells[m]]
            before, now, total = 1.0, 2 * t, row[1]
            # dT_k/dt = k U_{k-1}
            for k in range(2, n_terms):
                total += k * row[k] * now
                before, now = now, 2 * t * now - before
            result[n, m] = 4 * cosines[n, m] * total
    return result
