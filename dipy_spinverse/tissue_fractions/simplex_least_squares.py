"""Least squares over fractions: exactly, voxel by voxel in compiled code."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

# Relative to the squares of the columns: what contrasts do not tell apart stays solvable.
_RIDGE = 1e-11
_ROUNDING = 1e-12


@lru_cache
def faces_of(n_classes: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Sets of at most so many classes that a voxel may be a mixture of, smallest first.

    Returns
    -------
    faces : ndarray (F, most) of int
        Classes of each, filled up with zeros.
    dims : ndarray (F,) of int
        Their numbers less one.
    """
    most = min(most, n_classes)
    sets = [s for size in range(most) for s in combinations(range(n_classes), size + 1)]
    faces = np.array([[*chosen, *[0] * (most - len(chosen))] for chosen in sets])
    return faces, np.array([len(chosen) - 1 for chosen in sets])


def with_background(gram: np.ndarray, projection: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With one more class, which gives no signal."""
    return np.pad(gram, ((0, 0), (0, 1), (0, 1))), np.pad(projection, ((0, 0), (0, 1)))


def simplex_least_squares(gram: Tensor, projection: Tensor, *, full: bool = False) -> Tensor:
    """Minimise |y - A f|^2 over f >= 0 with sum at most 1, or exactly 1.

    The minimum over the affine hull of every face of the simplex is tried; the best that is
    inside its face is the solution.

    Parameters
    ----------
    gram : Tensor (V, T, T)
        A^T A.
    projection : Tensor (V, T)
        A^T y.
    full : bool, optional
        Whether the sum is 1: there is no background.

    Returns
    -------
    Tensor (V, T)
    """
    n = projection.shape[1]
    arrays = gram.numpy(), projection.numpy()
    if not full:
        arrays = with_background(*arrays)
    n_classes = arrays[1].shape[1]
    return torch.from_numpy(_best_of_faces(*arrays, *faces_of(n_classes, n_classes)))[:, :n]


@njit(cache=True, nogil=True)
def density_on_face(gram, projection, face, dim, g, b):
    """Projection f - f gram f / 2 in the fractions x of a face but its last: c + b x - x g x / 2.

    Fills g and b; returns c.
    """
    last = face[dim]
    for i in range(dim):
        k = face[i]
        b[i] = projection[k] - projection[last] - gram[k, last] + gram[last, last]
        for j in range(dim):
            m = face[j]
            g[i, j] = gram[k, m] - gram[k, last] - gram[last, m] + gram[last, last]
    return projection[last] - 0.5 * gram[last, last]


@njit(cache=True, nogil=True, parallel=True)
def _best_of_faces(gram, projection, faces, dims):
    n_voxels, n = projection.shape
    best = np.zeros((n_voxels, n))
    for v in prange(n_voxels):
        g, b, x = np.empty((n, n)), np.empty(n), np.empty(n)
        ridge = 0.0
        for k in range(n):
            ridge += _RIDGE * gram[v, k, k]
        highest = -np.inf
        for f in range(len(faces)):
            dim = dims[f]
            height = density_on_face(gram[v], projection[v], faces[f], dim, g, b)
            for i in range(dim):
                g[i, i] += ridge
                x[i] = b[i]
            _solve(g, x, dim)
            inside, left = True, 1.0
            for i in range(dim):
                inside = inside and x[i] >= -_ROUNDING
                left -= x[i]
                height += 0.5 * b[i] * x[i]
            if inside and left >= -_ROUNDING and height > highest:
                highest = height
                best[v] = 0.0
                for i in range(dim):
                    best[v, faces[f, i]] = max(x[i], 0.0)
                best[v, faces[f, dim]] = max(left, 0.0)
    return best


@njit(cache=True, nogil=True)
def _solve(g, x, dim):
    """g^-1 x in place, by elimination of a positive definite matrix."""
    for i in range(dim):
        for j in range(i + 1, dim):
            factor = g[j, i] / g[i, i]
            for k in range(i, dim):
                g[j, k] -= factor * g[i, k]
            x[j] -= factor * x[i]
    for i in range(dim - 1, -1, -1):
        for k in range(i + 1, dim):
            x[i] -= g[i, k] * x[k]
        x[i] /= g[i, i]
