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

_FARTHEST = 0.5  # that a step may move the walls, in lengths of the prior
_MODEL_ERROR = 0.5  # of the residual that a step cannot foretell: it shrinks with the misfit
# Damping of steps, over the prior's precision, and how it follows what was gained of the foretold.
# With less at first, steps make islands, of which the derivatives know nothing.
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 100.0, 0.03, 1e4
_GOOD, _BAD, _LESS, _MORE = 0.6, 0.25, 3.0, 5.0
_ENOUGH = 0.01  # gain of the log probability, per measurement, below which steps end


@dataclass(frozen=True, eq=False)
class Fitted:
    """Cells, and what they leave of data (m,), in units of the errors."""

    cells: SmoothCells
    residual: np.ndarray

    @property
    def improbability(self) -> float:
        """Minus twice the log probability, but for a constant."""
        return self._of(1.0)

    def _of(self, error):
        unknowns = self.cells.unknowns
        return float(self.residual @ self.residual / error**2 + unknowns @ unknowns)


@dataclass(frozen=True, eq=False)
class SmoothDescent:
    """Steps that make smooth cells more probable.

    Parameters
    ----------
    target : CondensedTarget
    exact, slopes : SmoothModel
        Of the measurements that the target wants: for the signals, and for their derivatives.
    prior : FieldPrior
    """

    target: CondensedTarget
    exact: SmoothModel
    slopes: SmoothModel
    prior: FieldPrior

    def fitted(self, cells: SmoothCells) -> Fitted:
        """Cells and their residual on the exact grid."""
        expected = self.target.expected(self.exact.signals(cells))
        return Fitted(cells, self.target.data - expected)

    def jacobian(self, cells: SmoothCells) -> np.ndarray:
        """Derivatives (m, n + C) of the condensed data."""
        return self.target.expected(self.slopes.linear(cells)[1].T).T

    def __call__(self, here: Fitted, n_steps: int) -> Fitted:
        """Cells after some steps of Levenberg and Marquardt, in units of the prior.

        While the misfit is large, half of it counts as error of the model: cells stay probable
        as long as the data do not need others.
        """
        jacobian, damping = None, _FIRST_DAMPING / _error(here) ** 2
        for _ in range(n_steps):
            error = _error(here)
            jacobian = self.jacobian(here.cells) if jacobian is None else jacobian
            step = self._bounded(here.cells, _step(here, jacobian, error, damping))
            there = self.fitted(here.cells.moved(step))
            gain = here._of(error) - there._of(error)
            foretold = Fitted(there.cells, here.residual - jacobian @ step)
            hoped = max(here._of(error) - foretold._of(error), 1e-9)
            if gain > _GOOD * hoped:
                damping = max(damping / _LESS, _LEAST_DAMPING)
            elif gain < _BAD * hoped:
                damping *= _MORE
            if gain > 0:
                here, jacobian = there, None
            ended = error == 1.0 and 0 < gain < _ENOUGH * len(here.residual)
            if ended or damping > _MOST_DAMPING:
                break
        return here

    def _bounded(self, cells, step):
        """A step that moves no wall too far."""
        field = self.prior.on_raster(cells.z)
        change = np.abs(self.prior.on_raster(cells.moved(step).z) - field)
        near = np.abs(field) < self.prior.length / 2
        if not near.any():
            return step
        farthest = np.quantile(change[near], 0.9) / (_FARTHEST * self.prior.length)
        return step / max(farthest, 1.0)


def _error(here):
    """Of data and model, in units of that of the data."""
    return max(_MODEL_ERROR * np.sqrt((here.residual**2).mean()), 1.0)


def _step(here, jacobian, error, damping):
    """A step to the most probable cells of the linear model, held back everywhere alike."""
    held = 1 + damping
    uphill = jacobian.T @ here.residual / error**2 - here.cells.unknowns
    system = jacobian @ jacobian.T + held * error**2 * np.eye(len(jacobian))
    return (uphill - jacobian.T @ np.linalg.solve(system, jacobian @ uphill)) / held
