"""Signals of kernels with one axis, or with axes dispersed about one.

A kernel K(cos), as exp(-across - excess cos^2), convolved with a distribution of axes on a sphere
is a product of expansion coefficients (Funk-Hecke): in Legendre polynomials for Watson's
distribution [1]_, which is symmetric about its axis, in spherical harmonics for Bingham's [2]_.

References
----------
.. [1] Zhang et al., NeuroImage 61 (2012) 1000, https://doi.org/10.1016/j.neuroimage.2012.03.072
.. [2] Tariq et al., NeuroImage 133 (2016) 207, https://doi.org/10.1016/j.neuroimage.2016.01.046
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.compartments.signals.encoding import Encoding
from dipy_spinverse.compartments.signals.kernels import CustomSignal, Kernel
from dipy_spinverse.compartments.signals.quadrature import (
    bingham_grid,
    bingham_harmonics,
    chebyshev_nodes,
    chebyshev_of_legendre,
    legendre_moments,
    octant,
)
from dipy_spinverse.compartments.signals.series import evaluate_chebyshev

MAX_ORDER = 24
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


def isotropic(encoding: Encoding, kernel: Kernel | CustomSignal) -> Tensor:
    """Signals (V, M) of a kernel (V, S) averaged over all directions of its axis."""
    return encoding.spread(kernel_moments(kernel, 0, encoding.b.dtype)[..., 0])


def kernel_moments(kernel: Kernel | CustomSignal, order: int, dtype: torch.dtype) -> Tensor:
    """(2 l + 1) int_0^1 K(x) P_l(x) dx for even l up to `order`, (V, S, L)."""
    nodes, moments, _ = _tensors(legendre_moments(order), dtype)
    return kernel.at(nodes**2) @ moments


def watson_moments(odi: Tensor, order: int) -> Tensor:
    """Legendre coefficients (V, L) of Watson's distribution for even l up to `order`."""
    nodes, moments, degrees = _tensors(legendre_moments(order), odi.dtype)
    weight = torch.exp(concentration(odi)[:, None] * (nodes**2 - 1))
    coefficients = (weight @ moments) / degrees
    return coefficients / coefficients[:, :1]


def watson_order(odi: Tensor) -> Tensor:
    """<P_2> (V, 1) of Watson's distribution."""
    return watson_moments(odi, 2)[:, 1:]


def legendre_series(coefficients: Tensor) -> Tensor:
    """Chebyshev series (V, L, S) in 2 cos^2 - 1 from coefficients (V, S, L) of even P_l(cos).

    As many Chebyshev polynomials are their stable form.
    """
    (matrix,) = _tensors([chebyshev_of_legendre(coefficients.shape[2])], coefficients.dtype)
    return matrix.T @ coefficients.mT


def kernel_series(kernel: Kernel, order: int) -> Tensor:
    """Chebyshev series (V, L, S) in 2 cos^2 - 1 of a kernel (V, S) that is not dispersed."""
    square, matrix = _tensors(chebyshev_nodes(order // 2 + 1), kernel.excess.dtype)
    return (kernel.at(square) @ matrix).mT


def zonal_signals(encoding: Encoding, series: Tensor, axis: Tensor) -> Tensor:
    """Signals (V, M) of Chebyshev series (V, L, S) of each shell about an axis (V, 3)."""
    t = 2 * (axis @ encoding.directions.T) ** 2 - 1
    return evaluate_chebyshev(series.expand(len(t), -1, -1), t, encoding.shell)


def bingham_tensor(
    encoding: Encoding,
    kernel: Kernel,
    odi: Tensor,
    fanning: Tensor,
    axis: Tensor,
    fan_axis: Tensor,
) -> Tensor:
    """Signals (V, M) of kernels whose tensor is averaged over Bingham's distribution.

    Parameters
    ----------
    encoding : Encoding
    kernel : Kernel
    odi, fanning, axis, fan_axis : Tensor
        As in `bingham_signals`.
    """
    z, cosine, area = _tensors(bingham_grid(), odi.dtype)
    fan, third = (1 - z**2) * cosine**2, (1 - z**2) * (1 - cosine**2)
    squares = torch.stack([fan, third, z**2], dim=1)
    tensor = _bingham_moments(odi, fanning, squares * area[:, None])  # (V, 3) in its own frame
    frame = torch.stack([fan_axis, torch.linalg.cross(axis, fan_axis), axis], dim=1)
    square = (tensor[:, None] @ (frame @ encoding.directions.T) ** 2)[:, 0]
    across, excess = encoding.spread(kernel.across), encoding.spread(kernel.excess)
    directed = torch.exp(-across - excess * square)
    if encoding.isotropic is None:
        return directed
    corners, weights = _tensors(octant(), odi.dtype)
    values = torch.exp(-kernel.excess[..., None] * (tensor @ corners.T)[:, None])
    average = torch.exp(-kernel.across) * (values @ weights)
    return torch.where(encoding.isotropic, encoding.spread(average), directed)


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
    total = torch.zeros_like(x)
    integrands, all_powers = bingham_harmonics(order)
    sizes = [len(powers) for powers in all_powers]
    weights = _bingham_moments(odi, fanning, *_tensors([integrands], x.dtype)).split(sizes, dim=1)
    for k, powers in enumerate(_tensors(all_powers, x.dtype)):
        c = ((coefficients[..., k:] * weights[k][:, None]) @ powers).movedim(2, 0)
        c = encoding.spread(c)
        polynomial = c[-1]
        for j in range(len(c) - 2, -1, -1):
            polynomial = torch.addcmul(c[j], square, polynomial)
        total = total + real * polynomial
        real, imaginary = (
            real * twice_real - imaginary * twice_imaginary,
            real * twice_imaginary + imaginary * twice_real,
        )
    return total


def _bingham_moments(odi, fanning, moments):
    """Expansion (V, L) of the distribution in the functions whose integrals are `moments`."""
    z, cosine, area = _tensors(bingham_grid(), odi.dtype)
    kappa = concentration(odi)[:, None]
    exponent = kappa * (z**2 - 1) + kappa * fanning[:, None] * (1 - z**2) * cosine**2
    density = torch.exp(exponent - exponent.amax(dim=1, keepdim=True).detach())
    return (density @ moments) / (density @ area)[:, None]


def legendre_order(largest_excess: float | None) -> int:
    """Even order up to which a kernel with this excess is expanded; the most where not known."""
    if largest_excess is None:
        return MAX_ORDER
    nodes, moments, _ = _tensors(legendre_moments(MAX_ORDER), torch.float64)
    values = torch.exp(-abs(largest_excess) * nodes**2)
    size = (values @ moments).abs().numpy()
    needed = np.flatnonzero(size > _TRUNCATION * size[0])
    return 2 * int(needed.max())


def _tensors(arrays, dtype):
    # Made anew where they are used: inside of torch.func a tensor belongs to a transformation.
    return tuple(torch.tensor(each, dtype=dtype) for each in arrays)
