"""Chebyshev series with coefficients of each shell, evaluated for each measurement.

The innermost loop of dispersed models: compiled, and differentiable in torch.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numpy.polynomial.chebyshev import chebder
from torch import Tensor


def evaluate_chebyshev(coefficients: Tensor, t: Tensor, shell: Tensor) -> Tensor:
    """sum_k c_k T_k(t) (V, M) with coefficients (V, L, S) of the `shell` (M,) of each t (V, M)."""
    return _Series.apply(coefficients, t, shell)


class _Series(torch.autograd.Function):
    @staticmethod
    def forward(context, coefficients, t, shell):
        context.save_for_backward(coefficients, t, shell)
        order = torch.argsort(shell, stable=True)
        shell_ends = torch.cumsum(torch.bincount(shell, minlength=coefficients.shape[-1]), dim=0)
        arrays = (x.contiguous().numpy() for x in (coefficients, t, order, shell_ends))
        return torch.from_numpy(_clenshaw(*arrays))

    @staticmethod
    def backward(context, gradient):
        coefficients, t, shell = context.saved_tensors
        d_t = gradient * _Series.apply(_derivative(coefficients), t, shell)
        degrees = torch.arange(coefficients.shape[1])[:, None]
        polynomials = torch.special.chebyshev_polynomial_t(t[:, None], degrees)
        products = polynomials * gradient[:, None]
        return torch.zeros_like(coefficients).index_add(2, shell, products), d_t, None


def _derivative(coefficients):
    """Coefficients of the derivative of the series."""
    n = coefficients.shape[1]
    matrix = np.vstack([chebder(np.eye(n))[: n - 1], np.zeros(n)])
    return torch.tensor(matrix, dtype=coefficients.dtype) @ coefficients


@njit(cache=True, nogil=True, fastmath=True)
def _clenshaw(coefficients, t, order, shell_ends):
    n_voxels, n = t.shape
    result = np.empty((n_voxels, n), t.dtype)
    x, upper, lower = np.empty(n, t.dtype), np.empty(n, t.dtype), np.empty(n, t.dtype)
    for voxel in range(n_voxels):
        for m in range(n):
            x[m] = t[voxel, order[m]]
        start = 0
        for s in range(len(shell_ends)):
            block = slice(start, shell_ends[s])
            _clenshaw_block(coefficients[voxel, :, s], x[block], upper[block], lower[block])
            start = shell_ends[s]
        for m in range(n):
            result[voxel, order[m]] = upper[m]
    return result


@njit(cache=True, nogil=True, fastmath=True)
def _clenshaw_block(c, x, upper, lower):
    """Series with the same coefficients (L,) at all of x, in `upper`.

    Two steps at once, as access to memory limits the speed.
    """
    for m in range(len(x)):
        upper[m] = c[-1]
        lower[m] = 0
    k = len(c) - 2
    if k > 0 and k % 2 == 1:
        for m in range(len(x)):
            upper[m], lower[m] = c[k] + 2 * x[m] * upper[m], upper[m]
        k -= 1
    while k > 0:
        upper_coefficient, lower_coefficient = c[k], c[k - 1]
        for m in range(len(x)):
            twice = 2 * x[m]
            lower[m] = upper_coefficient + twice * upper[m] - lower[m]
            upper[m] = lower_coefficient + twice * lower[m] - upper[m]
        k -= 2
    if len(c) > 1:
        for m in range(len(x)):
            upper[m] = c[0] + x[m] * upper[m] - lower[m]
