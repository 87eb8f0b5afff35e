"""Draws from posteriors: the likeliest places of randomised data and prior [1]_.

Data with their noise added once more, and a place of the prior instead of its centre, have a
likeliest place. In a linear model such places are draws from the posterior; where it is curved
they follow it, as no Gaussian around its mode does, if each search starts from a place of its own:
searches from the mode end too close to it. Around each such place a few more draws are made from
the Gaussian of its curvature, which also widens what searches leave too narrow. Those that get
stuck are left out. All voxels share their random numbers: a voxel's draws do not depend on the
others.

References
----------
.. [1] Oliver, He and Reynolds, Proc. 5th Eur. Conf. Math. Oil Recovery (1996),
   https://doi.org/10.3997/2214-4609.201406884
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import chi2

from dipy_spinverse.inversion.levenberg_marquardt import Damping
from dipy_spinverse.packed_cells.likelihood import VoxelData
from dipy_spinverse.packed_cells.local_minima import (
    ClassProblem,
    LocalMinima,
    SearchBudget,
    costs,
    minimise,
)
from dipy_spinverse.packed_cells.tissue_classes import LARGEST_Z
from dipy_spinverse.voxels.progress import stepwise

# With damping, in units of the prior's curvature, five steps lead further than eight without: the
# first would be too long. What the data do not tell still follows the prior's draw.
_EFFORT = SearchBudget(5, 0.01)
# Starts are draws from a linear model around the mode, with that times the variance of the noise.
_LESS_TOLD = 50.0
_LARGEST_START = 3.0
# Of the posterior: draws that are less likely than that part of it are stuck.
_LIKELY = 0.99
# Draws of which one is where a search ended, and the others are from the Gaussian there.
_PER_SEARCH = 5
_DAMPING = Damping(initial=3.0, minimum=1e-3, maximum=1e6, growth=8.0)
# Draws at once.
_ROWS = 4096


def posterior_samples(
    problem: ClassProblem,
    modes: LocalMinima,
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
    modes : LocalMinima
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
    prior, start = rng.standard_normal((2, n_draws, p))
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
    leads, search = np.unique(_first_of_each_search(voxel), return_inverse=True)
    parts = []
    for first in stepwise(range(0, len(leads), _ROWS)):
        part = leads[first : first + _ROWS]
        v, k = voxel[part], number[part]
        again = _randomised(known, v, noise[k], along[k], size[k])
        own = replace(problem, known=again, centre=prior[k], offset=problem.offset[v])
        z, frames = _starts(problem.tissue, modes, v, chosen[part], prior[k], start[k])
        found = minimise(own, z, frames, np.arange(len(v)), _EFFORT, _DAMPING, relative=False)
        parts.append(found[:3])
    places, frames, covariances = (
        np.concatenate(each)[search] for each in zip(*parts, strict=True)
    )
    step = np.einsum("npq,nq->np", np.linalg.cholesky(covariances), start[number])
    step = np.clip(step, -_LARGEST_START, _LARGEST_START)
    step[leads] = 0
    places, frames = problem.tissue.moved(places, frames, step)
    places = np.clip(places, -LARGEST_Z, LARGEST_Z)
    row = _not_stuck(problem, modes, places, frames, voxel)
    return places[row], frames[row]


def _first_of_each_search(voxel):
    """Of each draw, the one (N,) of its voxel whose search it shares."""
    order = np.argsort(voxel, kind="stable")
    place, ranked = np.arange(len(voxel)), voxel[order]
    rank = place - np.searchsorted(ranked, ranked)
    first = np.empty_like(voxel)
    first[order] = order[place - rank % _PER_SEARCH]
    return first


def _starts(tissue, modes, voxel, mode, prior, noise):
    """Places (N, P) and frames of draws from a linear model around minima, widened."""
    pair, which = np.unique([voxel, mode], axis=1, return_inverse=True)
    told = np.linalg.inv(modes.covariances[*pair]) - np.eye(prior.shape[1])
    precision, axes = (each[which.reshape(-1)] for each in np.linalg.eigh(told))
    precision = np.maximum(precision, 0) / _LESS_TOLD
    apart = np.einsum("npq,np->nq", axes, prior - modes.places[voxel, mode])
    # Turned into the axes and back, noise does not feel their signs, which rounding decides.
    noise = np.einsum("npq,np->nq", axes, noise)
    step = np.einsum(
        "npq,nq->np", axes, (apart + np.sqrt(precision) * noise) / (precision + 1)
    )  # fmt: skip
    step = np.clip(step, -_LARGEST_START, _LARGEST_START)
    z, frames = tissue.moved(*modes.at(tissue, voxel, mode), step)
    return np.clip(z, -LARGEST_Z, LARGEST_Z), frames


def _not_stuck(problem, modes, places, frames, voxel):
    """Row (N,) that stands for each draw: its own, or another of its voxel.

    Costs of draws exceed the least by about half a chi-square of as many degrees of freedom as
    there are parameters. The better half of a voxel's draws always counts.
    """
    cost = costs(problem, places, frames, voxel)
    every, best = np.arange(len(modes.frames)), np.zeros(len(modes.frames), int)
    least = costs(problem, *modes.at(problem.tissue, every, best), every)
    np.minimum.at(least, voxel, cost)
    order = np.lexsort((cost, voxel))
    ranked = voxel[order]
    first = np.searchsorted(ranked, ranked)
    rank = np.arange(len(voxel)) - first
    excess = cost[order] - least[ranked]
    counts = (excess < 0.5 * chi2.ppf(_LIKELY, places.shape[1])) | (
        2 * rank < np.bincount(voxel)[ranked]
    )
    n_left = np.bincount(ranked, counts).astype(int)[ranked]
    row = np.empty(len(voxel), int)
    row[order] = order[first + rank % n_left]
    return row


def _randomised(known: VoxelData, voxel, noise, along, size):
    """Measurements with noise, and with errors of the model, once more."""
    own = known.of_voxels(voxel)
    # 1 / (1 - damping) is the standard deviation along a mode, noise included.
    error = np.sqrt(np.maximum(1 / (1 - own.damping) ** 2 - 1, 0))
    white = noise + np.einsum("nk,nkm->nm", along * error, own.modes)
    sd = np.where(own.inverse_sd > 0, 1 / np.maximum(own.inverse_sd, 1e-300), 0)
    return replace(own, data=own.data + sd * white * size[:, None])
