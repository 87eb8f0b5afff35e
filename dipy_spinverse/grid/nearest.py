"""Nearest points on a grid that may be periodic."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid


def nearest(
    grid: TetrahedralGrid, targets_um: np.ndarray, points_um: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance (K,), um, and index (K,) of the nearest target (N, 3) of each point (K, 3).

    Including periodic images.
    """
    period = grid.period_um
    if period is None:
        return cKDTree(targets_um).query(points_um)
    # The tree requires 0 <= x < period; rounding can give the period itself.
    wrapped = [np.mod(x, period) for x in (targets_um, points_um)]
    targets, points = (np.where(x < period, x, 0.0) for x in wrapped)
    return cKDTree(targets, boxsize=period).query(points)
