"""A prior of labels: cells are smooth, as far as neighbouring tetrahedra tell."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from dipy_spinverse.cell_search.metropolis import LogOdds
from dipy_spinverse.grid import TetrahedralGrid

# Log odds that a tetrahedron is inside of a cell, instead of outside. A logistic regression over
# random bodies finds twice as much of the first two (tests/test_cell_search.py), but what
# neighbours tell they do not tell independently.
BY_FACE = 0.65  # for each neighbour inside instead of outside that shares a face
BY_EDGE = 0.15  # for each that shares an edge
EVEN = 0.24  # where as many neighbours are inside as outside


class Smoothness:
    """Log probability of labels, and its change when a tetrahedron changes sides."""

    def __init__(self, grid: TetrahedralGrid):
        common = shared_points(grid)
        common.data = np.choose(common.data - 1, [0.0, BY_EDGE, BY_FACE])
        common.eliminate_zeros()
        self._weights = common

    def __call__(self, labels: np.ndarray) -> float:
        """Log probability of labels (T,), relative to that of no cells."""
        return self._value(2.0 * labels - 1) - self._nothing

    def _value(self, side):
        return 0.25 * side @ (self._weights @ side) + 0.5 * EVEN * side.sum()

    @cached_property
    def _nothing(self):
        return self._value(-np.ones(self._weights.shape[0]))

    @property
    def log_odds(self) -> LogOdds:
        """What a flip changes."""
        return LogOdds(self._weights.indptr, self._weights.indices, self._weights.data, EVEN)


def shared_points(grid: TetrahedralGrid) -> csr_matrix:
    """How many points, 1 to 3, pairs of tetrahedra (T, T) have in common."""
    n = len(grid.tetrahedra)
    row = np.repeat(np.arange(n), 4)
    contains = csr_matrix((np.ones(4 * n, dtype=int), (row, grid.tetrahedra.ravel())))
    common = (contains @ contains.T).tocsr()
    common.setdiag(0)
    common.eliminate_zeros()
    return common
