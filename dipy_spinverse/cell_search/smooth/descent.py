"""Gauss-Newton for smooth cells: signals of a fine grid, their derivatives by a coarse one.

The derivatives of a coarse grid are nearly right, its signals are not: what it errs by adds up
over hundreds of measurements. So each step goes by the residual that the fine grid leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.smooth.forward import SmoothCells, SmoothModel
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior

# Errors of the linear model of a step, relative to the residual before it.
_LINEAR_ERRORS = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1)
_FARTHEST = 0.3  # that a step may move the walls, in lengths of the prior
_DAMPING = 5.0  # of steps, over the prior's precision
_SHORTER = 0.4  # of a step that goes too far
_ENOUGH = 0.02  # gain of the log probability, per measurement, below which steps end


@dataclass(frozen=True, eq=False)
class Fitted:
    """Cells, and what they leave of condensed data (m,), in units of the errors."""

    cells: SmoothCells
    residual: np.ndarray

    @property
    def improbability(self) -> float:
        """Minus twice the log probability, but for a constant."""
        return self._of(1.0)

    def _of(self, error):
        unknowns = self.cells.unknowns
        return float(self.residual @ self.residual / error**2 + unknowns @ unknowns)


class SmoothDescent:
    """Steps that make smooth cells more probable.

    Parameters
    ----------
    target : CondensedTarget
    exact, slopes : SmoothModel
        Of the measurements that the target wants: for the signals, and for their derivatives.
    prior : FieldPrior
    """

    def __init__(
        self, target: CondensedTarget, exact: SmoothModel, slopes: SmoothModel, prior: FieldPrior
    ):
        self._target, self._exact, self._slopes, self._prior = target, exact, slopes, prior

    def fitted(self, cells: SmoothCells) -> Fitted:
        """Cells and their residual on the exact grid."""
        expected = self._target.expected(self._exact.signals(cells))
        return Fitted(cells, self._target.data - expected)

    def jacobian(self, cells: SmoothCells) -> np.ndarray:
        """Derivatives (m, n + C) of the condensed data."""
        return self._target.expected(self._slopes.linear(cells)[1].T).T

    def __call__(self, here: Fitted, n_steps: int, first: int = 0) -> Fitted:
        """Cells after some steps; those from the `first` on are bolder."""
        for k in range(first, first + n_steps):
            relative = _LINEAR_ERRORS[min(k, len(_LINEAR_ERRORS) - 1)]
            size = np.sqrt((here.residual**2).mean())
            error = max(relative * size, 1.0)
            step = self._bounded(here.cells, self._step(here, error))
            there = self.fitted(here.cells.moved(step))
            if there._of(error) > here._of(error):
                there = self.fitted(here.cells.moved(_SHORTER * step))
            if there._of(error) > here._of(error):
                if relative == _LINEAR_ERRORS[-1] or error == 1.0:
                    break
                continue
            gain, here = here._of(error) - there._of(error), there
            if error == 1.0 and gain < _ENOUGH * len(here.residual):
                break
        return here

    def _step(self, here, error):
        """A damped step to the most probable cells of the linear model.

        What the data do not tell goes to the prior's mean slowly: at once, walls would move.
        """
        jacobian, held = self.jacobian(here.cells), 1 + _DAMPING
        uphill = jacobian.T @ here.residual / error**2 - here.cells.unknowns
        system = jacobian @ jacobian.T + held * error**2 * np.eye(len(jacobian))
        return (uphill - jacobian.T @ np.linalg.solve(system, jacobian @ uphill)) / held

    def _bounded(self, cells, step):
        """A step that moves no wall too far."""
        basis = self._prior.raster[1]
        field = basis @ cells.z + self._prior.mean
        change = np.abs(basis @ step[: len(cells.z)])
        near = np.abs(field) < self._prior.length / 2
        if not near.any():
            return step
        farthest = np.quantile(change[near], 0.9) / (_FARTHEST * self._prior.length)
        return step / max(farthest, 1.0)
