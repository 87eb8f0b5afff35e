"""Nearest points on a grid that may be periodic."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid


def nearest(
    grid: TetrahedralGrid, targets_um: np.ndarray, points_um: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest target of each point, including periodic images.

    Parameters
    ----------
    grid : TetrahedralGrid
        Its period is used.
    targets_um : ndarray (N, 3)
        At least one position, um.
    points_um : ndarray (K, 3)
        Positions, um.

    Returns
    -------
    distances : ndarray (K,)
        um.
    indices : ndarray (K,)
        Index of the target.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(cells=4, cell_size_um=5.0)
    >>> nearest(grid, np.array([[9.0, 0, 0], [0, 0, 0]]), np.array([[-9.0, 0, 0]]))
    (array([2.]), array([0]))
    """
    period = grid.period_um
    if period is None:
        return cKDTree(targets_um).query(points_um)
    # The tree requires 0 <= x < period; rounding can give the period itself.
    wrapped = [np.mod(x, period) for x in (targets_um, points_um)]
    targets, points = (np.where(x < period, x, 0.0) for x in wrapped)
    return cKDTree(targets, boxsize=period).query(points)
