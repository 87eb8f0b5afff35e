"""Dispersed axes, as sums over Legendre polynomials, and rotations.

A kernel K(cos) = sum_l k_l P_l(cos) of the angle between gradient and axis, averaged over axes
that have diffused over the sphere by t from their mean, is [1]_

    sum_l k_l exp(-l (l + 1) t) P_l(cos of the angle to the mean)

Anisotropic dispersion has a t that depends on the direction of the gradient, t = g^T T g: the
first order for narrow distributions, and exact where T is a multiple of the identity.

References
----------
.. [1] Perrin, Ann. Sci. Ec. Norm. Super. 45 (1928), https://doi.org/10.24033/asens.782
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy.spatial.transform import Rotation

# Coefficients that dispersion reduces by a larger factor are neglected.
_NEGLIGIBLE = 1e-9


@njit(cache=True, nogil=True, fastmath=True)
def add_dispersed(kernels, weight, squares, times, sums, by_square, by_time, work):
    """Add dispersed kernels, times a weight, to sums (J, >= M).

    `kernels` (J, L) are coefficients of the even polynomials, `squares` (M,) the squared cosines
    between gradient and axis, `times` (M,) the t of each measurement. Derivatives of the first of
    several kernels are written to `by_square` and `by_time` (>= M,); `work` is (8, >= M).
    """
    n, (n_sets, n_degrees) = len(squares), kernels.shape
    previous, current, previous_slope, slope = work[0], work[1], work[2], work[3]
    damping, ratio, growth, damped = work[4], work[5], work[6], work[7]
    for i in range(n):
        previous[i], current[i], damping[i] = 0.0, 1.0, weight
        previous_slope[i], slope[i] = 0.0, 0.0
        by_square[i], by_time[i] = 0.0, 0.0
        decay = np.exp(-2 * times[i])
        ratio[i], growth[i] = decay**3, decay**4
    for k in range(n_degrees):
        largest = 0.0
        for i in range(n):
            damped[i] = damping[i] * current[i]
            largest = max(largest, damping[i])
        if largest < _NEGLIGIBLE:
            break
        for j in range(n_sets):
            coefficient = kernels[j, k]
            for i in range(n):
                sums[j, i] += coefficient * damped[i]
        # Recurrence of the even polynomials: P_{l+2} = a ((x - b) P_l - c P_{l-2}), x = cos^2.
        degree = 2.0 * k
        a = (2 * degree + 1) * (2 * degree + 3) / ((degree + 1) * (degree + 2))
        b = (2 * degree**2 + 2 * degree - 1) / ((2 * degree - 1) * (2 * degree + 3))
        c = degree * (degree - 1) / ((2 * degree + 1) * (2 * degree - 1))
        if n_sets > 1:
            coefficient, eigenvalue = kernels[0, k], degree * (degree + 1)
            for i in range(n):
                by_square[i] += coefficient * damping[i] * slope[i]
                by_time[i] -= coefficient * damped[i] * eigenvalue
                next_slope = (squares[i] - b) * slope[i] + current[i] - c * previous_slope[i]
                previous_slope[i], slope[i] = slope[i], a * next_slope
        for i in range(n):
            next_value = a * ((squares[i] - b) * current[i] - c * previous[i])
            previous[i], current[i] = current[i], next_value
            damping[i] *= ratio[i]
            ratio[i] *= growth[i]


def even_legendre(x: np.ndarray, n: int) -> np.ndarray:
    """P_0, P_2 ... (..., n) at x (...)."""
    return np.polynomial.legendre.legvander(x, 2 * n - 2)[..., ::2]


def rotation_of(vectors: np.ndarray) -> np.ndarray:
    """Rotation matrices (N, 3, 3) of rotation vectors (N, 3)."""
    return Rotation.from_rotvec(vectors).as_matrix()


def vector_of(rotations: np.ndarray) -> np.ndarray:
    """Rotation vectors (N, 3) of matrices; the inverse of :func:`rotation_of`."""
    return Rotation.from_matrix(rotations).as_rotvec()


def log_haar(vectors: np.ndarray) -> np.ndarray:
    """Log uniform (Haar) density (N,) over rotations, in their vectors; -inf beyond pi."""
    angle = np.linalg.norm(vectors, axis=1)
    density = 2 * np.log(np.sinc(np.minimum(angle, 3.1) / (2 * np.pi))) - np.log(8 * np.pi**2)
    return np.where(angle < np.pi, density, -np.inf)
