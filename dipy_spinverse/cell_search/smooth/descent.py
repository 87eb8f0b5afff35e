"""Gauss-Newton for smooth cells, with signals of a fine grid and their derivatives by a coarse
one.

Errors of signals of a coarse grid add up over hundreds of measurements; its derivatives suffice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
import torch

from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.smooth.forward import SmoothModel
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior, SmoothCells
from dipy_spinverse.inversion.levenberg_marquardt import Damping, levenberg_marquardt

# Chosen on the bodies of benchmarks/notes/walls_off_grid.md ("Steps", "Damping").
_MAX_WALL_STEP = 0.5  # displacement of walls in a step, in lengths of the prior
_MODEL_ERROR = 0.5  # error of the linear model, relative to the residual
# Damping relative to the prior's precision. Smaller initial values lead to islands, of which the
# derivatives know nothing (from 493 to 13,260 at a damping of 1, where 121 were predicted).
_INITIAL_DAMPING, _MIN_DAMPING, _DAMPING_DECREASE = 100.0, 0.03, 3.0
_DAMPING = Damping(initial=_INITIAL_DAMPING, minimum=0.0, maximum=1e4, growth=5.0)
_GOOD_RATIO, _POOR_RATIO = 0.6, 0.25  # of actual and predicted gain, as of trust regions
_MIN_GAIN = 0.01  # of twice the log posterior, per measurement
# Samples differ from the best cells by this power of the variance of a mode: by a field of twice
# the prior's length and a third of its deviation. With the prior's own, islands grow, and walls
# become rougher than those of cells, by up to a tenth of their area
# (benchmarks/notes/walls_off_grid.md).
_VARIANCE_POWER = 1.5
_STEP_REDUCTION = 1 / 3  # of a step that failed


@dataclass(frozen=True, eq=False)
class FittedCells:
    """Cells, and the residual (m,) of data, in units of their errors."""

    cells: SmoothCells
    residual: np.ndarray

    @property
    def neg2_log_posterior(self) -> float:
        """Minus twice the log posterior, up to a constant."""
        return self.with_model_error(1.0)

    def with_model_error(self, error: float) -> float:
        """The same for errors of the data and the model of some size."""
        unknowns = self.cells.unknowns
        return float(self.residual @ self.residual / error**2 + unknowns @ unknowns)


def most_probable_first(fitted: Iterable[FittedCells]) -> list[FittedCells]:
    """Fitted cells in the order of their posterior probability."""
    return sorted(fitted, key=attrgetter("neg2_log_posterior"))


@dataclass(frozen=True, eq=False)
class SmoothDescent:
    """Steps that increase the posterior probability given the measurements of a target."""

    target: CondensedTarget
    signal_model: SmoothModel
    slope_model: SmoothModel  # for derivatives
    prior: FieldPrior

    def fitted(self, cells: SmoothCells) -> FittedCells:
        """Cells and their residual."""
        expected = self.target.expected(self.signal_model.signals(cells))
        return FittedCells(cells, self.target.data - expected)

    def jacobian(self, cells: SmoothCells) -> np.ndarray:
        """Derivatives (m, n + C) of the condensed data."""
        return self.target.expected(self.slope_model.linear(cells)[1].T).T

    def __call__(self, state: FittedCells, n_steps: int) -> FittedCells:
        """Cells after Levenberg-Marquardt steps. Half of the misfit, while it is large, counts as
        error of the model, so that cells remain probable as long as data do not require others."""
        jacobian = None

        def advance(_, level):
            nonlocal state, jacobian
            error, damping = _total_error(state), float(level)
            jacobian = self.jacobian(state.cells) if jacobian is None else jacobian
            step = self._bounded(state.cells, _step(state, jacobian, error, damping))
            candidate = self.fitted(state.cells.moved(step))
            linear = FittedCells(candidate.cells, state.residual - jacobian @ step)
            gain, predicted = (
                state.with_model_error(error) - x.with_model_error(error)
                for x in (candidate, linear)
            )
            ratio = gain / max(predicted, 1e-9)
            change = 1.0 if ratio > _POOR_RATIO else _DAMPING.growth
            if ratio > _GOOD_RATIO:
                change = max(damping / _DAMPING_DECREASE, _MIN_DAMPING) / damping
            accepted, small = gain > 0, gain < _MIN_GAIN * len(state.residual)
            if accepted:
                state, jacobian = candidate, None
            converged = accepted and small and bool(error == 1.0)
            return *torch.tensor([[accepted], [converged]]), change * torch.ones_like(level)

        damping = replace(_DAMPING, initial=_INITIAL_DAMPING / _total_error(state) ** 2)
        levenberg_marquardt(advance, torch.ones(1, dtype=torch.double), damping, n_steps)
        return state

    def posterior_sample(
        self, rng: np.random.Generator, cells: SmoothCells, n_steps: int, error: float
    ) -> SmoothCells:
        """A sample around the most probable cells: those of data and a prior mean drawn around
        their signals and parameters, with the noise times `error`. For linear models it is exact,
        by randomised maximum likelihood (https://doi.org/10.1007/s11004-011-9376-z)."""
        target, model = self.target, self.slope_model
        variances = self.prior.variances**_VARIANCE_POWER
        prior_sd = np.append(variances, np.ones(len(cells.log_permeability)))
        prior_draw = prior_sd * rng.standard_normal(len(prior_sd))
        expected = target.expected(model.signals(cells))
        data = expected + error * rng.standard_normal(len(expected))
        least, change, step = np.inf, np.zeros(len(prior_draw)), np.zeros(len(prior_draw))
        for _ in range(n_steps):
            signals, jacobian = model.linear(cells.moved(change + step))
            residual = (data - target.expected(signals)) / error
            prior_residual = (prior_draw - change - step) / prior_sd
            misfit = residual @ residual + prior_residual @ prior_residual
            if misfit < least:
                least, change = misfit, change + step
                slopes = prior_sd * target.expected(jacobian.T).T / error
                system = np.eye(len(slopes)) + slopes @ slopes.T
                remaining = np.linalg.solve(system, residual - slopes @ prior_residual)
                step = prior_sd * (prior_residual + slopes.T @ remaining)
            else:
                step = _STEP_REDUCTION * step
        return cells.moved(change)

    def _bounded(self, cells, step):
        """A step that moves no wall too far."""
        field = self.prior.on_raster(cells.z)
        change = np.abs(self.prior.on_raster(cells.moved(step).z) - field)
        near_wall = np.abs(field) < self.prior.length / 2
        if not near_wall.any():
            return step
        relative = np.quantile(change[near_wall], 0.9) / (_MAX_WALL_STEP * self.prior.length)
        return step / max(relative, 1.0)


def _total_error(state):
    """Of data and model, in units of that of the data."""
    return max(_MODEL_ERROR * np.sqrt((state.residual**2).mean()), 1.0)


def _step(state, jacobian, error, damping):
    """Damped Gauss-Newton step (J^T J / e^2 + (1 + d) I)^-1 (J^T r / e^2 - u)."""
    precision = 1 + damping
    gradient = jacobian.T @ state.residual / error**2 - state.cells.unknowns
    system = jacobian @ jacobian.T + precision * error**2 * np.eye(len(jacobian))
    return (gradient - jacobian.T @ np.linalg.solve(system, jacobian @ gradient)) / precision
