"""Chebyshev series with coefficients of each shell, evaluated for each measurement.

The innermost loop of dispersed models. Compiled, and known to torch: it has derivatives forward
and backward, and batches.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor


def evaluate_chebyshev(coefficients: Tensor, t: Tensor, shell: Tensor) -> Tensor:
    """sum_k c_k T_k(t).

    Parameters
    ----------
    coefficients : Tensor (V, L, S)
    t : Tensor (V, M)
        Between -1 and 1.
    shell : Tensor (M,) of int

    Returns
    -------
    Tensor (V, M)
    """
    return _Series.apply(coefficients, t, shell)


class _Series(torch.autograd.Function):
    @staticmethod
    def forward(coefficients, t, shell):
        return _evaluate(coefficients[None], t[None], shell)[0]

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)
        context.save_for_forward(*inputs)

    @staticmethod
    def jvp(context, d_coefficients, d_t, _):
        coefficients, t, shell = context.saved_tensors
        slope = _Series.apply(_derivative(coefficients), t, shell)
        return _Series.apply(d_coefficients, t, shell) + slope * d_t

    @staticmethod
    def backward(context, gradient):
        coefficients, t, shell = context.saved_tensors
        d_t = gradient * _Series.apply(_derivative(coefficients), t, shell)
        powers = [torch.ones_like(t), t]
        for _ in range(2, coefficients.shape[1]):
            powers.append(2 * t * powers[-1] - powers[-2])
        products = torch.stack(powers[: coefficients.shape[1]], dim=1) * gradient[:, None]
        return torch.zeros_like(coefficients).index_add(2, shell, products), d_t, None

    @staticmethod
    def vmap(info, dims, coefficients, t, shell):
        coefficients, t = (
            tensor[None] if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip((coefficients, t), dims, strict=False)
        )
        if is_wrapped(coefficients) or is_wrapped(t):
            size = info.batch_size
            batched = (e.expand(size, *e.shape[1:]).flatten(0, 1) for e in (coefficients, t))
            return _Series.apply(*batched, shell).unflatten(0, (size, -1)), 0
        return _evaluate(coefficients, t, shell), 0


def is_wrapped(tensor: Tensor) -> bool:
    """Whether transforms of functions (torch.func) follow a tensor, which has no array then."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _derivative(coefficients):
    """Coefficients of the derivative of the series."""
    n = coefficients.shape[1]
    matrix = np.zeros((n, n))
    for k in range(1, n):
        lower = np.arange((k - 1) % 2, k, 2)
        matrix[k, lower] = np.where(lower == 0, k, 2 * k)
    matrix = torch.tensor(matrix, dtype=coefficients.dtype)
    return torch.einsum("kj,...ks->...js", matrix, coefficients)


def _evaluate(coefficients, t, shell):
    """Batches (B or 1, V, L, S) and (B or 1, V, M) to (B, V, M)."""
    order = torch.argsort(shell, stable=True)
    shell_ends = torch.cumsum(torch.bincount(shell, minlength=coefficients.shape[-1]), dim=0)
    arrays = (tensor.contiguous().numpy() for tensor in (coefficients, t, order, shell_ends))
    return torch.from_numpy(_clenshaw(*arrays))


@njit(cache=True, nogil=True, fastmath=True)
def _clenshaw(coefficients, t, order, shell_ends):
    n_batches = max(len(coefficients), len(t))
    _, n_voxels, n = t.shape
    result = np.empty((n_batches, n_voxels, n), t.dtype)
    x, upper, lower = np.empty(n, t.dtype), np.empty(n, t.dtype), np.empty(n, t.dtype)
    for voxel in range(n_voxels):
        for batch in range(n_batches):
            if batch < len(t):
                for m in range(n):
                    x[m] = t[batch, voxel, order[m]]
            start = 0
            for s in range(len(shell_ends)):
                c = coefficients[min(batch, len(coefficients) - 1), voxel, :, s]
                block = slice(start, shell_ends[s])
                _clenshaw_block(c, x[block], upper[block], lower[block])
                start = shell_ends[s]
            for m in range(n):
                result[batch, voxel, order[m]] = upper[m]
    return result


@njit(cache=True, nogil=True, fastmath=True)
def _clenshaw_block(c, x, upper, lower):
    """Series with the same coefficients (L,) at all of x, in `upper`.

    Two steps at once: memory is what takes the time.
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
