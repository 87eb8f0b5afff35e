"""Whether wall fields that explain the same signals agree about where the walls are.

Time-symmetric gradients cannot tell a pattern of walls from its point reflection, nor, on a
periodic lattice, from a shifted copy: patterns are compared after the best of these.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.grid.nearest import nearest


def align_fields(grid: TetrahedralGrid, fields: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Fields moved to where they overlap most with a reference.

    Parameters
    ----------
    grid : TetrahedralGrid
    fields : ndarray (n, F)
        Of each face how much it is a wall, 0 to 1.
    reference : ndarray (F,)

    Returns
    -------
    ndarray (n, F)
        The same fields after the shift and point reflection with the largest sum of products.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(3, 5.0)
    >>> walls = (np.arange(grid.n_faces) < 40).astype(float)
    >>> mirrored = walls[symmetries(grid)[-1]]
    >>> bool((aligned(grid, mirrored[None], walls)[0] == walls).all())
    True
    """
    result = np.empty_like(fields)
    maps = face_symmetries(grid)
    for row, field in enumerate(fields):
        closest = (field[maps] @ reference).argmax()
        result[row] = field[maps[closest]]
    return result


def mean_pairwise_f1(walls: np.ndarray) -> float:
    """Mean F1 of all pairs of n wall patterns (n, F), 0 to 1; 1 of one alone.

    For walls of 0 or 1 this is twice the number of common walls over the sum of both; walls in
    between count by their products and squares.
    """
    if len(walls) < 2:
        return 1.0
    common = walls @ walls.T
    size = np.diag(common)
    total = size[:, None] + size
    f1 = np.where(total > 0, 2 * common / np.maximum(total, 1e-12), 1.0)
    return float(f1[np.triu_indices(len(walls), 1)].mean())


@lru_cache(maxsize=4)
def face_symmetries(grid: TetrahedralGrid) -> np.ndarray:
    """Maps of faces onto faces (S, F), the identity first, that leave all signals unchanged.

    Lattice shifts of a periodic grid, at most 128 of them, each with and without point
    reflection; the reflection alone of other grids; only the identity where a grid is not
    symmetric.
    """
    shifts = np.zeros((1, 3))
    if grid.period_um is not None:
        # A shift of the lattice takes vertices to vertices.
        shifts = grid.points_um[:_MOST_SHIFTS] - grid.points_um[0]
    signs = (1, -1)
    centre = np.zeros(3)
    if grid.period_um is None:
        centre = np.average(grid.centroids, axis=0, weights=grid.volumes)
    offsets = grid.face_centroids - centre
    tolerance = 1e-4 * np.cbrt(grid.volumes.mean())
    maps = []
    for sign in signs:
        for shift in shifts:
            distance, partner = nearest(grid, grid.face_centroids, centre + sign * offsets + shift)
            if distance.max() < tolerance:
                maps.append(partner)
    return np.array(maps)


_MOST_SHIFTS = 128
