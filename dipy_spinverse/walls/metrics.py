"""Comparison of estimated with true walls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.walls.patterns import moved_faces


@dataclass(frozen=True)
class WallComparison:
    """Agreement of estimated with true walls.

    Attributes
    ----------
    precision, recall, f1 : float
        Fraction of the estimated walls that are true, of the true walls that are detected, and
        their harmonic mean; 0 without common walls, 1 if both sets are empty.
    chamfer_um2 : float
        Squared Chamfer distance of the walls' centroids, um^2: the mean squared distance from an
        estimated wall to the nearest true one plus that from a true wall to the nearest estimated
        one. Infinite if one of the sets is empty.
    centred_chamfer_um2 : float
        The same after both sets are shifted to mean zero; on a periodic grid, after a shift by
        the difference of the circular means, if that is smaller.
    bad_edges_percent : float
        Fraction of the edges of estimated walls that belong to one wall or to more than two.
        Surfaces that end at the outside of the grid have such edges there.
    reflected : bool
        Whether the comparison is with the point reflection of the true walls.
    """

    precision: float
    recall: float
    f1: float
    chamfer_um2: float
    centred_chamfer_um2: float
    bad_edges_percent: float
    reflected: bool


def compare_walls(
    estimated: ArrayLike, true: ArrayLike, grid: TetrahedralGrid, point_reflection: bool = False
) -> WallComparison:
    """Compare estimated with true walls, as published [1]_.

    Parameters
    ----------
    estimated, true : array-like (F,) of bool
        Which faces are walls.
    grid : TetrahedralGrid
    point_reflection : bool, optional
        Compare with the true walls and with their reflection through the centre of the grid,
        which have the same signals with time-symmetric gradients, and return the comparison with
        the higher F1 (if these are equal, the smaller Chamfer distance).

    Returns
    -------
    WallComparison

    Raises
    ------
    ValueError
        Wrong shapes, values that are not boolean, or a grid that differs from its own reflection.

    References
    ----------
    .. [1] Khole et al., "Spinverse: Differentiable physics for permeability-aware microstructure
       reconstruction from diffusion MRI" (2026), https://doi.org/10.48550/arXiv.2603.04638

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> from dipy_spinverse.substrates.membranes import spheres
    >>> grid = bcc_grid(cells=4, cell_size_um=5.0)
    >>> true = np.isfinite(spheres(grid, [0, 0, 0], 7.0))
    >>> compare_walls(true, true, grid).f1
    1.0
    """
    walls, truth = (
        _check_mask(grid, *item) for item in (("estimated", estimated), ("true", true))
    )
    comparison = _compare(walls, truth, grid, reflected=False)
    if not point_reflection:
        return comparison
    mirrored = _compare(walls, truth[reflected_faces(grid)], grid, reflected=True)
    return min(comparison, mirrored, key=lambda c: (-c.f1, c.chamfer_um2))


def reflected_faces(grid: TetrahedralGrid) -> np.ndarray:
    """Index (F,) of the reflection of each face through the centre of the grid."""
    partner = moved_faces(grid, sign=-1)
    if partner is None:
        raise ValueError(
            "point_reflection is True, but the grid differs from its reflection through its "
            "centre. Use a point-symmetric grid such as bcc_grid, or point_reflection=False."
        )
    return partner


def _check_mask(grid, name, value):
    mask = np.asarray(value)
    if mask.shape != (grid.n_faces,) or mask.dtype != bool:
        raise ValueError(
            f"{name} has shape {mask.shape} and type {mask.dtype}; give a boolean per face, "
            f"({grid.n_faces},), such as np.isfinite(permeability) or wall_probability >= 0.5."
        )
    return mask


def _compare(estimated, true, grid, reflected):
    true_positives = (estimated & true).sum()
    both_empty = not estimated.any() and not true.any()
    precision, recall, f1 = (
        1.0 if both_empty else float(numerator / max(denominator, 1))
        for numerator, denominator in (
            (true_positives, estimated.sum()),
            (true_positives, true.sum()),
            (2 * true_positives, estimated.sum() + true.sum()),
        )
    )
    chamfer, centred = _chamfer(grid, grid.face_centroids[estimated], grid.face_centroids[true])
    walls_at_edge = grid.edge_faces @ estimated.astype(float)
    n_bad = ((walls_at_edge == 1) | (walls_at_edge > 2)).sum()
    return WallComparison(
        precision=precision,
        recall=recall,
        f1=f1,
        chamfer_um2=chamfer,
        centred_chamfer_um2=centred,
        bad_edges_percent=float(100 * n_bad / max((walls_at_edge > 0).sum(), 1)),
        reflected=reflected,
    )


def _chamfer(grid, estimated, true):
    """Squared Chamfer distance as it is, and of the centred sets."""
    if len(estimated) == 0 or len(true) == 0:
        distance = 0.0 if len(estimated) == len(true) else np.inf
        return distance, distance

    def squared_distance(estimated):
        return sum(
            float((grid.nearest(targets, points)[0] ** 2).mean())
            for targets, points in ((true, estimated), (estimated, true))
        )

    absolute = squared_distance(estimated)
    period = grid.period_um
    if period is None:
        return absolute, squared_distance(estimated + true.mean(axis=0) - estimated.mean(axis=0))
    shift = _circular_mean(true, period) - _circular_mean(estimated, period)
    return absolute, min(absolute, squared_distance(estimated + shift))


def _circular_mean(points, period):
    return np.angle(np.exp(2j * np.pi * points / period).mean(axis=0)) * period / (2 * np.pi)
