"""Posterior samples by randomise-then-optimise, also known as randomised maximum likelihood [1]_.

Each sample is the maximum a posteriori estimate for data with another realisation of their noise,
and for a prior whose mean is a sample of the prior. In linear models such estimates are samples of
the posterior; in nonlinear ones they follow its curvature, which a Gaussian at the mode does not.
Each search has another random initial value, since searches from the mode end too close to it.
Around each estimate further samples are drawn from the Gaussian of its curvature, which also makes
up for intervals that randomise-then-optimise leaves too narrow. Failed searches are replaced. All
voxels share their random numbers, so that the samples of a voxel do not depend on the others.

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
from dipy_spinverse.packed_cells.likelihood import TissueData
from dipy_spinverse.packed_cells.local_minima import (
    ClassPosterior,
    ClassSearchBudget,
    LocalMinima,
    minimise_costs,
)
from dipy_spinverse.packed_cells.tissue_classes import LARGEST_Z
from dipy_spinverse.voxels.progress import stepwise

# Of the numbers that were compared, these gave intervals with the best coverage of tissues of the
# prior at SNR 50, 150 and 500 (benchmarks/notes/emulator.md).
#
# Damping is in units of the prior's curvature: five steps reach lower costs than eight undamped
# ones, of which the first are too long, and directions that the data do not determine follow the
# sample of the prior.
_BUDGET = ClassSearchBudget(5, 0.01)
_DAMPING = Damping(initial=3.0, minimum=1e-3, maximum=1e6, growth=8.0)
# Initial values are samples of a linear model around a minimum, with the variance of the noise
# multiplied by this, limited to so many prior standard deviations.
_INITIAL_VARIANCE = 50.0
_LARGEST_STEP = 3.0
# Samples beyond this quantile of the cost belong to failed searches.
_COST_QUANTILE = 0.99
# Samples per search: its estimate, and others from the Gaussian around it.
_PER_SEARCH = 5
_SEARCHES_AT_ONCE = 4096


def posterior_samples(
    posterior: ClassPosterior, minima: LocalMinima, voxel: np.ndarray, number: np.ndarray,
    noise_known: bool, n_samples: int, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """z (N, P) and frames (N, 3, 3) of posterior samples of one class.

    Sample n is the number[n]-th of the `n_samples` that voxel[n] has over all classes.
    """
    data, tissue = posterior.data, posterior.tissue
    n_directions = data.damping.shape[1]
    noise = rng.standard_normal((n_samples, data.measured.shape[1]))
    prior_mean, initial_noise = rng.standard_normal((2, n_samples, tissue.n_parameters))
    freedom = max(data.n_used - tissue.n_parameters, 4)
    noise_scale = np.ones(n_samples)
    if not noise_known:
        noise_scale = np.sqrt(freedom / rng.chisquare(freedom, n_samples))
    # Each search starts from one of the minima, chosen by their weights.
    cumulative = np.cumsum(minima.weights, axis=1)
    minimum = (rng.random(n_samples)[number, None] > cumulative[voxel]).sum(axis=1)
    minimum = np.minimum(minimum, cumulative.shape[1] - 1)
    # Drawn last, direction by direction: their number may depend on the other voxels.
    model_noise = rng.standard_normal((n_directions, n_samples)).T
    leaders, search = np.unique(_leaders(voxel), return_inverse=True)
    blocks = []
    for start in stepwise(range(0, len(leaders), _SEARCHES_AT_ONCE)):
        rows = leaders[start : start + _SEARCHES_AT_ONCE]
        v, k = voxel[rows], number[rows]
        randomised = replace(
            posterior,
            data=_randomised(data, v, noise[k], model_noise[k], noise_scale[k]),
            prior_mean=prior_mean[k],
            correction=posterior.correction[v],
        )
        z, frames = _initial_values(
            tissue, minima, v, minimum[rows], prior_mean[k], initial_noise[k]
        )
        estimates = minimise_costs(
            randomised, z, frames, np.arange(len(v)), _BUDGET, _DAMPING, relative_damping=False
        )
        blocks.append(estimates[:3])
    z, frames, covariances = (
        np.concatenate(values)[search] for values in zip(*blocks, strict=True)
    )
    step = np.einsum("npq,nq->np", np.linalg.cholesky(covariances), initial_noise[number])
    step = np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
    step[leaders] = 0
    z, frames = tissue.moved(z, frames, step)
    z = np.clip(z, -LARGEST_Z, LARGEST_Z)
    row = _replacements(posterior, minima, z, frames, voxel)
    return z[row], frames[row]


def _leaders(voxel):
    """Index (N,) of the sample of the same voxel whose search each sample shares."""
    order = np.argsort(voxel, kind="stable")
    index, sorted_voxels = np.arange(len(voxel)), voxel[order]
    rank = index - np.searchsorted(sorted_voxels, sorted_voxels)
    leaders = np.empty_like(voxel)
    leaders[order] = order[index - rank % _PER_SEARCH]
    return leaders


def _initial_values(tissue, minima, voxel, minimum, prior_mean, noise):
    """z (N, P) and frames of samples of the linear model around minima, with more noise."""
    pairs, pair = np.unique([voxel, minimum], axis=1, return_inverse=True)
    information = np.linalg.inv(minima.covariances[*pairs]) - np.eye(prior_mean.shape[1])
    precision, axes = (values[pair.reshape(-1)] for values in np.linalg.eigh(information))
    precision = np.maximum(precision, 0) / _INITIAL_VARIANCE
    deviation = np.einsum("npq,np->nq", axes, prior_mean - minima.z[voxel, minimum])
    # Rotated into the axes and back, noise does not depend on their signs, which rounding decides.
    noise = np.einsum("npq,np->nq", axes, noise)
    step = (deviation + np.sqrt(precision) * noise) / (precision + 1)
    step = np.clip(np.einsum("npq,nq->np", axes, step), -_LARGEST_STEP, _LARGEST_STEP)
    z, frames = tissue.moved(*minima.at(tissue, voxel, minimum), step)
    return np.clip(z, -LARGEST_Z, LARGEST_Z), frames


def _replacements(posterior, minima, z, frames, voxel):
    """Index (N,) of the sample that each becomes: itself, or another if its search failed.

    Costs of samples exceed the minimum by about half a chi-square variable with as many degrees of
    freedom as parameters. The better half of a voxel's samples is always kept.
    """
    cost = posterior.cost(z, frames, voxel)
    voxels = np.arange(len(minima.frames))
    best_minima = minima.at(posterior.tissue, voxels, np.zeros_like(voxels))
    min_cost = posterior.cost(*best_minima, voxels)
    np.minimum.at(min_cost, voxel, cost)
    order = np.lexsort((cost, voxel))
    sorted_voxels = voxel[order]
    start = np.searchsorted(sorted_voxels, sorted_voxels)
    rank = np.arange(len(voxel)) - start
    difference = cost[order] - min_cost[sorted_voxels]
    plausible = (difference < 0.5 * chi2.ppf(_COST_QUANTILE, z.shape[1])) | (
        2 * rank < np.bincount(voxel)[sorted_voxels]
    )
    n_kept = np.bincount(sorted_voxels, plausible).astype(int)[sorted_voxels]
    replacements = np.empty(len(voxel), int)
    replacements[order] = order[start + rank % n_kept]
    return replacements


def _randomised(data: TissueData, voxel, noise, model_noise, noise_scale):
    """Data of voxels (N,) plus another realisation of the noise and of the model's errors."""
    data = data.of_voxels(voxel)
    # 1 / (1 - damping) is the standard deviation of noise and model errors together.
    model_sd = np.sqrt(np.maximum(1 / (1 - data.damping) ** 2 - 1, 0))
    whitened = noise + np.einsum("nk,nkm->nm", model_noise * model_sd, data.error_directions)
    sd = np.where(data.inverse_sd > 0, 1 / np.maximum(data.inverse_sd, 1e-300), 0)
    return replace(data, measured=data.measured + sd * whitened * noise_scale[:, None])
