"""Comparison of estimated with true walls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.grid.nearest import nearest


@dataclass(frozen=True)
class WallComparison:
    """Agreement of estimated with true walls, and topology of the estimated ones.

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
    open_edges_percent, branching_edges_percent, bad_edges_percent : float
        Fraction of the edges of estimated walls that belong to one wall, to more than two, and
        their sum. Surfaces that end at the outside of the grid have open edges there.
    inner_bad_edges_percent : float
        Fraction of bad edges among those that are not on the outside of the grid.
    reflected : bool
        Whether the comparison is with the point reflection of the true walls.
    """

    precision: float
    recall: float
    f1: float
    chamfer_um2: float
    centred_chamfer_um2: float
    open_edges_percent: float
    branching_edges_percent: float
    bad_edges_percent: float
    inner_bad_edges_percent: float
    reflected: bool = False


def compare_walls(
    estimated: ArrayLike, true: ArrayLike, grid: TetrahedralGrid, point_reflection: bool = False
) -> WallComparison:
    """Compare estimated with true walls.

    Parameters
    ----------
    estimated, true : array-like (F,) of bool
        Which faces are walls; :func:`wall_mask` makes these of permeabilities.
    grid : TetrahedralGrid
        The grid.
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
    >>> true = wall_mask(spheres(grid, [0, 0, 0], 7.0))
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


def wall_mask(permeability: np.ndarray, threshold: float = np.inf) -> np.ndarray:
    """Faces (F,) of a substrate with a permeability below a threshold, um/ms.

    Examples
    --------
    >>> wall_mask(np.array([0.0, 0.02, np.inf]))
    array([ True,  True, False])
    """
    return np.asarray(permeability) < threshold


def reflected_faces(grid: TetrahedralGrid) -> np.ndarray:
    """Index (F,) of the reflection of each face through the centre of the grid.

    Raises
    ------
    ValueError
        The grid differs from its reflection.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(cells=4, cell_size_um=5.0)
    >>> partner = reflected_faces(grid)
    >>> bool((partner[partner] == np.arange(grid.n_faces)).all())
    True
    """
    centroids = grid.face_centroids
    centre = np.zeros(3)
    if grid.period_um is None:
        centre = np.average(grid.centroids, axis=0, weights=grid.volumes)
    distances, partner = nearest(grid, centroids, 2 * centre - centroids)
    tolerance = 1e-4 * np.cbrt(grid.volumes.mean())
    one_to_one = np.bincount(partner, minlength=len(partner)).max() == 1
    if distances.max() > tolerance or not one_to_one:
        raise ValueError(
            "point_reflection is True, but the grid differs from its reflection through its "
            f"centre (by up to {distances.max():.3g} um). Use a point-symmetric grid such as "
            "bcc_grid, or point_reflection=False."
        )
    return partner


def outer_edges(grid: TetrahedralGrid) -> np.ndarray:
    """Mask (E,) of the edges on the outside of the grid.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> bool(outer_edges(bcc_grid(cells=4, cell_size_um=5.0)).any())
    False
    """
    pairs = grid.outer_faces[:, [[0, 1], [0, 2], [1, 2]]].reshape(-1, 2)
    codes, outer_codes = (
        vertex_pairs[:, 0].astype(np.int64) * grid.n_points + vertex_pairs[:, 1]
        for vertex_pairs in (grid.edges, pairs)
    )
    return np.isin(codes, outer_codes)


def _check_mask(grid, name, value):
    mask = np.asarray(value)
    if mask.shape != (grid.n_faces,) or mask.dtype != bool:
        raise ValueError(
            f"{name} has shape {mask.shape} and type {mask.dtype}; give a boolean per face, "
            f"({grid.n_faces},), such as wall_mask(permeability) or wall_probability >= 0.5."
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
    inner = ~outer_edges(grid)
    return WallComparison(
        precision=precision,
        recall=recall,
        f1=f1,
        chamfer_um2=chamfer,
        centred_chamfer_um2=centred,
        open_edges_percent=_percent(walls_at_edge == 1, walls_at_edge > 0),
        branching_edges_percent=_percent(walls_at_edge > 2, walls_at_edge > 0),
        bad_edges_percent=_percent((walls_at_edge == 1) | (walls_at_edge > 2), walls_at_edge > 0),
        inner_bad_edges_percent=_percent(
            ((walls_at_edge == 1) | (walls_at_edge > 2)) & inner, (walls_at_edge > 0) & inner
        ),
        reflected=reflected,
    )


def _percent(selected, total):
    return float(100 * selected.sum() / max(total.sum(), 1))


def _chamfer(grid, estimated, true):
    """Squared Chamfer distance as it is, and of the centred sets."""
    if len(estimated) == 0 or len(true) == 0:
        distance = 0.0 if len(estimated) == len(true) else np.inf
        return distance, distance
    absolute = _two_way(lambda a, b: nearest(grid, a, b)[0], estimated, true)
    if grid.period_um is None:
        centred = _two_way(
            lambda a, b: cKDTree(a).query(b)[0], estimated - estimated.mean(0), true - true.mean(0)
        )
        return absolute, centred
    shift = _circular_mean(true, grid.period_um) - _circular_mean(estimated, grid.period_um)
    shifted = _two_way(lambda a, b: nearest(grid, a, b)[0], estimated + shift, true)
    return absolute, min(absolute, shifted)


def _two_way(distances, estimated, true):
    return float(
        (distances(true, estimated) ** 2).mean() + (distances(estimated, true) ** 2).mean()
    )


def _circular_mean(points, period):
    return np.angle(np.exp(2j * np.pi * points / period).mean(axis=0)) * period / (2 * np.pi)
