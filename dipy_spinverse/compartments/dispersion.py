"""Signals of kernels with one axis, or with axes dispersed about one.

A kernel K(cos) = exp(-across - excess cos^2) convolved with a distribution of axes on the sphere
is a product of expansion coefficients (Funk-Hecke): in Legendre polynomials for Watson's
distribution [1]_, which is symmetric about its axis, in spherical harmonics for Bingham's [2]_.

References
----------
.. [1] Zhang et al., NeuroImage 61 (2012) 1000, https://doi.org/10.1016/j.neuroimage.2012.03.072
.. [2] Tariq et al., NeuroImage 133 (2016) 207, https://doi.org/10.1016/j.neuroimage.2016.01.046
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import Legendre, Polynomial
from scipy.special import eval_legendre, lpmv, poch, roots_legendre
from torch import Tensor

from dipy_spinverse.compartments.encoding import Encoding
from dipy_spinverse.compartments.kernels import Kernel
from dipy_spinverse.compartments.series import chebyshev_series

_MAX_ORDER = 24
# Legendre coefficients below this share of the signal are left out.
_TRUNCATION = 2e-6


def concentration(odi: Tensor) -> Tensor:
    """Watson's kappa of an orientation dispersion index: odi = 2/pi arctan(1/kappa)."""
    angle = 0.5 * torch.pi * odi
    return torch.cos(angle) / torch.sin(angle)


def directional(encoding: Encoding, kernel: Kernel, axis: Tensor) -> Tensor:
    """Signals (V, M) of a kernel (V, S) whose axis (V, 3) is the same everywhere in the voxel."""
    square = (axis @ encoding.directions.T) ** 2
    across, excess = encoding.spread(kernel.across), encoding.spread(kernel.excess)
    return torch.exp(-across - excess * square)


def isotropic(encoding: Encoding, kernel: Kernel) -> Tensor:
    """Signals (V, M) of a kernel (V, S) averaged over all directions of its axis."""
    return encoding.spread(kernel_moments(kernel, 0)[..., 0])


def kernel_moments(kernel: Kernel, order: int) -> Tensor:
    """(2 l + 1) int_0^1 K(x) P_l(x) dx for even l up to `order`, (V, S, L)."""
    nodes, moments, _ = _legendre(order, kernel.excess.dtype)
    values = torch.exp(-kernel.across[..., None] - kernel.excess[..., None] * nodes**2)
    return values @ moments


def watson_moments(odi: Tensor, order: int) -> Tensor:
    """Legendre coefficients (V, L) of Watson's distribution for even l up to `order`."""
    nodes, moments, degrees = _legendre(order, odi.dtype)
    weight = torch.exp(concentration(odi)[:, None] * (nodes**2 - 1))
    coefficients = (weight @ moments) / degrees
    return coefficients / coefficients[:, :1]


def watson_signals(encoding: Encoding, coefficients: Tensor, axis: Tensor) -> Tensor:
    """sum_l c_l P_l(cos) for each measurement.

    Parameters
    ----------
    encoding : Encoding
    coefficients : Tensor (V, S, L)
        Of even l.
    axis : Tensor (V, 3)

    Returns
    -------
    Tensor (V, M)
    """
    t = 2 * (axis @ encoding.directions.T) ** 2 - 1
    # As many Chebyshev polynomials of 2 cos^2 - 1 are their stable form.
    series = _to_chebyshev(coefficients.shape[2], t.dtype).T @ coefficients.mT
    return chebyshev_series(series, t, encoding.shell)


def bingham_signals(
    encoding: Encoding,
    coefficients: Tensor,
    odi: Tensor,
    fanning: Tensor,
    axis: Tensor,
    fan_axis: Tensor,
) -> Tensor:
    """Signals of kernels with axes distributed as exp(kappa (n axis)^2 + beta (n fan_axis)^2).

    Parameters
    ----------
    encoding : Encoding
    coefficients : Tensor (V, S, L)
        Of the kernel for even l, from `kernel_moments`.
    odi : Tensor (V,)
        2/pi arctan(1/kappa): dispersion out of the plane of the fan.
    fanning : Tensor (V,)
        beta / kappa, from 0 (Watson) to 1 (a fan without preferred direction in its plane).
    axis, fan_axis : Tensor (V, 3)
        Orthonormal; the fan spreads from one to the other.

    Returns
    -------
    Tensor (V, M)
    """
    order = 2 * (coefficients.shape[2] - 1)
    x, y, z = (
        each @ encoding.directions.T
        for each in (fan_axis, torch.linalg.cross(axis, fan_axis), axis)
    )
    square = z**2
    # Real and imaginary parts of (x + iy)^m.
    real, imaginary = torch.ones_like(x), torch.zeros_like(x)
    twice_real, twice_imaginary = x**2 - y**2, 2 * x * y
    total = 0
    for m, moments, powers in _harmonics(order, x.dtype):
        weights = _bingham_moments(odi, fanning, moments)
        c = ((coefficients[..., m // 2 :] * weights[:, None]) @ powers).movedim(2, 0)
        c = encoding.spread(c)
        polynomial = c[-1]
        for lower in c[:-1].flip(0):
            polynomial = torch.addcmul(lower, square, polynomial)
        total = total + real * polynomial
        real, imaginary = (
            real * twice_real - imaginary * twice_imaginary,
            real * twice_imaginary + imaginary * twice_real,
        )
    return total


def _bingham_moments(odi, fanning, moments):
    """Expansion (V, L) of the distribution in the functions whose integrals are `moments`."""
    z, cosine, _ = _bingham_grid(odi.dtype)
    kappa = concentration(odi)[:, None]
    exponent = kappa * (z**2 - 1) + kappa * fanning[:, None] * (1 - z**2) * cosine**2
    density = torch.exp(exponent - exponent.amax(dim=1, keepdim=True).detach())
    normal = density @ _bingham_grid(odi.dtype)[2]
    return (density @ moments) / normal[:, None]


def legendre_order(largest_excess: float) -> int:
    """Even order up to which a kernel with this excess is expanded."""
    nodes, moments, _ = _legendre(_MAX_ORDER, torch.float64)
    values = torch.exp(-abs(largest_excess) * nodes**2)
    size = (values @ moments).abs().numpy()
    needed = np.flatnonzero(size > _TRUNCATION * size[0])
    return 2 * int(needed.max())


@lru_cache
def _legendre(order, dtype):
    """Nodes (Q,) on (0, 1), weights times (2 l + 1) P_l (Q, L), and 2 l + 1 (L,)."""
    x, w = roots_legendre(40)
    x, w = 0.5 * (x + 1), 0.5 * w
    l_even = np.arange(0, order + 1, 2)
    moments = w[:, None] * (2 * l_even + 1) * eval_legendre(l_even, x[:, None])
    return tuple(torch.tensor(each, dtype=dtype) for each in (x, moments, 2.0 * l_even + 1))


@lru_cache
def _to_chebyshev(n, dtype):
    """(L, L): P_2l(x) as sums of T_k(2 x^2 - 1)."""
    nodes = np.cos((np.arange(n) + 0.5) * np.pi / n)
    legendre = eval_legendre(2 * np.arange(n), np.sqrt((nodes + 1) / 2)[:, None])
    chebyshev = np.cos(np.arange(n) * np.arccos(nodes)[:, None])
    return torch.tensor(np.linalg.solve(chebyshev, legendre).T, dtype=dtype)


_N_AZIMUTHS = 24


@lru_cache
def _bingham_grid(dtype):
    """Cosines to the axis (Q,), of the azimuth from the fan (Q,), and weights (Q,)."""
    x, w = roots_legendre(40)
    azimuth = (np.arange(_N_AZIMUTHS) + 0.5) * 0.5 * np.pi / _N_AZIMUTHS
    z, phi = (each.ravel() for each in np.meshgrid(0.5 * (x + 1), azimuth, indexing="ij"))
    weights = np.repeat(0.5 * w / _N_AZIMUTHS, _N_AZIMUTHS)
    return tuple(torch.tensor(each, dtype=dtype) for each in (z, np.cos(phi), weights))


@lru_cache
def _harmonics(order, dtype):
    """For each even m: m, what to integrate the distribution with (Q, L), and polynomials (L, J).

    The function of degree l is P_l^m(z) / (1 - z^2)^(m/2) Re (x + iy)^m; its polynomial in z^2 is
    scaled so that sum_l kernel_l integral_l function_l is the convolution.
    """
    z, cosine, weights = (each.numpy().astype(float) for each in _bingham_grid(torch.float64))
    azimuth = np.arccos(np.clip(cosine, -1, 1))
    result = []
    for m in range(0, order + 1, 2):
        degrees = range(m, order + 1, 2)
        integrand, powers = [], []
        for degree in degrees:
            integrand.append(lpmv(m, degree, z) * np.cos(m * azimuth) * weights)
            derivative = Legendre.basis(degree).deriv(m).convert(kind=Polynomial).coef[::2]
            factor = (2.0 if m else 1.0) / poch(degree - m + 1, 2 * m)
            powers.append(np.pad(factor * derivative, (0, (order - degree) // 2)))
        tensors = (
            torch.tensor(np.array(e), dtype=dtype) for e in (np.transpose(integrand), powers)
        )
        result.append((m, *tensors))
    return result
