"""Posterior probability of labels given noisy data, and its increase by annealing."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from dipy_spinverse.cell_search.labelled import (
    TRANSMISSIBILITY_SD,
    LabelledCells,
    Target,
    label_changes,
)
from dipy_spinverse.cell_search.metropolis import LogOdds, random_moves, walk
from dipy_spinverse.grid import TetrahedralGrid

# Set by hand on the shapes of benchmarks/shapes.py; results of the search with these numbers are
# in benchmarks/results/noisy_cells.md.
_N_CHANGES = (1, 2, 4, 8, 16)  # at most, until the model is linearised anew
_N_SWEEPS = 60
_MAX_ROUNDS = 4
_INITIAL_TEMPERATURE = 3.0  # in units of the log probability
_FINAL_TEMPERATURE = 0.05
_MIN_GAIN = 0.01  # of the log probability, in a round
_MAX_TRANSMISSIBILITY_STEPS = 3
_MIN_CHI_SQUARE_GAIN = 0.1  # of the reduced chi-square, in such a step
_MIN_DIFFERENT = 6  # tetrahedra in which members of a population differ
# Log odds that a tetrahedron is inside of a cell. A logistic regression over random bodies gives
# twice as much of the first two (tests/test_cell_search.py); neighbours are not independent.
BY_FACE = 0.65  # for each neighbour inside instead of outside that shares a face
BY_EDGE = 0.15  # for each that shares an edge
BIAS = 0.24  # where as many neighbours are inside as outside


class Smoothness:
    """Log prior probability of labels, by an Ising model: neighbours tend to agree."""

    def __init__(self, grid: TetrahedralGrid):
        common = shared_points(grid)
        common.data = np.choose(common.data - 1, [0.0, BY_EDGE, BY_FACE])
        common.eliminate_zeros()
        self._weights = common
        self._of_no_cells = self._log_probability(-np.ones(common.shape[0]))
        # Change of the log probability with each label.
        self.log_odds = LogOdds(common.indptr, common.indices, common.data, BIAS)

    def __call__(self, labels: np.ndarray) -> float:
        """Log probability of labels (T,), relative to that of no cells."""
        return self._log_probability(2.0 * labels - 1) - self._of_no_cells

    def _log_probability(self, spins):
        return 0.25 * spins @ (self._weights @ spins) + 0.5 * BIAS * spins.sum()


def shared_points(grid: TetrahedralGrid) -> csr_matrix:
    """How many points, 1 to 3, pairs of tetrahedra (T, T) have in common."""
    n = len(grid.tetrahedra)
    row = np.repeat(np.arange(n), 4)
    contains = csr_matrix((np.ones(4 * n, dtype=int), (row, grid.tetrahedra.ravel())))
    common = (contains @ contains.T).tocsr()
    common.setdiag(0)
    common.eliminate_zeros()
    return common


class NegativeLogPosterior:
    """Minus the log posterior of labels, marginal over the transmissibilities by `typical`
    cells."""

    def __init__(self, smoothness: Smoothness, target: Target, typical: list[LabelledCells]):
        self.smoothness = smoothness
        slopes = [label_changes(target, x.labels, x.transmissibility).slopes for x in typical]
        slopes = np.mean(slopes, axis=0) * TRANSMISSIBILITY_SD[:, None]
        covariance = np.eye(slopes.shape[1]) + slopes.T @ slopes
        self.whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T

    def __call__(self, target: Target, cells: LabelledCells) -> float:
        """Minus the log posterior, up to a constant."""
        residual = target.residual(cells) @ self.whitening
        return float(0.5 * residual @ residual - self.smoothness(cells.labels))

    def min_different(self, misfit: float) -> int:
        """Tetrahedra in which members of a population differ."""
        return _MIN_DIFFERENT

    def improved(
        self,
        target: Target,
        cells: LabelledCells,
        rng: np.random.Generator,
        initial_temperature: float = _INITIAL_TEMPERATURE,
    ) -> LabelledCells:
        """More probable cells, after annealing of the labels at the walls."""
        cost = self(target, cells)
        for _ in range(_MAX_ROUNDS):
            linear = _LinearChanges(self, target, cells)
            n_moves = _N_SWEEPS * len(linear.tetrahedra)
            temperatures = np.geomspace(initial_temperature, _FINAL_TEMPERATURE, n_moves)
            changes = [linear.annealed(rng, temperatures, number) for number in _N_CHANGES]
            candidates = [changed for changed in changes if linear.labels(changed).any()]
            if not candidates:
                break
            states = target.cells(
                np.array([linear.labels(changed) for changed in candidates]),
                np.array([linear.transmissibility(changed) for changed in candidates]),
            )
            costs = [self(target, state) for state in states]
            if min(costs) > cost - _MIN_GAIN:
                break
            cost, cells = min(costs), states[np.argmin(costs)]
        return with_fitted_transmissibility(target, cells)


def with_fitted_transmissibility(target: Target, cells: LabelledCells) -> LabelledCells:
    """The same labels with the most probable transmissibilities."""
    for _ in range(_MAX_TRANSMISSIBILITY_STEPS):
        slopes = label_changes(target, cells.labels, cells.transmissibility).slopes
        step = _gauss_newton(cells.transmissibility, slopes, target.residual(cells))
        candidate = target.cells(cells.labels[None], step)[0]
        gain = target.reduced_chi_square(cells) - target.reduced_chi_square(candidate)
        if gain > 0:
            cells = candidate
        if gain < _MIN_CHI_SQUARE_GAIN:
            break
    return cells


def _gauss_newton(transmissibility, slopes, residual):
    """Transmissibilities (2,) after a Gauss-Newton step, with the current ones as prior mean."""
    slopes = slopes * TRANSMISSIBILITY_SD[:, None]
    step = np.linalg.solve(slopes @ slopes.T + np.eye(2), slopes @ residual)
    return (transmissibility + TRANSMISSIBILITY_SD * step).clip(0, 1)


class _LinearChanges:
    """Label changes at the walls of cells in the linear model, in which their effects add up."""

    def __init__(self, objective, target, cells):
        self._objective, self._cells = objective, cells
        self._changes = label_changes(target, cells.labels, cells.transmissibility)
        self.tetrahedra = self._changes.tetrahedra
        self._residual = target.residual(cells)
        self._white_residual = self._residual @ objective.whitening
        self._white_effects = self._changes.effects @ objective.whitening

    def labels(self, changed):
        labels = self._cells.labels.copy()
        labels[self.tetrahedra[changed]] ^= True
        return labels

    def transmissibility(self, changed):
        residual = self._residual - changed @ self._changes.effects
        return _gauss_newton(self._cells.transmissibility, self._changes.slopes, residual)

    def annealed(self, rng, temperatures, max_changes):
        """Which labels change, `max_changes` at most, after Metropolis moves."""
        moves = random_moves(rng, len(self.tetrahedra), temperatures, max_changes)
        labels, log_odds = self._cells.labels.copy(), self._objective.smoothness.log_odds
        residual = self._white_residual.copy()
        return walk(labels, residual, self._white_effects, self.tetrahedra, log_odds, moves)
