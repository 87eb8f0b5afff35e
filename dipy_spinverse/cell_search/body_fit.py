"""Bodies fitted to data: Gauss-Newton in their parameters, for many starts at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.cell_search.bodies import Bodies
from dipy_spinverse.cell_search.labelled import Cells, Misfit, Target

# Data errors (times those of the misfit) and lengths of the steps that are tried.
_STEPS = ((0.03, 1.0), (0.3, 0.5), (0.3, 1.0), (0.3, 1.7), (3.0, 1.0))
_N_RANDOM, _RANDOM_LENGTH = 2, 0.3
_LEAST_INSIDE, _LARGEST_SHARE = 8, 0.6


@dataclass(frozen=True, eq=False)
class FittedBodies:
    """Bodies, the state of their labels, and its misfit."""

    bodies: Bodies
    cells: Cells
    misfit: float


def step_bodies(
    target: Target, fits: list[FittedBodies], misfit: Misfit, rng: np.random.Generator
) -> list[FittedBodies]:
    """One step for each fit; those that no step improves stay as they are."""
    points = target.grid.centroids
    labels = [
        fit.bodies.moved(sign * difference).inside(points)
        for fit in fits
        for difference in np.diag(fit.bodies.differences())
        for sign in (1, -1)
    ]
    leaks = fits[0].cells.leaks
    shifted = np.array([state.signals for state in target.cells(np.array(labels), leaks)])
    candidates, owners, first = [], [], 0
    for owner, fit in enumerate(fits):
        n = 2 * len(fit.bodies.parameters)
        part = shifted[first : first + n]
        jacobian = (part[0::2] - part[1::2]).T / (2 * fit.bodies.differences())
        first += n
        steps = _steps(fit, jacobian, target.residual(fit.cells), misfit, rng)
        candidates += [fit.bodies.moved(step) for step in steps]
        owners += [owner] * len(steps)
    labels = np.array([bodies.inside(points) for bodies in candidates])
    number = labels.sum(axis=1)
    possible = (number >= _LEAST_INSIDE) & (number <= _LARGEST_SHARE * labels.shape[1])
    states = target.cells(labels, leaks)
    values = misfit(np.array([target.residual(state) for state in states]))
    values[~possible] = np.inf
    owners, result = np.array(owners), []
    for owner, fit in enumerate(fits):
        mine = np.flatnonzero(owners == owner)
        best = mine[values[mine].argmin()]
        if values[best] < fit.misfit:
            fit = FittedBodies(candidates[best], states[best], values[best])
        result.append(fit)
    return result


def _steps(fit, jacobian, residual, misfit, rng):
    covariance = fit.bodies.step_covariance()
    by_parameter, rest = misfit.root.T @ jacobian, misfit.root.T @ residual
    system = by_parameter @ covariance @ by_parameter.T
    steps = []
    for error, length in _STEPS:
        weights = np.linalg.solve(system + error * np.eye(len(rest)), rest)
        steps.append(length * covariance @ (by_parameter.T @ weights))
    root = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance)))
    for _ in range(_N_RANDOM):
        steps.append(_RANDOM_LENGTH * root @ rng.standard_normal(len(root)))
    return steps
