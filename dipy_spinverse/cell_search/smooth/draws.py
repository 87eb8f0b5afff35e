"""Cells drawn from the posterior around the most probable ones: randomised maximum likelihood.

Each draw is the most probable cells of data with noise once more, and of a prior around cells
drawn from it. For a linear model that is exact; here it keeps to shapes that explain the data.
"""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.smooth.descent import SmoothDescent
from dipy_spinverse.cell_search.smooth.forward import SmoothCells

# Deviation of a field far from walls, over the field: walls move, few appear. Cells of the prior
# alone have islands everywhere, of which derivatives at the walls know nothing.
_HELD = 0.03
_SHORTER = 1 / 3  # of a step in vain


def drawn(
    rng: np.random.Generator, cells: SmoothCells, descend: SmoothDescent, n_steps: int
) -> SmoothCells:
    """Cells like the most probable ones.

    Parameters
    ----------
    rng : numpy.random.Generator
    cells : SmoothCells
        The most probable ones; data are what they foretell, with noise once more.
    descend : SmoothDescent
        Its model of derivatives gives the signals, too.
    n_steps : int
    """
    target, model, prior = descend.target, descend.slopes, descend.prior
    precision, expected = _precision(cells, prior), target.expected(model.signals(cells))
    around = np.linalg.solve(np.linalg.cholesky(precision).T, rng.standard_normal(len(precision)))
    wanted = expected + rng.standard_normal(len(expected))
    least, change, step = np.inf, np.zeros(len(around)), np.zeros(len(around))
    for _ in range(n_steps):
        signals, jacobian = model.linear(cells.moved(change + step))
        residual, away = wanted - target.expected(signals), around - change - step
        misfit = residual @ residual + away @ precision @ away
        if misfit < least:
            least, change = misfit, change + step
            slopes = target.expected(jacobian.T).T
            uphill = slopes.T @ residual + precision @ away
            step = np.linalg.solve(precision + slopes.T @ slopes, uphill)
        else:
            step = _SHORTER * step
    return cells.moved(change)


def _precision(cells, prior):
    """Inverse covariance (n + C, n + C) of the prior around cells whose walls may move."""
    basis = prior.raster[1]
    field = basis @ cells.z + prior.mean
    far = np.abs(field) > prior.length / 2
    # Points of the raster repeat each other within a length.
    independent = np.prod(prior.box_um) / len(basis) / (np.sqrt(np.pi) * prior.length) ** 3
    held = basis[far] / (_HELD * np.abs(field[far, None]))
    precision, n = np.eye(len(cells.unknowns)), len(cells.z)
    precision[:n, :n] += independent * held.T @ held
    return precision
