"""Sums of spherical harmonics with coefficients of each shell, evaluated for each measurement.

As `chebyshev`, of functions that also depend on the azimuth: the innermost loop of Bingham's
distribution, compiled, and differentiable in torch.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from dipy_spinverse.compartments.signals.encoding import Encoding


def evaluate_harmonics(
    encoding: Encoding, coefficients: Tensor, x: Tensor, y: Tensor, z: Tensor
) -> Tensor:
    """sum_kj c_kj Re (x + iy)^2k z^2j (V, M) at directions of coordinates (V, M).

    Coefficients (V, S, T) have k = 0 with j = 0 to L - 1, then k = 1 with j = 0 to L - 2, and on.
    """
    return _Harmonics.apply(encoding, coefficients, x, y, z)


class _Harmonics(torch.autograd.Function):
    @staticmethod
    def forward(context, encoding, *tensors):
        context.encoding = encoding
        context.save_for_backward(*tensors)
        arrays = (tensor.contiguous().numpy() for tensor in tensors)
        size = _n_degrees(tensors[0].shape[2])
        return torch.from_numpy(_harmonic_sums(*arrays, size, *encoding.order_of_shells))

    @staticmethod
    def backward(context, gradient):
        tensors = [tensor.detach().requires_grad_() for tensor in context.saved_tensors]
        with torch.enable_grad():
            coefficients, x, y, z = tensors
            spread = context.encoding.spread(coefficients.mT)
            azimuthal, total, start = torch.ones_like(torch.complex(x, y)), 0 * x, 0
            for size in range(_n_degrees(spread.shape[1]), 0, -1):
                for j in range(size):
                    total = total + spread[:, start + j] * azimuthal.real * z ** (2 * j)
                azimuthal, start = azimuthal * torch.complex(x, y) ** 2, start + size
        return None, *torch.autograd.grad(total, tensors, gradient)


def _n_degrees(n_terms):
    """L of L (L + 1) / 2 coefficients."""
    return round((2 * n_terms) ** 0.5 - 0.5)


@njit(cache=True, nogil=True, fastmath=True)
def _harmonic_sums(coefficients, x, y, z, n_degrees, order, shell_ends):
    n_voxels, n = x.shape
    result, work = np.empty((n_voxels, n), x.dtype), np.empty((7, n), x.dtype)
    square, factor_real, factor_imaginary, real, imaginary, polynomial, total = work
    for v in range(n_voxels):
        for i in range(n):
            m = order[i]
            square[i] = z[v, m] ** 2
            factor_real[i] = x[v, m] ** 2 - y[v, m] ** 2
            factor_imaginary[i] = 2 * x[v, m] * y[v, m]
            real[i], imaginary[i], total[i] = 1, 0, 0
        begin = 0
        for s in range(len(shell_ends)):
            end, last, c = shell_ends[s], -1, coefficients[v, s]
            for size in range(n_degrees, 0, -1):
                last += size
                polynomial[begin:end] = c[last]
                j = last - 1
                if size % 2 == 0:
                    for i in range(begin, end):
                        polynomial[i] = c[j] + square[i] * polynomial[i]
                    j -= 1
                while j > last - size:  # two at once, as access to memory limits the speed
                    for i in range(begin, end):
                        higher = c[j] + square[i] * polynomial[i]
                        polynomial[i] = c[j - 1] + square[i] * higher
                    j -= 2
                for i in range(begin, end):
                    total[i] += real[i] * polynomial[i]
                    product = imaginary[i] * factor_imaginary[i]
                    imaginary[i] = real[i] * factor_imaginary[i] + imaginary[i] * factor_real[i]
                    real[i] = real[i] * factor_real[i] - product
            begin = end
        for i in range(n):
            result[v, order[i]] = total[i]
    return result
