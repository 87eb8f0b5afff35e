"""Posterior samples around the most probable cells, by randomised maximum likelihood.

Each sample is the most probable cells of data with a second realisation of the noise, and of a
prior around cells drawn from it. For a linear model that is exact (Chen and Oliver, Math. Geosci.
44, 2012, https://doi.org/10.1007/s11004-011-9376-z); here samples are approximate, but explain the
data.
"""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.smooth.descent import SmoothDescent
from dipy_spinverse.cell_search.smooth.forward import SmoothCells

# Samples differ from the best cells by this power of the variance of a mode: by a field of twice
# the prior's length and a third of its deviation. With the prior's own, islands grow, and walls
# become rougher than those of cells, by up to a tenth of their area
# (benchmarks/notes/walls_off_grid.md).
_VARIANCE_POWER = 1.5
_STEP_REDUCTION = 1 / 3  # of a step that failed


def posterior_sample(
    rng: np.random.Generator,
    cells: SmoothCells,
    descend: SmoothDescent,
    n_steps: int,
    error: float,
) -> SmoothCells:
    """A sample around the most probable cells, for errors of the data in units of their noise.

    Data are signals of the most probable cells, with noise; the model of derivatives gives them.
    """
    target, model = descend.target, descend.slope_model
    variances = descend.prior.variances**_VARIANCE_POWER
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
