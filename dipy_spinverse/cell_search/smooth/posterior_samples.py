"""Cells drawn from the posterior around the most probable ones: randomised maximum likelihood.

Each draw is the most probable cells of data with noise once more, and of a prior around cells
drawn from it. For a linear model that is exact; here it keeps to shapes that explain the data.
"""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.smooth.descent import SmoothDescent
from dipy_spinverse.cell_search.smooth.forward import SmoothCells

# Draws differ from the best cells by this power of the variance of a mode: by a field of twice the
# prior's length and a third of its deviation. With the prior's own, islands grow, and walls become
# rougher than those of cells, by up to a tenth of their area.
_SMOOTHER = 1.5
_SHORTER = 1 / 3  # of a step in vain


def posterior_sample(
    rng: np.random.Generator,
    cells: SmoothCells,
    descend: SmoothDescent,
    n_steps: int,
    error: float,
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
    error : float
        Of the data, in units of their noise.
    """
    target, model = descend.target, descend.slopes
    spread = np.append(descend.prior.variances**_SMOOTHER, np.ones(len(cells.leaks)))
    around = spread * rng.standard_normal(len(spread))
    expected = target.expected(model.signals(cells))
    wanted = expected + error * rng.standard_normal(len(expected))
    least, change, step = np.inf, np.zeros(len(around)), np.zeros(len(around))
    for _ in range(n_steps):
        signals, jacobian = model.linear(cells.moved(change + step))
        residual = (wanted - target.expected(signals)) / error
        away = (around - change - step) / spread
        misfit = residual @ residual + away @ away
        if misfit < least:
            least, change = misfit, change + step
            slopes = spread * target.expected(jacobian.T).T / error
            system = np.eye(len(slopes)) + slopes @ slopes.T
            # What is foretold to be left, of the residual after steps back to the prior's.
            left = np.linalg.solve(system, residual - slopes @ away)
            step = spread * (away + slopes.T @ left)
        else:
            step = _SHORTER * step
    return cells.moved(change)
