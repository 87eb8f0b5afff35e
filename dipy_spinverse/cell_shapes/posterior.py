"""Posterior samples of a cell by randomised maximum likelihood."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dipy_spinverse.cell_shapes.search import ShapeLinearisation
from dipy_spinverse.cell_shapes.unknowns import ShapeSignals, SimulatedCell

_RIDGE = 1e-14  # relative to the trace of the prior precision: makes it positive definite
_MAX_HALVINGS = 4  # of steps into inverted tetrahedra


def posterior_cells(
    forward: ShapeSignals,
    likeliest: SimulatedCell,
    linearisation: ShapeLinearisation,
    n_draws: int,
    rng: np.random.Generator,
) -> Iterator[SimulatedCell]:
    """Posterior samples: the most probable cells for perturbed data and prior means.

    Randomised maximum likelihood (Chen and Oliver, https://doi.org/10.1007/s11004-011-9376-z).
    Each takes one Gauss-Newton step, which samples the Laplace approximation, and a second one
    with the signals computed there. They are yielded one by one: each takes tens of megabytes.
    """
    prior, weighted = linearisation.prior, linearisation.weights[:, None] * linearisation.jacobian
    covariance = np.linalg.inv(linearisation.curvature)
    # the prior of rotations and S0 is nearly flat
    root = np.linalg.cholesky(prior + _RIDGE * np.trace(prior) * np.eye(len(prior)))
    for _ in range(n_draws):
        data = linearisation.target + rng.standard_normal(len(linearisation.target)) / np.sqrt(
            linearisation.weights
        )
        pull = linearisation.pull + root @ rng.standard_normal(len(prior))

        def step_from(moved, signals, data=data, pull=pull):
            return covariance @ (weighted.T @ (data - signals) - pull - prior @ moved)

        def misfit(moved, signals, data=data, pull=pull):
            return linearisation.weights @ (data - signals) ** 2 / 2 + moved @ (
                pull + prior @ moved / 2
            )

        step = step_from(np.zeros(len(prior)), likeliest.signals)
        step, cell = _feasible(forward, likeliest.shape, step)
        second_step = step + step_from(step, cell.signals)
        second_step, second_cell = _feasible(forward, likeliest.shape, second_step)
        improves = misfit(second_step, second_cell.signals) < misfit(step, cell.signals)
        yield second_cell if improves else cell


def _feasible(forward, shape, step):
    """A step and the cell after it, shorter where tetrahedra would be inverted."""
    for _ in range(_MAX_HALVINGS):
        cell = forward.at(forward.moved(shape, step))
        if cell is not None:
            return step, cell
        step = step / 2
    return 0 * step, forward.at(shape)
