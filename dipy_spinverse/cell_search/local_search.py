"""An objective that counts wrong labels, and label changes at the walls that decrease it."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import lsq_linear

from dipy_spinverse.cell_search.labelled import (
    TRANSMISSIBILITY_SD,
    LabelChanges,
    LabelledCells,
    Target,
    label_changes,
)

# Number of wrong labels for which the metric allows. With 0 the objective is the sum of squares,
# and the first shape of benchmarks/results/ablation.md was not recovered within 12 minutes.
_WRONG_LABELS = 100.0
# Relative to the trace of a covariance, which it keeps positive definite in double precision.
_JITTER = 1e-13
# Set by hand on the shapes of benchmarks/shapes.py, as all constants below.
NEARLY_CORRECT = 1 / 64  # objective per measurement up to which cells are nearly correct
_MIN_DIFFERENT = (3, 12)  # tetrahedra between members, of nearly correct and other cells
_N_CHANGES = (0, 1, 2, 4, 8, 16)  # label changes that are simulated
_MAX_ROUNDS = 3
_CHANGE_COST = 0.3  # square root of the penalty of a label change, in units of the objective
_TRANSMISSIBILITY_COST = 0.1  # that of one prior standard deviation of a transmissibility
_MAX_TRANSMISSIBILITY_CHANGE = 20.0  # in prior standard deviations
_MAX_RATIO = 0.95  # of the objectives after and before a round that is worthwhile
_MAX_INCREASE = 1.01  # the same where the residual decreases instead


class LabelErrorMisfit:
    """Squared residual in a metric in which each wrong label counts about the same.

    With the effects D of m typical label changes, r^T (c D^T D / m + s^2 I)^-1 r grows with their
    number, where a few directions of large signal dominate the sum of squares. The `scale` s is
    the error that label changes cannot explain, in units of the errors of the data.
    """

    def __init__(self, changes: list[LabelChanges], scale: float):
        effects = np.concatenate([change.effects for change in changes])
        slopes = np.mean([change.slopes for change in changes], axis=0)
        slopes = slopes * TRANSMISSIBILITY_SD[:, None]
        covariance = _WRONG_LABELS / max(len(effects), 1) * effects.T @ effects
        covariance += slopes.T @ slopes
        n_measurements = len(covariance)
        covariance[np.diag_indices(n_measurements)] += scale**2
        covariance += _JITTER * np.trace(covariance) * np.eye(n_measurements)
        factor = np.linalg.cholesky(covariance)
        self.root = solve_triangular(factor, np.eye(n_measurements), lower=True).T

    def __call__(self, target: Target, cells: LabelledCells) -> float:
        """Objective of cells."""
        return self.of_residuals(target.residual(cells)[None])[0]

    def of_residuals(self, residuals: np.ndarray) -> np.ndarray:
        """Objectives (N,) of residuals (N, M)."""
        return ((residuals @ self.root) ** 2).sum(axis=1)

    def of_cells(self, target: Target, candidates: list[LabelledCells]) -> np.ndarray:
        """Objectives (N,) of several cells."""
        return self.of_residuals(np.array([target.residual(cells) for cells in candidates]))

    def min_different(self, misfit: float) -> int:
        """Tetrahedra in which members of a population differ, given the misfit of the best."""
        nearly_correct = misfit <= NEARLY_CORRECT * len(self.root)
        return _MIN_DIFFERENT[0 if nearly_correct else 1]

    def improved(
        self, target: Target, cells: LabelledCells, rng: np.random.Generator | None = None
    ) -> LabelledCells:
        """Cells after label changes at their walls and with re-estimated transmissibilities."""
        misfit = self(target, cells)
        for _ in range(_MAX_ROUNDS):
            if misfit == 0:
                break
            candidates = target.cells(*self._changed(target, cells))
            misfits = self.of_cells(target, candidates)
            best = candidates[misfits.argmin()]
            # The metric is insensitive to the transmissibilities, the residual is not.
            ratio = min(
                misfits.min() / misfit,
                target.reduced_chi_square(best) / target.reduced_chi_square(cells),
            )
            if not (ratio < _MAX_RATIO and misfits.min() <= _MAX_INCREASE * misfit):
                break
            cells, misfit = best, misfits.min()
        return cells

    def _changed(self, target, cells):
        """Labels and transmissibilities with the most explanatory changes, from none to many."""
        changes = label_changes(target, cells.labels, cells.transmissibility)
        residual, n = target.residual(cells), len(changes.tetrahedra)
        effects, slopes = changes.effects.T, changes.slopes.T * TRANSMISSIBILITY_SD
        costs = np.append(np.full(n, _CHANGE_COST), [_TRANSMISSIBILITY_COST] * 2)
        design_matrix = np.vstack([self.root.T @ np.hstack([effects, slopes]), np.diag(costs)])
        right_side = np.append(self.root.T @ residual, np.zeros(n + 2))
        upper = np.append(np.ones(n), [_MAX_TRANSMISSIBILITY_CHANGE] * 2)
        lower = np.append(np.zeros(n), [-_MAX_TRANSMISSIBILITY_CHANGE] * 2)
        order = np.argsort(-lsq_linear(design_matrix, right_side, (lower, upper)).x[:n])
        labels = np.repeat(cells.labels[None], len(_N_CHANGES), axis=0)
        transmissibility = np.empty((len(labels), 2))
        for k, number in enumerate(_N_CHANGES):
            labels[k, changes.tetrahedra[order[:number]]] ^= True
            remainder = residual - effects[:, order[:number]].sum(axis=1)
            step = np.linalg.lstsq(slopes, remainder, rcond=None)[0]
            transmissibility[k] = cells.transmissibility + TRANSMISSIBILITY_SD * step
        return labels, transmissibility.clip(0, 1)
