"""Non-negative amplitudes of pools by least squares, exactly and for all voxels at once."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

# All sets of columns are tried, 255 of eight.
MOST_POOLS = 8
# Relative to the squares of the columns.
_RIDGE = 1e-6


def nonnegative_amplitudes(gram: Tensor, projection: Tensor) -> Tensor:
    """Minimise |y - A w|^2 over w >= 0.

    The least-squares solution of every set of columns is tried; the best that is not negative is
    the solution.

    Parameters
    ----------
    gram : Tensor (V, K, K)
        A^T A.
    projection : Tensor (V, K)
        A^T y.

    Returns
    -------
    Tensor (V, K)
    """
    n = projection.shape[1]
    best = torch.zeros_like(projection)
    lowest = torch.zeros_like(projection[:, 0])
    ridge = _RIDGE * torch.diagonal(gram, dim1=1, dim2=2).clamp_min(1e-30)
    for chosen in _subsets(n):
        index = torch.tensor(chosen)
        square = gram[:, index[:, None], index] + torch.diag_embed(ridge[:, index])
        right = projection[:, index]
        amplitudes = _solve(square, right)
        # Half the change of the sum of squares against no columns at all.
        cost = -0.5 * (amplitudes * right).sum(dim=1)
        better = (amplitudes >= 0).all(dim=1) & (cost < lowest)
        lowest = torch.where(better, cost, lowest)
        full = torch.zeros_like(best)
        full[:, index] = amplitudes
        best = torch.where(better[:, None], full, best)
    return best


@lru_cache
def _subsets(n):
    return [c for size in range(1, n + 1) for c in combinations(range(n), size)]


def _solve(square, right):
    """Closed form for one and two columns, the most frequent; factors else."""
    if right.shape[1] == 1:
        return right / square[:, 0]
    if right.shape[1] == 2:
        a, b, d = square[:, 0, 0], square[:, 0, 1], square[:, 1, 1]
        determinant = a * d - b * b
        first = d * right[:, 0] - b * right[:, 1]
        second = a * right[:, 1] - b * right[:, 0]
        return torch.stack([first, second], dim=1) / determinant[:, None].clamp_min(1e-30)
    factor, _ = torch.linalg.cholesky_ex(square)
    return torch.cholesky_solve(right[..., None], factor)[..., 0]
