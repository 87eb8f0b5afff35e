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

# Of a coefficient that dispersion leaves.
_NOTHING = 1e-9


@njit(cache=True, nogil=True, fastmath=True)
def add_dispersed(kernels, weight, squares, spread, sums, by_square, by_spread, work):
    """Add dispersed kernels (J, L), times a weight, to sums (J, M).

    Parameters
    ----------
    kernels : ndarray (J, L)
        Coefficients of the even polynomials.
    weight : float
    squares : ndarray (M,)
        Squared cosines between gradient and axis.
    spread : ndarray (M,)
        t of each measurement.
    sums : ndarray (J, >= M)
    by_square, by_spread : ndarray (>= M,)
        Become the first one's derivatives, where there is more than one.
    work : ndarray (8, >= M)
    """
    n, (n_sets, n_degrees) = len(squares), kernels.shape
    before, now, slope_before, slope = work[0], work[1], work[2], work[3]
    damping, ratio, growth, damped = work[4], work[5], work[6], work[7]
    for i in range(n):
        before[i], now[i], slope_before[i], slope[i], damping[i] = 0.0, 1.0, 0.0, 0.0, weight
        by_square[i], by_spread[i] = 0.0, 0.0
        once = np.exp(-2 * spread[i])
        ratio[i], growth[i] = once**3, once**4
    for k in range(n_degrees):
        largest = 0.0
        for i in range(n):
            damped[i] = damping[i] * now[i]
            largest = max(largest, damping[i])
        if largest < _NOTHING:
            break
        for j in range(n_sets):
            coefficient = kernels[j, k]
            for i in range(n):
                sums[j, i] += coefficient * damped[i]
        # x P_l = a P_{l+2} + b P_l + c P_{l-2} with x = cos^2
        degree = 2.0 * k
        a = (2 * degree + 1) * (2 * degree + 3) / ((degree + 1) * (degree + 2))
        b = (2 * degree**2 + 2 * degree - 1) / ((2 * degree - 1) * (2 * degree + 3))
        c = degree * (degree - 1) / ((2 * degree + 1) * (2 * degree - 1))
        if n_sets > 1:
            coefficient, eigenvalue = kernels[0, k], degree * (degree + 1)
            for i in range(n):
                by_square[i] += coefficient * damping[i] * slope[i]
                by_spread[i] -= coefficient * damped[i] * eigenvalue
                following = a * ((squares[i] - b) * slope[i] + now[i] - c * slope_before[i])
                slope_before[i], slope[i] = slope[i], following
        for i in range(n):
            following = a * ((squares[i] - b) * now[i] - c * before[i])
            before[i], now[i] = now[i], following
            damping[i] *= ratio[i]
            ratio[i] *= growth[i]


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
