"""Agreement between permeability fields that explain the same signals.

With time-symmetric gradients, the point reflection of a field has the same signals, and on a
periodic lattice so do shifts: fields are compared after the transformation with the best
agreement.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dipy_spinverse.grid import TetrahedralGrid


def align_fields(grid: TetrahedralGrid, fields: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Fields (n, F) shifted and reflected for the largest sum of products with a reference (F,).

    Both are wall strengths, 0 to 1.
    """
    result = np.empty_like(fields)
    maps = face_symmetries(grid)
    for row, field in enumerate(fields):
        closest = (field[maps] @ reference).argmax()
        result[row] = field[maps[closest]]
    return result


def mean_pairwise_f1(walls: np.ndarray) -> np.ndarray:
    """Mean F1 (...) of all pairs of n fields of wall strengths (..., n, F), 0 to 1.

    For strengths 0 and 1 this is twice the number of common walls over the sum of both numbers; 1
    for a single field.
    """
    n = walls.shape[-2]
    if n < 2:
        return np.ones(walls.shape[:-2])
    common = walls @ walls.swapaxes(-1, -2)
    size = np.diagonal(common, axis1=-2, axis2=-1)
    total = size[..., None] + size[..., None, :]
    f1 = np.where(total > 0, 2 * common / np.maximum(total, 1e-12), 1.0)
    return f1[(..., *np.triu_indices(n, 1))].mean(axis=-1)


# Of which the maximal agreement is taken: enough for the default lattice of 4 x 4 x 4 cubes.
_MAX_SHIFTS = 128


@lru_cache(maxsize=4)
def face_symmetries(grid: TetrahedralGrid) -> np.ndarray:
    """Permutations of faces (S, F), the identity first, that leave all signals unchanged.

    Shifts of a periodic lattice, at most 128, each with and without point reflection; for other
    grids only the reflection; only the identity if a grid is not symmetric.
    """
    shifts = np.zeros((1, 3))
    if grid.period_um is not None:
        shifts = grid.points_um[:_MAX_SHIFTS] - grid.points_um[0]
    maps = [moved_faces(grid, sign, shift) for sign in (1, -1) for shift in shifts]
    return np.array([partner for partner in maps if partner is not None])


def moved_faces(
    grid: TetrahedralGrid, sign: int, shift: np.ndarray | float = 0.0
) -> np.ndarray | None:
    """Face (F,) at +-(x - centre) + shift for each face at x; None where there are none."""
    centre = np.zeros(3)
    if grid.period_um is None:
        centre = np.average(grid.centroids, axis=0, weights=grid.volumes)
    moved = centre + sign * (grid.face_centroids - centre) + shift
    distance, partner = grid.nearest(grid.face_centroids, moved)
    return partner if distance.max() < 1e-4 * np.cbrt(grid.volumes.mean()) else None
