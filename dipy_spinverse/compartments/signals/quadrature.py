"""Constants of the expansions of dispersed signals."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.polynomial import Legendre, Polynomial
from scipy.special import eval_legendre, lpmv, poch, roots_legendre

_N_AZIMUTHS = 24


@lru_cache
def legendre_moments(order):
    """Nodes (Q,) on (0, 1), weights times (2 l + 1) P_l (Q, L), and 2 l + 1 (L,)."""
    # Averages alone need fewer: to 1e-6 where b D is 60.
    x, w = roots_legendre(40 if order else 12)
    x, w = 0.5 * (x + 1), 0.5 * w
    l_even = np.arange(0, order + 1, 2)
    moments = w[:, None] * (2 * l_even + 1) * eval_legendre(l_even, x[:, None])
    return x, moments, 2.0 * l_even + 1


@lru_cache
def chebyshev_of_legendre(n):
    """(L, L): P_2l(x) as sums of T_k(2 x^2 - 1)."""
    nodes = np.cos((np.arange(n) + 0.5) * np.pi / n)
    legendre = eval_legendre(2 * np.arange(n), np.sqrt((nodes + 1) / 2)[:, None])
    chebyshev = np.cos(np.arange(n) * np.arccos(nodes)[:, None])
    return np.linalg.solve(chebyshev, legendre).T


@lru_cache
def chebyshev_nodes(n):
    """cos^2 (n,) at the nodes of T_n(2 cos^2 - 1), and (n, n) from values there to a series."""
    angle = (np.arange(n) + 0.5) * np.pi / n
    matrix = 2 / n * np.cos(np.arange(n) * angle[:, None])
    matrix[:, 0] /= 2
    return 0.5 * (np.cos(angle) + 1), matrix


@lru_cache
def bingham_grid():
    """Cosines to the axis (Q,), of the azimuth from the fan (Q,), and weights (Q,)."""
    x, w = roots_legendre(40)
    azimuth = (np.arange(_N_AZIMUTHS) + 0.5) * 0.5 * np.pi / _N_AZIMUTHS
    z, phi = (each.ravel() for each in np.meshgrid(0.5 * (x + 1), azimuth, indexing="ij"))
    weights = np.repeat(0.5 * w / _N_AZIMUTHS, _N_AZIMUTHS)
    return z, np.cos(phi), weights


@lru_cache
def octant():
    """Squares (Q, 3) of unit vectors all over an octant, and weights (Q,) of an average."""
    x, w = roots_legendre(12)
    azimuth = 0.25 * np.pi * (x + 1)
    z, phi = (each.ravel() for each in np.meshgrid(0.5 * (x + 1), azimuth, indexing="ij"))
    across = 1 - z**2
    squares = np.stack([across * np.cos(phi) ** 2, across * np.sin(phi) ** 2, z**2], axis=1)
    return squares, 0.25 * np.outer(w, w).ravel()


@lru_cache
def bingham_harmonics(order):
    """What to integrate the distribution with (Q, all L), and polynomials (L, J) of each even m.

    The function of degree l is P_l^m(z) / (1 - z^2)^(m/2) Re (x + iy)^m; its polynomial in z^2 is
    scaled so that sum_l kernel_l integral_l function_l is the convolution.
    """
    z, cosine, weights = bingham_grid()
    azimuth = np.arccos(np.clip(cosine, -1, 1))
    integrands, polynomials = [], []
    for m in range(0, order + 1, 2):
        degrees = range(m, order + 1, 2)
        powers = []
        for degree in degrees:
            integrands.append(lpmv(m, degree, z) * np.cos(m * azimuth) * weights)
            derivative = Legendre.basis(degree).deriv(m).convert(kind=Polynomial).coef[::2]
            factor = (2.0 if m else 1.0) / poch(degree - m + 1, 2 * m)
            powers.append(np.pad(factor * derivative, (0, (order - degree) // 2)))
        polynomials.append(np.array(powers))
    return np.transpose(integrands), polynomials
