"""Posterior samples by randomise-then-optimise, also known as randomised maximum likelihood [1]_.

Each sample is the maximum a posteriori estimate for data with another realisation of their noise,
and for a prior whose mean is a sample of the prior. In linear models such estimates are samples of
the posterior; in nonlinear ones they follow its curvature, which a Gaussian at the mode does not.
Each search has another random initial value, since searches from the mode end too close to it.

Where signals are curved functions of a parameter, too many estimates lie on its steep side: their
density is that of the posterior multiplied by the square root of the determinant of the curvature,
and by the exponential of half the squared misfit along the tangent space. Estimates are resampled
with the weights that follow, tempered because few searches would carry them. Around each, samples
are drawn from the Gaussian of its curvature, which makes up for the searches' small number. Failed
searches are replaced. All voxels share their random numbers, so that the samples of a voxel do not
depend on the others.

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
# Samples per search, and the power of the weights of searches (benchmarks/notes/emulator.md).
_PER_SEARCH, _WEIGHT_POWER = 3, 0.5
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
    noise_scale = _noise_scale(noise_known, freedom, n_samples, rng)
    # Each search starts from one of the minima, chosen by their weights.
    cumulative = np.cumsum(minima.weights, axis=1)
    minimum = (rng.random(n_samples)[number, None] > cumulative[voxel]).sum(axis=1)
    minimum = np.minimum(minimum, cumulative.shape[1] - 1)
    # Drawn last, direction by direction: their number may depend on the other voxels.
    model_noise = rng.standard_normal((n_directions, n_samples)).T
    searches = np.flatnonzero(_rank(voxel) % _PER_SEARCH == 0)
    blocks = []
    for start in stepwise(range(0, len(searches), _SEARCHES_AT_ONCE)):
        rows = searches[start : start + _SEARCHES_AT_ONCE]
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
        blocks.append(estimates[:2])
    z, frames = (np.concatenate(values) for values in zip(*blocks, strict=True))
    log_weight, covariances = _log_weights(posterior, z, frames, voxel[searches])
    search = _resampled(_WEIGHT_POWER * log_weight, voxel[searches], voxel)
    root = np.linalg.cholesky(covariances)[search]
    step = np.einsum("npq,nq->np", root, initial_noise[number])
    step = np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
    z, frames = tissue.moved(z[search], frames[search], step)
    z = np.clip(z, -LARGEST_Z, LARGEST_Z)
    row = _replacements(posterior, minima, z, frames, voxel)
    return z[row], frames[row]


def _noise_scale(noise_known, freedom, n, rng):
    """Factors (n,) that give normal noise of an estimated level Student's distribution."""
    return np.ones(n) if noise_known else np.sqrt(freedom / rng.chisquare(freedom, n))


def _rank(voxel):
    """Number (N,) of samples of the same voxel that precede each."""
    order = np.argsort(voxel, kind="stable")
    rank = np.empty_like(voxel)
    rank[order] = np.arange(len(voxel)) - np.searchsorted(voxel[order], voxel[order])
    return rank


def _log_weights(posterior, z, frames, voxel):
    """Log of posterior over sampling density (S,), and covariances of searches of voxels (S,)."""
    cost, gradient, hessian = posterior.expansion(z, frames, voxel)
    covariances = np.linalg.inv(hessian)
    along_tangent = np.einsum("np,npq,nq->n", gradient, covariances, gradient)
    return 0.5 * (along_tangent + np.linalg.slogdet(covariances)[1]) - cost, covariances


def _resampled(log_weight, voxel, sample_voxel):
    """Search (N,) of each sample, by systematic resampling of the searches of each voxel (S,)."""
    order = np.argsort(voxel, kind="stable")
    voxels, start, n_searches = np.unique(voxel[order], return_index=True, return_counts=True)
    largest = np.maximum.reduceat(log_weight[order], start)
    weight = np.exp(log_weight[order] - np.repeat(largest, n_searches))
    cumulative = np.cumsum(weight / np.repeat(np.add.reduceat(weight, start), n_searches))
    row = np.searchsorted(voxels, sample_voxel)
    target = row + (_rank(sample_voxel) + 0.5) / np.bincount(row)[row]
    # Rounded sums must not lead to another voxel's searches.
    last = start + n_searches - 1
    return order[np.clip(np.searchsorted(cumulative, target), start[row], last[row])]


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
