"""Bodies with an axis, dispersed about directions: sums over Legendre polynomials.

A kernel K(cos) = sum_l k_l P_l(cos) of the angle between gradient and axis, averaged over axes
that have diffused over the sphere by t from their mean, is [1]_

    sum_l k_l exp(-l (l + 1) t) P_l(cos of the angle to the mean)

Axes that disperse more within one plane than out of it have a t that depends on the direction of
the gradient, t = g^T T g: the first order of narrow distributions, and exact where T is a
multiple of the identity.

References
----------
.. [1] Perrin, Ann. Sci. Ec. Norm. Super. 45 (1928), https://doi.org/10.24033/asens.782
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, fastmath=True)
def dispersed_signals(coefficients, degrees, cosines, spread, first, n_sets):
    """Sums (N, J, M) of `n_sets` kernels, and of the first one's derivatives by cos^2 and spread.

    Parameters
    ----------
    coefficients : ndarray (N, S, L, n_sets)
        Of the even polynomials of each shell,
    degrees : ndarray (S,) of int
        of which the others are 0.
    cosines : ndarray (N, M)
    spread : ndarray (N, M)
        t of each measurement.
    first : ndarray (S + 1,) of int
        Where the measurements of each shell begin.
    n_sets : int
        J is 1 for one kernel; n_sets + 2 for more.
    """
    n_points, m = cosines.shape
    n_shells, n_degrees = coefficients.shape[1], coefficients.shape[2]
    slopes = n_sets > 1
    result = np.zeros((n_points, n_sets + 2 if slopes else 1, m), coefficients.dtype)
    # x P_l = a P_{l+2} + b P_l + c P_{l-2} with x = cos^2
    a, b, c = np.empty(n_degrees), np.empty(n_degrees), np.empty(n_degrees)
    for k in range(n_degrees):
        degree = 2.0 * k
        a[k] = (2 * degree + 1) * (2 * degree + 3) / ((degree + 1) * (degree + 2))
        b[k] = (2 * degree**2 + 2 * degree - 1) / ((2 * degree - 1) * (2 * degree + 3))
        c[k] = degree * (degree - 1) / ((2 * degree + 1) * (2 * degree - 1))
    sums = np.empty(n_sets)
    for n in range(n_points):
        for s in range(n_shells):
            row = coefficients[n, s]
            for i in range(first[s], first[s + 1]):
                x, t = cosines[n, i] ** 2, spread[n, i]
                before, now, slope_before, slope = 0.0, 1.0, 0.0, 0.0
                damping, ratio, growth = 1.0, np.exp(-6 * t), np.exp(-8 * t)
                by_square, by_spread = 0.0, 0.0
                sums[:] = 0
                for k in range(degrees[s]):
                    damped = damping * now
                    for j in range(n_sets):
                        sums[j] += row[k, j] * damped
                    if slopes:
                        by_square += row[k, 0] * damping * slope
                        by_spread -= row[k, 0] * damped * (2 * k * (2 * k + 1))
                        following = a[k] * ((x - b[k]) * slope + now - c[k] * slope_before)
                        slope_before, slope = slope, following
                    following = a[k] * ((x - b[k]) * now - c[k] * before)
                    before, now = now, following
                    damping *= ratio
                    ratio *= growth
                    if damping < 1e-9:
                        break
                for j in range(n_sets):
                    result[n, j, i] = sums[j]
                if slopes:
                    result[n, n_sets, i] = by_square
                    result[n, n_sets + 1, i] = by_spread
    return result


def even_legendre(x: np.ndarray, n: int) -> np.ndarray:
    """P_0, P_2 ... (..., n) at x (...)."""
    return np.polynomial.legendre.legvander(x, 2 * n - 2)[..., ::2]


def rotation_of(vectors: np.ndarray) -> np.ndarray:
    """Rotations (N, 3, 3) by the lengths of vectors (N, 3) about them."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    cross = np.zeros((len(vectors), 3, 3))
    cross[:, [2, 0, 1], [1, 2, 0]] = vectors
    cross[:, [1, 2, 0], [2, 0, 1]] = -vectors
    sine, versine = np.sinc(angle / np.pi), np.sinc(angle / (2 * np.pi)) ** 2 / 2
    return np.eye(3) + sine * cross + versine * (cross @ cross)


def vector_of(rotations: np.ndarray) -> np.ndarray:
    """Vectors (N, 3) of rotations; the inverse of :func:`rotation_of`."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotations).as_rotvec()


def log_haar(vectors: np.ndarray) -> np.ndarray:
    """Logarithms (N,) of the uniform density over rotations, in their vectors; -inf beyond pi."""
    angle = np.linalg.norm(vectors, axis=1)
    density = 2 * np.log(np.sinc(np.minimum(angle, 3.1) / (2 * np.pi))) - np.log(8 * np.pi**2)
    return np.where(angle < np.pi, density, -np.inf)
