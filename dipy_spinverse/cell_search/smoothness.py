"""A prior of labels: an Ising model in which neighbouring tetrahedra tend to agree."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from dipy_spinverse.cell_search.metropolis import LogOdds
from dipy_spinverse.grid import TetrahedralGrid

# Log odds that a tetrahedron is inside of a cell. A logistic regression over random bodies gives
# twice as much of the first two (tests/test_cell_search.py); neighbours are not independent.
BY_FACE = 0.65  # for each neighbour inside instead of outside that shares a face
BY_EDGE = 0.15  # for each that shares an edge
BIAS = 0.24  # where as many neighbours are inside as outside


class Smoothness:
    """Log prior probability of labels, and its change with single labels."""

    def __init__(self, grid: TetrahedralGrid):
        common = shared_points(grid)
        common.data = np.choose(common.data - 1, [0.0, BY_EDGE, BY_FACE])
        common.eliminate_zeros()
        self._weights = common

    def __call__(self, labels: np.ndarray) -> float:
        """Log probability of labels (T,), relative to that of no cells."""
        return self._log_probability(2.0 * labels - 1) - self._of_no_cells

    def _log_probability(self, spins):
        return 0.25 * spins @ (self._weights @ spins) + 0.5 * BIAS * spins.sum()

    @cached_property
    def _of_no_cells(self):
        return self._log_probability(-np.ones(self._weights.shape[0]))

    @property
    def log_odds(self) -> LogOdds:
        """Change of the log probability with each label."""
        return LogOdds(self._weights.indptr, self._weights.indices, self._weights.data, BIAS)


def shared_points(grid: TetrahedralGrid) -> csr_matrix:
    """How many points, 1 to 3, pairs of tetrahedra (T, T) have in common."""
    n = len(grid.tetrahedra)
    row = np.repeat(np.arange(n), 4)
    contains = csr_matrix((np.ones(4 * n, dtype=int), (row, grid.tetrahedra.ravel())))
    common = (contains @ contains.T).tocsr()
    common.setdiag(0)
    common.eliminate_zeros()
    return common
