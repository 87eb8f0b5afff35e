"""Geometric operations on labelled cells: components, reflections, translations."""

from __future__ import annotations

from itertools import islice, product

import numpy as np
from scipy.spatial import cKDTree

from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid, connected_component

_MIN_TETRAHEDRA = 2  # of a cell; a single tetrahedron may be a leftover at the box
_MAX_REFLECTIONS = 16  # combinations of reflected cells, enough for up to five cells


class CellOperations:
    """Operations on labels (T,) of a grid; `reflected` (T,) are point-reflected tetrahedra."""

    def __init__(self, grid: TetrahedralGrid):
        self._grid, self._centroids = grid, grid.centroids
        self._tree = cKDTree(self._centroids)
        self._spacing = np.linalg.norm(grid.displacements, axis=1).mean()
        centre = (grid.points_um.min(axis=0) + grid.points_um.max(axis=0)) / 2
        self.reflected = self._tree.query(2 * centre - self._centroids)[1]

    def connected_cells(self, labels: np.ndarray) -> list[np.ndarray]:
        """Labels (T,) of each connected cell."""
        pairs = self._grid.face_tetrahedra[labels[self._grid.face_tetrahedra].all(axis=1)]
        component = connected_component(pairs, len(labels))
        cells = [component == k for k in np.unique(component[labels])]
        return [cell for cell in cells if cell.sum() >= _MIN_TETRAHEDRA] or [labels]

    def n_different(self, labels_a: np.ndarray, labels_b: np.ndarray) -> int:
        """Number of tetrahedra in which labels (T,) differ, up to point reflection."""
        return min((labels_a != labels_b).sum(), (labels_a != labels_b[self.reflected]).sum())

    def distinct(self, labels, min_different: int, number: int) -> list[int]:
        """Indices of the first `number` labels (N, T) that pairwise differ enough."""
        chosen: list[int] = []
        for k, candidate in enumerate(labels):
            if len(chosen) == number:
                break
            if all(self.n_different(candidate, labels[n]) >= min_different for n in chosen):
                chosen.append(k)
        return chosen

    def with_reflections(self, cells) -> np.ndarray:
        """Labels (N, T) of cells (n, T), each but the first reflected or not, where disjoint."""
        choices = product(*((cell, cell[self.reflected]) for cell in cells[1:]))
        arrangements = np.array([[cells[0], *x] for x in islice(choices, _MAX_REFLECTIONS)])
        disjoint = arrangements.sum(axis=1).max(axis=1) == 1
        return arrangements[disjoint].any(axis=1)

    def translated(self, points: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Labels (P, T) of a cell whose nearest grid point is translated to points (P, 3)."""
        centroid, grid_points = self._centroids[cell].mean(axis=0), self._grid.points_um
        nearest = grid_points[np.linalg.norm(grid_points - centroid, axis=1).argmin()]
        distance, source = self._tree.query(self._centroids - (points - nearest)[:, None])
        return cell[source] & (distance < 0.5 * self._spacing)
