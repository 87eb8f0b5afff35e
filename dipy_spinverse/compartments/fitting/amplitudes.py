"""Non-negative amplitudes of the pools by linear least squares, exactly, for many voxels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

# Relative to the squared norm of each basis signal: keeps the Cholesky factor of nearly parallel
# ones (three fibre populations) in single precision.
_RIDGE = 1e-6


def predicted_signals(basis_signals: Tensor, amplitudes: Tensor) -> Tensor:
    """Signals (V, M) of pools (V, K, M) with amplitudes (V, K)."""
    return (amplitudes[:, None] @ basis_signals)[:, 0]


def optimal_amplitudes(basis_signals: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Non-negative least-squares amplitudes (V, K), and the sums of squares (V,) that they leave.

    Basis signals are (V or 1, K, M), the target (V, M).
    """
    arrays = basis_signals.contiguous().numpy(), target.contiguous().numpy()
    gram, projection = (torch.from_numpy(array) for array in _normal_equations(*arrays))
    amplitudes = nonnegative_amplitudes(gram, projection)
    return amplitudes, torch.from_numpy(_squares(*arrays, amplitudes.numpy()))


def nonnegative_amplitudes(gram: Tensor, projection: Tensor) -> Tensor:
    """Minimiser (V, K) of |y - A w|^2 over w >= 0 from A^T A (V, K, K) and A^T y (V, K).

    The least-squares solution of every subset of columns is tried (255 of eight); the best one
    without negative amplitudes is the solution.
    """
    arrays = gram.contiguous().numpy(), projection.contiguous().numpy()
    return torch.from_numpy(_best_subset(*arrays, _subsets(projection.shape[1])))


@njit(cache=True, nogil=True, fastmath=True)
def _normal_equations(basis_signals, target):
    """A^T A (V, K, K) and A^T y (V, K)."""
    n_voxels, n_pools = len(target), basis_signals.shape[1]
    gram = np.empty((n_voxels, n_pools, n_pools), basis_signals.dtype)
    projection = np.empty((n_voxels, n_pools), basis_signals.dtype)
    for v in range(n_voxels):
        basis, y = basis_signals[min(v, len(basis_signals) - 1)], target[v]
        for k in range(n_pools):
            projection[v, k] = _dot(basis[k], y)
            for j in range(k + 1):
                gram[v, k, j] = gram[v, j, k] = _dot(basis[k], basis[j])
    return gram, projection


@njit(cache=True, nogil=True, fastmath=True)
def _dot(a, b):
    total = 0.0  # in double precision: three fibres and free water are nearly dependent
    for m in range(len(a)):
        total += a[m] * b[m]
    return total


@njit(cache=True, nogil=True, fastmath=True)
def _squares(basis_signals, target, amplitudes):
    """|y - A w|^2 (V,)."""
    result, residual = np.empty(len(target), target.dtype), np.empty(target.shape[1], target.dtype)
    for v in range(len(target)):
        residual[:] = target[v]
        for k in range(basis_signals.shape[1]):
            basis, amplitude = basis_signals[min(v, len(basis_signals) - 1), k], amplitudes[v, k]
            for m in range(len(residual)):
                residual[m] -= amplitude * basis[m]
        result[v] = _dot(residual, residual)
    return result


@lru_cache
def _subsets(n):
    """All non-empty subsets of columns (2^n - 1, n) of bool, the smaller ones first."""
    number = np.arange(1, 2**n)
    chosen = (number[:, None] >> np.arange(n)) % 2 == 1
    return chosen[np.argsort(chosen.sum(axis=1), kind="stable")]


@njit(cache=True, nogil=True, error_model="numpy")
def _best_subset(gram, projection, subsets):
    n_voxels, n = projection.shape
    result, largest_gain = np.zeros((n_voxels, n), gram.dtype), np.zeros(n_voxels)
    factor, amplitudes = np.zeros((n, n)), np.zeros(n)
    for subset in subsets:
        columns = np.flatnonzero(subset)
        for v in range(n_voxels):
            gain = _solve(gram[v], projection[v], columns, factor, amplitudes)
            if gain > largest_gain[v] and (amplitudes[: len(columns)] >= 0).all():
                largest_gain[v] = gain
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
