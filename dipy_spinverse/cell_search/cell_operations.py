"""Cells changed at random: moved, turned, mirrored, removed, and joined with others."""

from __future__ import annotations

from itertools import islice, product

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dipy_spinverse.grid import TetrahedralGrid

# Chosen on the shapes of benchmarks/shapes.py.
_MOVE = 1.0  # standard deviation, in distances of neighbouring tetrahedra
_TURN = 0.3  # standard deviation, rad
_MIRRORED = 0.3  # how often a cell is mirrored at its own centre
_ACROSS = 0.3  # how often one that moves alone is mirrored at the centre of the box
_FAR = 0.3  # how often one that moves alone moves farther
_FARTHER = 4.0  # so many times
_LEAST_CELL = 2  # tetrahedra
# Shares of the kinds of changes, one added to the other; the rest takes a cell from others.
_MOVE_ONE = 0.3
_MOVE_ALL = 0.5
_REMOVE = 0.6
_JOIN = 0.8
_MOST_SIDES = 16  # of cells, in how many ways they are mirrored


class CellOperations:
    """Random changes of the cells of a grid."""

    def __init__(self, grid: TetrahedralGrid):
        self._grid, self._points = grid, grid.centroids
        self._tree = cKDTree(self._points)
        self._step = np.linalg.norm(grid.displacements, axis=1).mean()
        self._centre = (grid.points_um.min(axis=0) + grid.points_um.max(axis=0)) / 2
        self.mirrored = self._tree.query(2 * self._centre - self._points)[1]

    def connected_cells(self, labels: np.ndarray) -> list[np.ndarray]:
        """Labels (T,) of each connected cell."""
        first, second = self._grid.face_tetrahedra.T
        both = labels[first] & labels[second]
        graph = coo_matrix((both[both], (first[both], second[both])), (len(labels),) * 2)
        number = connected_components(graph, directed=False)[1]
        cells = [number == k for k in np.unique(number[labels])]
        return [cell for cell in cells if cell.sum() >= _LEAST_CELL] or [labels]

    def apart(self, one: np.ndarray, other: np.ndarray) -> int:
        """Number of tetrahedra in which labels (T,) differ, up to point reflection."""
        return min((one != other).sum(), (one != other[self.mirrored]).sum())

    def that_differ(self, labels, least: int, number: int) -> list[int]:
        """Indices of the first of labels (N, T) that differ in so many tetrahedra, or more."""
        kept: list[int] = []
        for k, some in enumerate(labels):
            if len(kept) == number:
                break
            if all(self.apart(some, labels[other]) >= least for other in kept):
                kept.append(k)
        return kept

    def mirrored_in_part(self, labels: np.ndarray) -> np.ndarray:
        """Labels (N, T) in which some but not all of several cells are mirrored in the centre."""
        cells = self.connected_cells(labels)
        turned = [cell[self.mirrored] for cell in cells]
        choices = product(*zip(cells[1:], turned[1:], strict=True))
        several = [np.sum([cells[0], *rest], axis=0) for rest in islice(choices, 1, _MOST_SIDES)]
        apart = [x == 1 for x in several if x.max() == 1]
        return np.array(apart).reshape(-1, len(labels))

    def drawn(self, labels: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Labels (T,) after one change, which may take a part of other labels (T,)."""
        cells = self.connected_cells(labels)
        if rng.random() < 0.5:
            other = other[self.mirrored]
        kind = rng.random()
        if kind < _MOVE_ONE:
            # The water inside of a closed cell tells neither where it is nor its reflection, and
            # that around it nearly the same of two sides of the box.
            k = rng.integers(len(cells))
            if rng.random() < _ACROSS:
                cells[k] = cells[k][self.mirrored]
            cells[k] = self.moved(cells[k], rng, _FARTHER if rng.random() < _FAR else 1.0)
            return np.any(cells, axis=0)
        if kind < _MOVE_ALL:
            return np.any([self.moved(cell, rng) for cell in cells], axis=0)
        if kind < _REMOVE and len(cells) > 1:
            cells.pop(rng.integers(len(cells)))
            return np.any(cells, axis=0)
        if kind < _JOIN:
            normal = rng.standard_normal(3)
            side = (self._points - self._centre) @ normal
            joined = np.where(side > 2 * self._step * rng.standard_normal(), labels, other)
            return joined if joined.any() else labels
        others = self.connected_cells(other)
        cells[rng.integers(len(cells))] = others[rng.integers(len(others))]
        return np.any(cells, axis=0)

    def moved(
        self, cell: np.ndarray, rng: np.random.Generator, farther: float = 1.0
    ) -> np.ndarray:
        """Labels (T,) of a cell that is moved, turned and mirrored at random."""
        centre = self._points[cell].mean(axis=0)
        turn = Rotation.from_rotvec(_TURN * rng.standard_normal(3) * (rng.random() < 0.5))
        side = -1 if rng.random() < _MIRRORED else 1
        move = farther * _MOVE * self._step * rng.standard_normal(3)
        before = centre + side * turn.apply(self._points - centre - move)
        moved = cell[self._tree.query(before)[1]]
        return moved if moved.any() else cell

    def moved_to(self, points: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Labels (P, T) of a cell moved as a whole, to points (P, 3) from that nearest to it."""
        middle, known = self._points[cell].mean(axis=0), self._grid.points_um
        nearest = known[np.linalg.norm(known - middle, axis=1).argmin()]
        distance, before = self._tree.query(self._points - (points - nearest)[:, None])
        return cell[before] & (distance < 0.5 * self._step)
