"""Tests of a model by the residual of its fit: shell by shell, and of each fixed value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from zlib import crc32

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import chi2, mstats, norm
from torch import Tensor

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.fitting.amplitudes import predicted_signals
from dipy_spinverse.compartments.fitting.parameters import physical_values
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    Solution,
    gaussian_approximation,
    scaled_derivatives,
    variable_projection,
)
from dipy_spinverse.voxels.rician import rician_excess, rician_variance
from dipy_spinverse.voxels.shells import harmonics, shells_of
from dipy_spinverse.voxels.status import FALSE_REJECTION_RATE

_LEAST_VARIANCE = 0.4  # of magnitudes, over that of a channel; pure noise has 2 - pi / 2 = 0.43
# Of the harmonics of a shell in which a wrong model shows; two fibres taken for one have most of
# their misfit in orders 2 and 4.
_ORDER = 4
_LEAST_FREEDOM = 0.5  # degrees of freedom of a shell
# Voxels of a neighbourhood, and relative error of a fixed value that is never reported; by hand.
_NEIGHBOURS = 125
_LEAST_SHIFT = 0.03
# Curvature of the signals shifts the score of each voxel, times the value, by at most 0.64 in 4000
# voxels of ActiveAx (benchmarks/notes/compartments.md).
_CURVATURE_BIAS = 0.75
# Bounds of a better value, over the fixed one: the linearisation does not extend further.
_LEAST_RATIO, _LARGEST_RATIO = 0.5, 2.0
# One voxel of 10 is simulated and fitted again, a tenth more work without draws; eight give a
# standard error. By hand.
_BOOTSTRAP_STRIDE, _LEAST_SIMULATIONS = 10, 8
_TRIMMED = 0.05  # share of the largest, and of the smallest, differences left out; by hand
_DIFFERENCE = 1e-2  # of a fixed value; truncation error of its derivative about as much


def model_test(
    problem: SeparableProblem, solution: Solution, acquisition: BaseAcquisition
) -> dict[str, np.ndarray | float]:
    """Statistics of the worst shell, and score and information of the fixed values."""
    predicted = solution.predicted
    gaussian = gaussian_approximation(problem, predicted)
    tangents = _tangents(problem, solution, gaussian.inverse_sd)
    result = _worst_shell_statistic(problem, acquisition, predicted, tangents)
    if problem.definition.fixed:
        result |= _score_statistics(problem, solution, gaussian, tangents)
    return result


def _tangents(problem, solution, inverse_sd):
    """Orthonormal basis (V, P, M), or zeros, of the changes over the noise that a fit can make.

    Scalars at their bounds and empty pools do not move.
    """
    derivatives, unit = scaled_derivatives(problem, solution, inverse_sd), solution.parameters.unit
    fixed = torch.zeros_like(derivatives[..., 0], dtype=torch.bool)
    fixed[:, : unit.shape[1]] = (unit <= 0) | (unit >= 1)
    fixed[:, -solution.amplitudes.shape[1] :] = solution.amplitudes <= 0
    derivatives[fixed] = 0
    gram = (derivatives @ derivatives.mT).double()
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)
    gram = gram + torch.diag_embed(1e-6 * diagonal + 1e-12)
    factor, _ = torch.linalg.cholesky_ex(gram)
    inverse = torch.linalg.inv(factor).nan_to_num().to(derivatives.dtype)
    return inverse @ derivatives


def _worst_shell_statistic(problem, acquisition, predicted, tangents):
    """Reduced chi-square of the worst shell's residual in its low harmonics.

    Noise is spread over all harmonics, the misfit of a model over the low ones. Their degrees of
    freedom are less what the fit took. Rician magnitudes have their own mean and variance.
    """
    residual = standardised_residual(problem, predicted)
    kept = None if problem.n_averages is None else (problem.n_averages > 0).numpy()
    tangents, squares, freedom = tangents.numpy(), [], []
    for shell in shells_of(acquisition):
        directions = acquisition.directions[shell.rows]
        basis = np.linalg.qr(harmonics(min(shell.order, _ORDER), directions))[0]
        squares.append(((residual[:, shell.rows] @ basis) ** 2).sum(axis=1))
        fitted = tangents[:, :, shell.rows] @ basis.astype(tangents.dtype)
        lost = (fitted**2).sum(axis=(1, 2))
        n = basis.shape[1] if kept is None else kept[:, shell.rows] @ (basis**2).sum(axis=1)
        freedom.append(np.maximum(n - lost, _LEAST_FREEDOM))
    if not squares:
        return {}
    square, freedoms = np.stack(squares), np.stack(freedom)
    shell_index = chi2.logsf(square, freedoms).argmin(axis=0), np.arange(len(residual))
    return {
        "worst_reduced_chi_square": square[shell_index] / freedoms[shell_index],
        "worst_degrees_of_freedom": freedoms[shell_index],
        "n_groups": float(len(squares)),
    }


def _score_statistics(problem, solution, gaussian, tangents):
    """Rao's score (V, K) of fixed values, its information and bias, infinite in most voxels."""
    derivative = _free_derivatives(problem, solution, gaussian, tangents)
    score = _score(derivative, gaussian, solution.predicted).numpy()
    bias = np.full_like(score, np.inf)
    rows = np.arange(_BOOTSTRAP_STRIDE // 2, len(score), _BOOTSTRAP_STRIDE)
    if len(rows):
        bias[rows] = _bootstrap_bias(
            problem.of_voxels(rows), solution.of_voxels(rows), derivative[rows], tangents
        )
    information = (derivative**2).sum(dim=2).nan_to_num().numpy()
    return {"_score": score, "_information": information, "_score_bias": bias}


def _bootstrap_bias(problem, solution, derivative, tangents):
    """Score (V, K) after a fit of simulated signals, less that at their parameters (mean 0)."""
    simulated = replace(problem, data=_simulated(problem, solution.predicted))
    at_truth = gaussian_approximation(simulated, solution.predicted)
    fit = variable_projection(simulated, solution.parameters)
    gaussian = gaussian_approximation(simulated, fit.predicted)
    tangents = _tangents(simulated, fit, gaussian.inverse_sd)
    score = _score(_free_derivatives(simulated, fit, gaussian, tangents), gaussian, fit.predicted)
    return (score - _score(derivative, at_truth, solution.predicted)).numpy()


def _simulated(problem, predicted):
    """Measurements (V, M) of predicted signals with noise."""
    rng = np.random.default_rng(crc32(problem.data.numpy().tobytes()))
    noise = problem.noise[:, None] * torch.from_numpy(
        rng.standard_normal((2, *predicted.shape))
    ).to(predicted)
    return torch.hypot(predicted + noise[0], noise[1]) if problem.rician else predicted + noise[0]


def _score(derivative, gaussian, predicted):
    residual = (gaussian.values - predicted) * gaussian.inverse_sd
    return (derivative @ residual[..., None])[..., 0].nan_to_num()


def _free_derivatives(problem, solution, gaussian, tangents):
    """Derivatives (V, K, M) over the noise in the fixed values, with all fitted ones free."""
    values = physical_values(problem.definition, solution.parameters)
    predicted, derivatives = solution.predicted, []
    for name in problem.definition.fixed:
        step = _DIFFERENCE * values[name]
        basis_signals = problem.basis_signals_of(values | {name: values[name] + step})
        shifted = predicted_signals(basis_signals, solution.amplitudes)
        derivatives.append((shifted - predicted) / step[:, None])
    derivative = torch.stack(derivatives, dim=1) * gaussian.inverse_sd[:, None]
    return derivative - derivative @ tangents.mT @ tangents


def standardised_residual(problem: SeparableProblem, predicted: Tensor) -> np.ndarray:
    """Residuals (V, M) over the standard deviation of the measurements, 0 where left out."""
    sigma = problem.noise[:, None]
    amplitude = (predicted / sigma).numpy()
    residual = (problem.data / sigma).numpy() - amplitude
    if problem.rician:
        variance = rician_variance(amplitude).clip(_LEAST_VARIANCE, 1)
        residual = (residual - rician_excess(amplitude)) / np.sqrt(variance)
    return problem.weighted(torch.from_numpy(residual)).numpy()


def pooled_score_test(
    fixed: Mapping[str, float],
    score: np.ndarray,
    information: np.ndarray,
    score_bias: np.ndarray,
    mask: np.ndarray,
) -> tuple[np.ndarray, dict[str, float]]:
    """Voxels (V,) whose neighbourhoods reject a fixed value, and the value that is supported.

    Score, information and bias (V, K) are those of voxels of the `mask` (...), which the model
    explains otherwise. If the whole image rejects a value, that whose change explains most is
    returned after one step of Newton; others may follow it. One that had to leave the bounds of
    the linearisation explains less, and comes last.
    """
    rejected, image_rejects = np.zeros(len(score), dtype=bool), np.False_
    supported, largest = {}, (False, 0.0)
    size = round(_NEIGHBOURS ** (1 / max(mask.ndim, 1)))
    count = _window_sum(np.ones(len(score)), mask, size)
    for k, (name, value) in enumerate(fixed.items()):
        pooled_score, pooled_information = (
            _window_sum(statistic[:, k], mask, size) for statistic in (score, information)
        )
        limit, least = count * _CURVATURE_BIAS / value, _LEAST_SHIFT * value
        rejected |= _rejects(pooled_score, pooled_information, 0.0, limit, least, len(fixed))
        bias, error, limit = len(score) * _mean_bias(score_bias[:, k], value)
        total_score, total_information = score[:, k].sum() - bias, information[:, k].sum()
        image_rejects |= _rejects(total_score, total_information, error, limit, least, len(fixed))
        newton = value + total_score / max(total_information, 1e-12)
        within = float(np.clip(newton, _LEAST_RATIO * value, _LARGEST_RATIO * value))
        # Without the correction, whose error is that of few simulations.
        rank = within == newton, abs(score[:, k].sum()) / np.sqrt(max(total_information, 1e-12))
        if rank > largest:
            largest, supported = rank, {name: within}
    return rejected, supported if image_rejects else {}


def _mean_bias(bias, value):
    """Mean bias of a voxel's score, its standard error, and its limit if it is unknown."""
    bias = bias[np.isfinite(bias)]
    if len(bias) < _LEAST_SIMULATIONS:
        return np.array([0.0, 0.0, _CURVATURE_BIAS / value])
    # Without the largest: fits of few voxels are far from linear.
    limits = (_TRIMMED, _TRIMMED)
    mean, error = mstats.trimmed_mean(bias, limits), mstats.trimmed_stde(bias, limits)
    return np.array([float(mean), float(error), 0.0])


def _rejects(score, information, error, limit, least_shift, n_tests):
    """Whether summed score and information reject a value; the score has a bias up to `limit`."""
    threshold = norm.isf(0.5 * FALSE_REJECTION_RATE / n_tests)
    information = np.maximum(information, 0)
    noise = threshold * np.hypot(np.sqrt(information), error)
    return np.abs(score) > np.maximum(noise + limit, least_shift * information)


def _window_sum(values, mask, size):
    """Sums (V,) over windows of an image."""
    if mask.ndim == 0:
        return np.array([values.sum()])
    dense = np.zeros(mask.shape)
    dense[mask] = values
    return uniform_filter(dense, size, mode="constant")[mask] * size**mask.ndim
