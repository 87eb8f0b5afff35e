"""Exact least squares on the simplex, voxel by voxel in compiled code."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

_RIDGE = 1e-11  # relative to the trace of the Gram matrix; regularises identical tissues
_ROUNDING = 1e-12  # of fractions


@lru_cache
def faces_of(n_classes: int, most_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces of the simplex: sets of at most `most_classes` classes, smallest first.

    Classes (F, most), padded with zeros, and numbers of classes minus one (F,).
    """
    most_classes = min(most_classes, n_classes)
    sets = [s for size in range(most_classes) for s in combinations(range(n_classes), size + 1)]
    faces = np.array([[*chosen, *[0] * (most_classes - len(chosen))] for chosen in sets])
    return faces, np.array([len(chosen) - 1 for chosen in sets])


def with_background(gram: np.ndarray, projection: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Append a class of no signal."""
    return np.pad(gram, ((0, 0), (0, 1), (0, 1))), np.pad(projection, ((0, 0), (0, 1)))


def simplex_least_squares(gram: Tensor, projection: Tensor, *, full: bool = False) -> Tensor:
    """Minimise |y - A f|^2 over f >= 0 (V, T) with sum at most 1, or exactly 1 if `full`.

    From A^T A (V, T, T) and A^T y (V, T): the best of the minima over the affine hulls of all
    faces that lie within their face.
    """
    n = projection.shape[1]
    arrays = gram.numpy(), projection.numpy()
    if not full:
        arrays = with_background(*arrays)
    n_classes = arrays[1].shape[1]
    return torch.from_numpy(_best_of_faces(*arrays, *faces_of(n_classes, n_classes)))[:, :n]


@njit(cache=True, nogil=True)
def density_on_face(gram, projection, face, dim, g, b):
    """Coefficients of projection f - f gram f / 2 = c + b x - x g x / 2 on a face.

    x are the fractions of the face but its last, 1 minus their sum. Fills g and b; returns c.
    """
    m = face[dim]
    for i in range(dim):
        k = face[i]
        b[i] = projection[k] - projection[m] - gram[k, m] + gram[m, m]
        for j in range(dim):
            g[i, j] = gram[k, face[j]] - gram[k, m] - gram[m, face[j]] + gram[m, m]
    return projection[m] - 0.5 * gram[m, m]


@njit(cache=True, nogil=True, parallel=True)
def _best_of_faces(gram, projection, faces, dims):
    n_voxels, n = projection.shape
    solution = np.zeros((n_voxels, n))
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
            inside, remainder = True, 1.0
            for i in range(dim):
                inside = inside and x[i] >= -_ROUNDING
                remainder -= x[i]
                height += 0.5 * b[i] * x[i]
            if inside and remainder >= -_ROUNDING and height > highest:
                highest = height
                solution[v] = 0.0
                for i in range(dim):
                    solution[v, faces[f, i]] = max(x[i], 0.0)
                solution[v, faces[f, dim]] = max(remainder, 0.0)
    return solution


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
