"""Regions of a grid and the membranes between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid, connected_component


def membranes_between(
    grid: TetrahedralGrid, region: ArrayLike, permeability: float | Mapping
) -> np.ndarray:
    """Permeability of the faces between regions.

    Parameters
    ----------
    grid : TetrahedralGrid
    region : array-like (T,) of int
        Region of each tetrahedron.
    permeability : float or mapping {(int, int): float}
        um/ms, of all membranes, or of those between each pair of regions. Pairs that are not
        named have no membrane.

    Returns
    -------
    ndarray (F,)
        Infinite within a region.

    Raises
    ------
    ValueError
        Negative permeability, wrong shape, or a region that is not a manifold: parts of it share
        only a vertex or an edge.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(4, 5.0)
    >>> region = (np.abs(grid.centroids[:, 0]) < 5).astype(int)
    >>> kappa = membranes_between(grid, region, 0.02)
    >>> int(np.isfinite(kappa).sum())
    128
    """
    region = np.asarray(region)
    if region.shape != (grid.n_tetrahedra,):
        raise ValueError(
            f"region has shape {region.shape}; give one label for each of the "
            f"{grid.n_tetrahedra} tetrahedra."
        )
    _check_manifold(grid, region)
    sides = region[grid.face_tetrahedra]
    interface = sides[:, 0] != sides[:, 1]
    values = np.full(grid.n_faces, np.inf)
    if not isinstance(permeability, Mapping):
        values[interface] = permeability
    else:
        for (a, b), value in permeability.items():
            values[((sides == (a, b)) | (sides == (b, a))).all(axis=1) & interface] = value
    if not (values >= 0).all():
        raise ValueError(f"permeability is {permeability}; give values of at least 0 in um/ms.")
    return values


def _check_manifold(grid, region):
    """Refuse regions whose tetrahedra around a vertex are not connected through faces."""
    inside = region[grid.face_tetrahedra[:, 0]] == region[grid.face_tetrahedra[:, 1]]
    pairs = np.stack([corners[inside] for corners in faces_as_corners(grid)], axis=-1)
    component = connected_component(pairs.reshape(-1, 2), grid.tetrahedra.size)
    vertex_region = np.column_stack([grid.tetrahedra.ravel(), np.repeat(region, 4)])
    fans = np.unique(np.column_stack([vertex_region, component]), axis=0)
    vertices, counts = np.unique(fans[:, :2], axis=0, return_counts=True)
    if counts.max() > 1:
        vertex, label = vertices[counts.argmax()]
        raise ValueError(
            f"region: {(counts > 1).sum()} vertices join parts of one region that share no face "
            f"there (first: region {label} at {grid.points_um[vertex].round(3).tolist()} um), so "
            "that it is not a manifold. Give the parts different labels, or refine the mesh there."
        )


def faces_as_corners(grid: TetrahedralGrid) -> list[np.ndarray]:
    """Corners 4 t + (0 ... 3) of tetrahedron t at the vertices (F, 3) of faces, on both sides."""
    return [
        4 * t[:, None] + (grid.tetrahedra[t][:, None, :] == grid.faces[:, :, None]).argmax(axis=2)
        for t in grid.face_tetrahedra.T
    ]
