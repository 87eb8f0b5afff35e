"""How sure a cell is: draws by randomised maximum likelihood."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dipy_spinverse.cell_shapes.search import ShapeLinearisation
from dipy_spinverse.cell_shapes.unknowns import ShapeSignals, SimulatedCell

_NOTHING_KNOWN = 1e-14  # of the prior's trace
_HALVED = 4  # steps into inverted tetrahedra, at most so many times


def posterior_cells(
    forward: ShapeSignals,
    likeliest: SimulatedCell,
    near: ShapeLinearisation,
    n_draws: int,
    rng: np.random.Generator,
) -> Iterator[SimulatedCell]:
    """Draws: the likeliest cells for data and a prior mean to which noise is added [1]_.

    Each by one Gauss-Newton step, which is a draw of the Laplace approximation, and a second one
    with the signals found there. One after another: a cell holds tens of megabytes.

    References
    ----------
    .. [1] Chen and Oliver, "Ensemble randomized maximum likelihood method as an iterative
       posterior_cells smoother", Math. Geosci. 44 (2012), https://doi.org/10.1007/s11004-011-9376-z
    """
    prior, weighted = near.prior, near.weights[:, None] * near.jacobian
    covariance = np.linalg.inv(near.curvature)
    # of rotations and S0 the prior knows next to nothing
    root = np.linalg.cholesky(prior + _NOTHING_KNOWN * np.trace(prior) * np.eye(len(prior)))
    for _ in range(n_draws):
        data = near.target + rng.standard_normal(len(near.target)) / np.sqrt(near.weights)
        pull = near.pull + root @ rng.standard_normal(len(prior))

        def step_from(moved, signals, data=data, pull=pull):
            return covariance @ (weighted.T @ (data - signals) - pull - prior @ moved)

        def misfit(moved, signals, data=data, pull=pull):
            return near.weights @ (data - signals) ** 2 / 2 + moved @ (pull + prior @ moved / 2)

        step = step_from(np.zeros(len(prior)), likeliest.signals)
        step, cell = _feasible(forward, likeliest.shape, step)
        further = step + step_from(step, cell.signals)
        further, other = _feasible(forward, likeliest.shape, further)
        better = misfit(further, other.signals) < misfit(step, cell.signals)
        yield other if better else cell


def _feasible(forward, shape, step):
    """A step and the cell after it, shorter where tetrahedra would be inverted."""
    for _ in range(_HALVED):
        cell = forward.at(forward.moved(shape, step))
        if cell is not None:
            return step, cell
        step = step / 2
    return 0 * step, forward.at(shape)
