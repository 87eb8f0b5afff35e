"""Non-negative amplitudes of pools by least squares, exactly and for all voxels at once."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

# Relative to the squares of the columns.
_RIDGE = 1e-6


def nonnegative_amplitudes(gram: Tensor, projection: Tensor) -> Tensor:
    """Minimise |y - A w|^2 over w >= 0.

    The least-squares solution of every set of columns is tried (255 of eight); the best that is
    not negative is the solution.

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
    arrays = gram.contiguous().numpy(), projection.contiguous().numpy()
    return torch.from_numpy(_best_of_sets(*arrays, _sets(projection.shape[1])))


@lru_cache
def _sets(n):
    """All sets of columns (2^n - 1, n) of bool but the empty one, the smaller ones first."""
    number = np.arange(1, 2**n)
    chosen = (number[:, None] >> np.arange(n)) % 2 == 1
    return chosen[np.argsort(chosen.sum(axis=1), kind="stable")]


@njit(cache=True, nogil=True, error_model="numpy")
def _best_of_sets(gram, projection, sets):
    n_voxels, n = projection.shape
    result, lowest = np.zeros((n_voxels, n), gram.dtype), np.zeros(n_voxels)
    factor, amplitudes = np.zeros((n, n)), np.zeros(n)
    for chosen in sets:
        columns = np.flatnonzero(chosen)
        for v in range(n_voxels):
            gain = _solve(gram[v], projection[v], columns, factor, amplitudes)
            if gain > lowest[v] and (amplitudes[: len(columns)] >= 0).all():
                lowest[v] = gain
                result[v] = 0
                for i, k in enumerate(columns):
                    result[v, k] = amplitudes[i]
    return result


@njit(cache=True, nogil=True, error_model="numpy")
def _solve(gram, projection, columns, factor, amplitudes):
    """Amplitudes of some columns by Cholesky; by how much they lower the sum of squares."""
    n = len(columns)
    for i in range(n):
        for j in range(i + 1):
            value = float(gram[columns[i], columns[j]])
            if i == j:
                value += _RIDGE * max(value, 1e-30)
            for k in range(j):
                value -= factor[i, k] * factor[j, k]
            factor[i, j] = np.sqrt(value) if i == j else value / factor[j, j]
    gain = 0.0
    for i in range(n):
        value = float(projection[columns[i]])
        for k in range(i):
            value -= factor[i, k] * amplitudes[k]
        amplitudes[i] = value / factor[i, i]
        gain += amplitudes[i] ** 2
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            amplitudes[i] -= factor[k, i] * amplitudes[k]
        amplitudes[i] /= factor[i, i]
    return gain
