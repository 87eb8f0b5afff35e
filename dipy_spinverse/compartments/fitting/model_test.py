"""What the residual of a fit says against its model: shell by shell, and of each known value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import chi2, norm
from torch import Tensor

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters, physical_values
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    predicted_signals,
    signal_jacobian,
)
from dipy_spinverse.compartments.posterior.amplitude_draws import (
    GaussianApproximation,
    gaussian_approximation,
)
from dipy_spinverse.voxels.rician import rician_excess, rician_variance
from dipy_spinverse.voxels.shells import harmonics, shells_of
from dipy_spinverse.voxels.status import REFUTED

_LEAST_VARIANCE = 0.4  # of magnitudes, over that of a channel: that of noise alone is 0.43
_ORDER = 4  # of the harmonics of a shell that a wrong model is looked for in
_LEAST_LEFT = 0.5  # degrees of freedom of a shell
# Voxels of a neighbourhood, and the shift of a known value below which it may be as it is.
_NEIGHBOURS = 125
_LEAST_SHIFT = 0.05
# What curvature of the signals moves the score of every voxel by, times the value, at most.
_BIAS = 0.75
# Of the value known: beyond them the slope does not lead.
_LEAST, _MOST = 0.5, 2.0
_DIFFERENCE = 1e-2  # of a known value


@dataclass(frozen=True, eq=False)
class LinearisedFit:
    """Signals near a fit, over the noise.

    Attributes
    ----------
    predicted : Tensor (V, M)
        In the units of the data.
    normal : NormalData
    taken : Tensor (V, P, M)
        Orthonormal rows, or zeros: what the parameters that are free to move change.
    """

    predicted: Tensor
    normal: GaussianApproximation
    taken: Tensor


def linearise(
    problem: SeparableProblem,
    place: NonlinearParameters,
    columns: Tensor,
    amplitudes: Tensor,
    sigma: Tensor,
) -> LinearisedFit:
    """Scalars at their bounds and pools that are empty do not move."""
    slopes = signal_jacobian(problem, place, columns, amplitudes)
    predicted = predicted_signals(columns, amplitudes)
    normal = gaussian_approximation(problem, predicted, sigma)
    free = torch.ones_like(slopes[..., :1])
    free[:, : place.unit.shape[1], 0] = ((place.unit > 0) & (place.unit < 1)).to(free.dtype)
    changes = torch.cat([free * slopes, (amplitudes > 0)[..., None] * columns], dim=1)
    changes = changes * normal.inverse_sd[:, None]
    gram = (changes @ changes.mT).double()
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)
    gram = gram + torch.diag_embed(1e-6 * diagonal + 1e-12)
    factor, _ = torch.linalg.cholesky_ex(gram)
    inverse = torch.linalg.inv(factor).nan_to_num().to(changes.dtype)
    return LinearisedFit(predicted, normal, inverse @ changes)


def worst_shell_statistic(
    acquisition: BaseAcquisition, data: Tensor, sigma: Tensor, fit: LinearisedFit, *, rician: bool
) -> dict[str, np.ndarray | float]:
    """Excess of the worst shell's residual in its low harmonics, for the common status.

    Noise is spread over all harmonics, what a model misses over the low ones, less what the fit
    took of them.

    Parameters
    ----------
    acquisition : BaseAcquisition
    data : Tensor (V, M)
    sigma : Tensor (V,)
    fit : Linearised
    rician : bool
        Whether the data are magnitudes, whose mean is above the signal and whose scatter below
        the noise of a channel.
    """
    amplitude = (fit.predicted / sigma[:, None]).numpy()
    white = (data / sigma[:, None]).numpy() - amplitude
    if rician:
        variance = rician_variance(amplitude).clip(_LEAST_VARIANCE, 1)
        white = (white - rician_excess(amplitude)) / np.sqrt(variance)
    taken, squares, left = fit.taken.numpy(), [], []
    for rows, basis in _low_harmonics(acquisition):
        squares.append(((white[:, rows] @ basis) ** 2).sum(axis=1))
        lost = ((taken[:, :, rows] @ basis.astype(taken.dtype)) ** 2).sum(axis=(1, 2))
        left.append(np.maximum(basis.shape[1] - lost, _LEAST_LEFT))
    if not squares:
        return {}
    square, freedom = np.stack(squares), np.stack(left)
    worst = chi2.logsf(square, freedom).argmin(axis=0), np.arange(len(white))
    return {"worst_excess": square[worst] / freedom[worst], "worst_freedom": freedom[worst],
            "n_groups": float(len(squares))}  # fmt: skip


def _low_harmonics(acquisition):
    """Of each shell its rows, and an orthonormal basis (N, C) of low harmonics."""
    for shell in shells_of(acquisition):
        directions = acquisition.directions[shell.rows]
        yield shell.rows, np.linalg.qr(harmonics(min(shell.order, _ORDER), directions))[0]


def score_test(
    problem: SeparableProblem, place: NonlinearParameters, amplitudes: Tensor, fit: LinearisedFit
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and curvature (V, K) of the log-likelihood in each known value of the definition.

    With all that is fitted free to follow: the score test of Rao.
    """
    values, slopes = physical_values(problem.definition, place), []
    for name in problem.definition.fixed:
        step = _DIFFERENCE * values[name]
        shifted = problem.columns_of(values | {name: values[name] + step})
        slopes.append((predicted_signals(shifted, amplitudes) - fit.predicted) / step[:, None])
    slope = torch.stack(slopes, dim=1) * fit.normal.inverse_sd[:, None]
    slope = slope - slope @ fit.taken.mT @ fit.taken
    residual = (fit.normal.values - fit.predicted) * fit.normal.inverse_sd
    score = (slope @ residual[..., None])[..., 0]
    return score.nan_to_num().numpy(), (slope**2).sum(dim=2).nan_to_num().numpy()


def pooled_score_test(
    known: Mapping[str, float], score: np.ndarray, information: np.ndarray, where: np.ndarray
) -> tuple[np.ndarray, dict[str, float]]:
    """Voxels whose neighbourhoods refute a known value, and what all together would have it.

    Parameters
    ----------
    known : mapping of float
    score, information : ndarray (V, K)
        Of `scores`, of voxels that the model explains otherwise.
    where : ndarray (...) of bool
        These voxels in their image.

    Returns
    -------
    refuted : ndarray (V,) of bool
    better : dict of float
        The value that the image refutes most, if it does in most voxels; others may follow it.
    """
    refuted, better, most = np.zeros(len(score), dtype=bool), {}, 0.0
    threshold = norm.isf(0.5 * REFUTED / max(len(known), 1))
    size = round(_NEIGHBOURS ** (1 / max(where.ndim, 1)))
    bias = _BIAS * _window_sum(np.ones(len(score)), where, size)
    for k, (name, value) in enumerate(known.items()):
        parts = score[:, k], information[:, k]
        total, weight = (_window_sum(each, where, size) for each in parts)
        certain = np.abs(total) > threshold * np.sqrt(np.maximum(weight, 0)) + bias / value
        there = certain & (np.abs(total) > _LEAST_SHIFT * value * weight)
        refuted |= there
        every = score[:, k].sum() / np.sqrt(max(information[:, k].sum(), 1e-30))
        if there.any() and there.mean() > 0.5 and abs(every) > most:
            most = abs(every)
            shift = score[:, k].sum() / information[:, k].sum()
            better = {name: float(np.clip(value + shift, _LEAST * value, _MOST * value))}
    return refuted, better


def _window_sum(values, where, size):
    dense = np.zeros(where.shape)
    dense[where] = values
    if where.ndim == 0:
        return np.array([values.sum()])
    return uniform_filter(dense, size, mode="constant")[where] * size**where.ndim
