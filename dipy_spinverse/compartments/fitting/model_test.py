"""Tests of a model by the residual of its fit: shell by shell, and of each fixed value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import chi2, norm
from torch import Tensor

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.fitting.amplitudes import predicted_signals
from dipy_spinverse.compartments.fitting.parameters import physical_values
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    Solution,
    gaussian_approximation,
    scaled_derivatives,
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
_LEAST_SHIFT = 0.05
# Curvature of the signals shifts the score of each voxel, times the value, by at most 0.64 in 4000
# voxels of ActiveAx (benchmarks/notes/compartments.md).
_CURVATURE_BIAS = 0.75
# Bounds of a better value, over the fixed one: the linearisation does not extend further.
_LEAST_RATIO, _LARGEST_RATIO = 0.5, 2.0
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
    """Rao's score (V, K) and its information in each fixed value, with all fitted ones free."""
    values = physical_values(problem.definition, solution.parameters)
    predicted, derivatives = solution.predicted, []
    for name in problem.definition.fixed:
        step = _DIFFERENCE * values[name]
        basis_signals = problem.basis_signals_of(values | {name: values[name] + step})
        shifted = predicted_signals(basis_signals, solution.amplitudes)
        derivatives.append((shifted - predicted) / step[:, None])
    derivative = torch.stack(derivatives, dim=1) * gaussian.inverse_sd[:, None]
    derivative = derivative - derivative @ tangents.mT @ tangents
    residual = (gaussian.values - predicted) * gaussian.inverse_sd
    score = (derivative @ residual[..., None])[..., 0].nan_to_num().numpy()
    return {"_score": score, "_information": (derivative**2).sum(dim=2).nan_to_num().numpy()}


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
    fixed: Mapping[str, float], score: np.ndarray, information: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, dict[str, float]]:
    """Voxels (V,) whose neighbourhoods reject a fixed value, and the value that is supported.

    Score and information (V, K) are those of voxels of the `mask` (...), which the model explains
    otherwise. The value is one step of Newton for the one that the whole image rejects most
    clearly, if it rejects one; others may follow it. One that had to leave the bounds of the
    linearisation explains less, and comes last.
    """
    rejected, supported, largest = np.zeros(len(score), dtype=bool), {}, (False, 0.0)
    size = round(_NEIGHBOURS ** (1 / max(mask.ndim, 1)))
    count = _window_sum(np.ones(len(score)), mask, size)
    for k, (name, value) in enumerate(fixed.items()):
        pooled_score, pooled_information = (
            _window_sum(statistic[:, k], mask, size) for statistic in (score, information)
        )
        rejected |= _rejects(pooled_score, pooled_information, count, value, len(fixed))
        total_score, total_information = score[:, k].sum(), information[:, k].sum()
        if not _rejects(total_score, total_information, len(score), value, len(fixed)):
            continue
        newton = value + total_score / total_information
        within = float(np.clip(newton, _LEAST_RATIO * value, _LARGEST_RATIO * value))
        rank = within == newton, abs(total_score) / np.sqrt(total_information)
        if rank > largest:
            largest, supported = rank, {name: within}
    return rejected, supported


def _rejects(score, information, n_voxels, value, n_tests):
    """Whether score and information, summed over voxels, reject a fixed value."""
    threshold = norm.isf(0.5 * FALSE_REJECTION_RATE / n_tests)
    information = np.maximum(information, 0)
    noise, bias = threshold * np.sqrt(information), n_voxels * _CURVATURE_BIAS / value
    return np.abs(score) > np.maximum(noise + bias, _LEAST_SHIFT * value * information)


def _window_sum(values, mask, size):
    """Sums (V,) over windows of an image."""
    if mask.ndim == 0:
        return np.array([values.sum()])
    dense = np.zeros(mask.shape)
    dense[mask] = values
    return uniform_filter(dense, size, mode="constant")[mask] * size**mask.ndim
