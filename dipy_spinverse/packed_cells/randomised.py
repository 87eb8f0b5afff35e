"""Draws from posteriors: the likeliest places of randomised data and prior [1]_.

Data with their noise added once more, and a place of the prior instead of its centre, have a
likeliest place, which is found from that of the data within a few steps. In a linear model such
places are draws from the posterior; where it is curved they follow it, as no Gaussian around its
mode does. All voxels share their random numbers: a voxel's draws do not depend on the others.

References
----------
.. [1] Oliver, He and Reynolds, Proc. 5th Eur. Conf. Math. Oil Recovery (1996),
   https://doi.org/10.3997/2214-4609.201406884
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dipy_spinverse.inversion.levenberg_marquardt import Damping
from dipy_spinverse.packed_cells.measured import Measured
from dipy_spinverse.packed_cells.search import ClassProblem, Modes, minima
from dipy_spinverse.voxels.progress import stepwise

# With damping, in units of the prior's curvature, five steps lead further than eight without: the
# first would be too long. What the data do not tell still follows the prior's draw.
_MOST_STEPS = 5
_DAMPING = Damping(first=3.0, least=1e-3, largest=1e6, growth=8.0)
# Draws at once.
_ROWS = 4096


def randomised_draws(
    problem: ClassProblem,
    modes: Modes,
    voxel: np.ndarray,
    number: np.ndarray,
    noise_unknown: bool,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Places (N, P) and frames (N, 3, 3) of draws.

    Parameters
    ----------
    problem : ClassProblem
    modes : Modes
        Of all its voxels, and
    voxel : ndarray (N,) of int
        whose posterior each draw is from.
    number : ndarray (N,) of int
        Which of a voxel's draws it is.
    noise_unknown : bool
    n_draws : int
        Of every voxel, over all classes.
    rng : numpy Generator
    """
    known, p = problem.known, problem.tissue.n_parameters
    n_modes = known.damping.shape[1]
    noise = rng.standard_normal((n_draws, known.data.shape[1]))
    prior = rng.standard_normal((n_draws, p))
    freedom = max(known.n_used - p, 4)
    size = np.ones(n_draws)
    if noise_unknown:
        size = np.sqrt(freedom / rng.chisquare(freedom, n_draws))
    # Each starts from one of the minima, by their shares of the posterior.
    total = np.cumsum(modes.shares, axis=1)
    chosen = (rng.random(n_draws)[number, None] > total[voxel]).sum(axis=1)
    chosen = np.minimum(chosen, total.shape[1] - 1)
    # Last, mode by mode: voxels that are fitted together may have more of them.
    along = rng.standard_normal((n_modes, n_draws)).T
    parts = []
    for first in stepwise(range(0, len(voxel), _ROWS)):
        part = slice(first, first + _ROWS)
        v, k = voxel[part], number[part]
        again = _randomised(known, v, noise[k], along[k], size[k])
        own = replace(problem, known=again, centre=prior[k], offset=problem.offset[v])
        z, frames = modes.at(problem.tissue, v, chosen[part])
        found = minima(own, z, frames, np.arange(len(v)), _MOST_STEPS, _DAMPING, relative=False)
        parts.append(found[:2])
    places, frames = (np.concatenate(each) for each in zip(*parts, strict=True))
    return places, frames


def _randomised(known: Measured, voxel, noise, along, size):
    """Measurements with noise, and with errors of the model, once more."""
    own = known.of_voxels(voxel)
    # 1 / (1 - damping) is the standard deviation along a mode, noise included.
    error = np.sqrt(np.maximum(1 / (1 - own.damping) ** 2 - 1, 0))
    white = noise + np.einsum("nk,nkm->nm", along * error, own.modes)
    sd = np.where(own.inverse_sd > 0, 1 / np.maximum(own.inverse_sd, 1e-300), 0)
    return replace(own, data=own.data + sd * white * size[:, None])
