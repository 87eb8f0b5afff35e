"""Signals of kernels with one axis, or with axes dispersed about one.

A kernel K(cos), as exp(-perpendicular - difference cos^2), convolved with a distribution of axes
on a sphere is a product of expansion coefficients (Funk-Hecke): in Legendre polynomials for
Watson's distribution [1]_, which is symmetric about its axis, in spherical harmonics for Bingham's
[2]_.

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

from dipy_spinverse.compartments.signals.chebyshev import evaluate_chebyshev
from dipy_spinverse.compartments.signals.encoding import Encoding
from dipy_spinverse.compartments.signals.harmonics import evaluate_harmonics
from dipy_spinverse.compartments.signals.kernels import CustomSignal, Kernel

# Truncation error of the signals of sticks with Watson's odi = 0.03: 2e-6 at b D = 30 and 2e-5 at
# 60; it falls fast with the odi, and is 2e-4 and 2e-3 at the smallest one, 0.01.
MAX_ORDER = 24
# Legendre coefficients below this share of the signal are left out: below 0.1 % of usual noise.
_TRUNCATION = 2e-6
_N_AZIMUTHS = 24  # in a quadrant of Bingham's distribution
# Of custom kernels without dispersion: the coefficients of exp(-b D cos^2) beyond it are
# exp(-b D / 2) I_k(b D / 2), k >= 64; below 2e-6 up to b D = 300.
_CUSTOM_ORDER = 126


def concentration(odi: Tensor) -> Tensor:
    """Watson's kappa of an orientation dispersion index: odi = 2/pi arctan(1/kappa)."""
    angle = 0.5 * torch.pi * odi
    return torch.cos(angle) / torch.sin(angle)


def directional(encoding: Encoding, kernel: Kernel | CustomSignal, axis: Tensor) -> Tensor:
    """Signals (V, M) of a kernel (V, S) whose axis (V, 3) is the same everywhere in the voxel.

    Custom kernels, whose arguments cos^2 are the same in all voxels, are interpolated.
    """
    if isinstance(kernel, CustomSignal):
        series = kernel_series(kernel, _CUSTOM_ORDER, encoding.b.dtype)
        return zonal_signals(encoding, series, axis)
    return _attenuation(encoding, kernel, (axis @ encoding.directions.T) ** 2)


def _attenuation(encoding, kernel, square):
    """Signals (V, M) at cos^2 (V, M)."""
    perpendicular = encoding.spread(kernel.perpendicular)
    return torch.exp(-perpendicular - encoding.spread(kernel.difference) * square)


def isotropic(encoding: Encoding, kernel: Kernel | CustomSignal) -> Tensor:
    """Signals (V, M) of a kernel (V, S) averaged over all directions of its axis."""
    return encoding.spread(kernel_moments(kernel, 0, encoding.b.dtype)[..., 0])


def kernel_moments(kernel: Kernel | CustomSignal, order: int, dtype: torch.dtype) -> Tensor:
    """(2 l + 1) int_0^1 K(x) P_l(x) dx for even l up to `order`, (V, S, L)."""
    nodes, moments, _ = _tensors(_legendre_moments, order, dtype=dtype)
    return kernel.at(nodes**2) @ moments


def watson_moments(odi: Tensor, order: int) -> Tensor:
    """Legendre coefficients (V, L) of Watson's distribution for even l up to `order`."""
    nodes, moments, degrees = _tensors(_legendre_moments, order, dtype=odi.dtype)
    weight = torch.exp(concentration(odi)[:, None] * (nodes**2 - 1))
    coefficients = (weight @ moments) / degrees
    return coefficients / coefficients[:, :1]


def legendre_series(coefficients: Tensor) -> Tensor:
    """Chebyshev series (V, L, S) in 2 cos^2 - 1 from coefficients (V, S, L) of even P_l(cos)."""
    (matrix,) = _tensors(_chebyshev_of_legendre, coefficients.shape[2], dtype=coefficients.dtype)
    return matrix.T @ coefficients.mT


def kernel_series(kernel: Kernel | CustomSignal, order: int, dtype: torch.dtype) -> Tensor:
    """Chebyshev series (V, L, S) in 2 cos^2 - 1 of a kernel (V, S) that is not dispersed."""
    square, matrix = _tensors(_chebyshev_nodes, order // 2 + 1, dtype=dtype)
    return (kernel.at(square) @ matrix).mT


def zonal_signals(encoding: Encoding, series: Tensor, axis: Tensor) -> Tensor:
    """Signals (V, M) of Chebyshev series (V, L, S) of each shell about an axis (V, 3)."""
    t = 2 * (axis @ encoding.directions.T) ** 2 - 1
    return evaluate_chebyshev(series.expand(len(t), -1, -1), t, encoding.shell)


def legendre_order(largest_difference: float | None) -> int:
    """Even order up to which a kernel with this exponent is expanded; MAX_ORDER if unknown."""
    if largest_difference is None:
        return MAX_ORDER
    nodes, moments, _ = _legendre_moments(MAX_ORDER)
    size = np.abs(np.exp(-abs(largest_difference) * nodes**2) @ moments)
    return 2 * int(np.flatnonzero(size > _TRUNCATION * size[0]).max())


def bingham_tensor(
    encoding: Encoding,
    kernel: Kernel,
    odi: Tensor,
    fanning: Tensor,
    axis: Tensor,
    fan_axis: Tensor,
) -> Tensor:
    """Signals (V, M) of kernels whose tensor is averaged over Bingham's distribution."""
    z, cosine, area = _tensors(_bingham_grid, dtype=odi.dtype)
    ring = 1 - z**2
    squares = torch.stack([ring * cosine**2, ring * (1 - cosine**2), z**2], dim=1)
    tensor = _bingham_moments(odi, fanning, squares * area[:, None])  # (V, 3), diagonal
    frame = torch.stack([fan_axis, torch.linalg.cross(axis, fan_axis), axis], dim=1)
    square = (tensor[:, None] @ (frame @ encoding.directions.T) ** 2)[:, 0]
    directed = _attenuation(encoding, kernel, square)
    if encoding.isotropic is None:
        return directed
    squares, weights = _tensors(_octant, dtype=odi.dtype)
    values = torch.exp(-kernel.difference[..., None] * (tensor @ squares.T)[:, None])
    average = torch.exp(-kernel.perpendicular) * (values @ weights)
    return torch.where(encoding.isotropic, encoding.spread(average), directed)


def bingham_signals(
    encoding: Encoding,
    coefficients: Tensor,
    odi: Tensor,
    fanning: Tensor,
    axis: Tensor,
    fan_axis: Tensor,
) -> Tensor:
    """Signals (V, M) with axes distributed as exp(kappa (n axis)^2 + beta (n fan_axis)^2).

    `coefficients` (V, S, L) are those of the kernel from `kernel_moments`; `fanning` is
    beta / kappa, from 0 (Watson) to 1 (a fan without preferred direction in its plane).
    """
    order = 2 * (coefficients.shape[2] - 1)
    x, y, z = (
        direction @ encoding.directions.T
        for direction in (fan_axis, torch.linalg.cross(axis, fan_axis), axis)
    )
    integrands, *all_powers = _tensors(_bingham_harmonics, order, dtype=x.dtype)
    sizes = [len(powers) for powers in all_powers]
    weights = _bingham_moments(odi, fanning, integrands).split(sizes, dim=1)
    polynomials = [
        (coefficients[..., k:] * weights[k][:, None]) @ powers
        for k, powers in enumerate(all_powers)
    ]
    return evaluate_harmonics(encoding, torch.cat(polynomials, dim=2), x, y, z)


def _bingham_moments(odi, fanning, moments):
    """Expansion (V, L) of the distribution in the functions whose integrals are `moments`."""
    z, cosine, area = _tensors(_bingham_grid, dtype=odi.dtype)
    kappa = concentration(odi)[:, None]
    exponent = kappa * (z**2 - 1) + kappa * fanning[:, None] * (1 - z**2) * cosine**2
    density = torch.exp(exponent - exponent.amax(dim=1, keepdim=True).detach())
    return (density @ moments) / (density @ area)[:, None]


@lru_cache
def _tensors(constants, *arguments, dtype):
    """Arrays of one of the following functions, as tensors."""
    return tuple(torch.tensor(array, dtype=dtype) for array in constants(*arguments))


# Constants of the expansions.


@lru_cache
def _legendre_moments(order):
    """Nodes (Q,) on (0, 1), weights times (2 l + 1) P_l (Q, L), and 2 l + 1 (L,)."""
    # Averages alone need fewer nodes: these are exact to 2e-8 for sticks up to b D = 60.
    x, w = roots_legendre(40 if order else 12)
    x, w = 0.5 * (x + 1), 0.5 * w
    l_even = np.arange(0, order + 1, 2)
    moments = w[:, None] * (2 * l_even + 1) * eval_legendre(l_even, x[:, None])
    return x, moments, 2.0 * l_even + 1


def _chebyshev_of_legendre(n):
    """P_2l(x) as sums of T_k(2 x^2 - 1), a matrix (L, L)."""
    nodes = np.cos((np.arange(n) + 0.5) * np.pi / n)
    legendre = eval_legendre(2 * np.arange(n), np.sqrt((nodes + 1) / 2)[:, None])
    chebyshev = np.cos(np.arange(n) * np.arccos(nodes)[:, None])
    return (np.linalg.solve(chebyshev, legendre).T,)


def _chebyshev_nodes(n):
    """cos^2 (n,) at the nodes of T_n(2 cos^2 - 1), and (n, n) from values there to a series."""
    angle = (np.arange(n) + 0.5) * np.pi / n
    matrix = 2 / n * np.cos(np.arange(n) * angle[:, None])
    matrix[:, 0] /= 2
    return 0.5 * (np.cos(angle) + 1), matrix


@lru_cache
def _bingham_grid():
    """Cosines to the axis (Q,), of the azimuth from the fan (Q,), and weights (Q,)."""
    x, w = roots_legendre(40)
    azimuth = (np.arange(_N_AZIMUTHS) + 0.5) * 0.5 * np.pi / _N_AZIMUTHS
    z, phi = (x.ravel() for x in np.meshgrid(0.5 * (x + 1), azimuth, indexing="ij"))
    weights = np.repeat(0.5 * w / _N_AZIMUTHS, _N_AZIMUTHS)
    return z, np.cos(phi), weights


def _octant():
    """Squares (Q, 3) of unit vectors all over an octant, and weights (Q,) of an average."""
    x, w = roots_legendre(12)
    azimuth = 0.25 * np.pi * (x + 1)
    z, phi = (x.ravel() for x in np.meshgrid(0.5 * (x + 1), azimuth, indexing="ij"))
    ring = 1 - z**2
    squares = np.stack([ring * np.cos(phi) ** 2, ring * np.sin(phi) ** 2, z**2], axis=1)
    return squares, 0.25 * np.outer(w, w).ravel()


def _bingham_harmonics(order):
    """Functions to integrate over the distribution (Q, all L), then polynomials (L, J) of even m.

    The function of degree l is P_l^m(z) / (1 - z^2)^(m/2) Re (x + iy)^m; its polynomial in z^2 is
    scaled so that sum_l kernel_l integral_l function_l is the convolution.
    """
    z, cosine, weights = _bingham_grid()
    azimuth = np.arccos(np.clip(cosine, -1, 1))
    integrands, polynomials = [], []
    for m in range(0, order + 1, 2):
        powers = []
        for degree in range(m, order + 1, 2):
            integrands.append(lpmv(m, degree, z) * np.cos(m * azimuth) * weights)
            derivative = Legendre.basis(degree).deriv(m).convert(kind=Polynomial).coef[::2]
            factor = (2.0 if m else 1.0) / poch(degree - m + 1, 2 * m)
            powers.append(np.pad(factor * derivative, (0, (order - degree) // 2)))
        polynomials.append(np.array(powers))
    return np.transpose(integrands), *polynomials
