"""Status of a voxel: whether it can be fitted, and whether the model explains its signals."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from scipy.stats import chi2, norm
from scipy.stats import f as f_distribution
from scipy.stats import t as student

from dipy_spinverse.user_warnings import warn


class Status(IntEnum):
    """Status of a voxel, with the same meaning in every model."""

    NOT_FITTED = 0
    """Outside the mask."""
    CONVERGED = 1
    """The optimiser met its stopping rule or reached the noise level."""
    NOT_CONVERGED = 2
    """The maximum number of iterations was reached with the residual above the noise level."""
    MISFIT = 3
    """The model is rejected: noise alone would give so large a residual in fewer than one of 1000
    voxels. If the noise level is unknown: the model explains no more than a constant does."""
    BAD_SAMPLES = 4
    """The signals contain NaN or infinite values."""
    NO_SIGNAL = 5
    """All signals are zero, or nothing but noise."""
    NO_B0 = 6
    """The b0 signal, or the S0 passed to `fit`, is not positive."""
    PATTERN_NOT_DETERMINED = 7
    """Converged, but posterior samples that explain the signals equally well have walls in other
    positions (`pattern_agreement` is below 0.8). Maps are valid; a mesh shows one of many possible
    arrangements."""
    TISSUES_NOT_SEPARATED = 8
    """Converged, but some mixtures of tissues cannot be distinguished with these contrasts: their
    fractions are determined by the prior, which is estimated from all voxels."""


FITTED = (
    Status.CONVERGED,
    Status.NOT_CONVERGED,
    Status.MISFIT,
    Status.PATTERN_NOT_DETERMINED,
    Status.TISSUES_NOT_SEPARATED,
)
# Status codes with which maps and intervals are valid.
USABLE = (Status.CONVERGED, Status.PATTERN_NOT_DETERMINED)
# Significance level of a misfit: of the voxels that the model does explain, one in 1000 is lost.
FALSE_REJECTION_RATE = 1e-3
_LEVEL_PER_TEST = FALSE_REJECTION_RATE / 2  # Bonferroni: the whole residual, and its worst group
# The noise level is reached by a residual that is not significantly above it at this level.
_REACHED = 0.05
# Without a noise level, a model explains nothing if its residual exceeds this fraction of the
# scatter of the signals about their mean, unless it is below this fraction of S0, to which
# simulated signals are exact. Chosen by hand.
_EXPLAINS_NOTHING = 0.9
_NUMERICAL_ERROR = 1e-3
# A voxel without signal: mean b0 below 3 standard deviations (magnitudes of noise have a mean of
# 1.25 sigma, or 1.9 of their own standard deviations, by the Rayleigh distribution), and not
# significantly different (4 standard errors) from the weighted measurements. Chosen by hand.
_MIN_SNR = 3.0
_SIGNIFICANT_DIFFERENCE = 4.0


def status_before_fit(signals: np.ndarray, S0: np.ndarray) -> np.ndarray:
    """Status (V,) before a fit: CONVERGED if the voxel can be fitted. Warns if some cannot.

    The signals (V, M) must be finite, those without diffusion weighting (V,) positive.
    """
    status = np.full(len(signals), int(Status.CONVERGED))
    with np.errstate(invalid="ignore"):
        status[~((S0 > 0) & np.isfinite(S0))] = Status.NO_B0
        status[~np.isfinite(signals).all(axis=1)] = Status.BAD_SAMPLES
    status[(signals == 0).all(axis=1)] = Status.NO_SIGNAL
    unusable = status != Status.CONVERGED
    if unusable.any():
        warn(
            f"{unusable.sum()} of {len(status)} voxels cannot be fitted (NaN or infinite samples, "
            "or no signal). Their status gives the reason; their maps are zero."
        )
    return status


def is_noise_only(
    signals: np.ndarray,
    b0: np.ndarray,
    sigma: np.ndarray,
    freedom: np.ndarray | int,
    n_averages: np.ndarray,
) -> np.ndarray:
    """Whether (V,) means (V, M) of n magnitudes are only noise: b0 is as low as the weighted ones.

    False where `sigma` (V,), the standard deviation of the noise or of its magnitudes, has no
    degrees of freedom.
    """
    if not b0.any() or b0.all():
        return np.zeros(len(signals), dtype=bool)
    mean_b0, mean_weighted = signals[:, b0].mean(axis=1), signals[:, ~b0].mean(axis=1)
    standard_error = sigma * np.sqrt(1 / n_averages[b0].sum() + 1 / n_averages[~b0].sum())
    equal = np.abs(mean_b0 - mean_weighted) < _SIGNIFICANT_DIFFERENCE * standard_error
    scatter = np.maximum(sigma, signals.std(axis=1))
    return (freedom > 0) & equal & (mean_b0 < _MIN_SNR * scatter)


def outcome(
    converged: np.ndarray,
    reduced_chi_square: np.ndarray,
    n_unknowns: np.ndarray | int,
    freedom: np.ndarray | int,
    n_measurements: int,
) -> np.ndarray:
    """Status (V,) by an F-test of the residual against the noise, the one rule of all models.

    The reduced chi-square (V,) is the sum of squared residuals over the variances due to noise and
    known model errors, per degree of freedom; `n_unknowns` are those used by the fit, `freedom`
    those of the noise level.
    """
    residual_freedom = np.maximum(n_measurements - np.asarray(n_unknowns), 1)
    rejected = reduced_chi_square > f_distribution.isf(_LEVEL_PER_TEST, residual_freedom, freedom)
    reached = reduced_chi_square <= f_distribution.isf(_REACHED, residual_freedom, freedom)
    status = np.where(converged | reached, Status.CONVERGED, Status.NOT_CONVERGED)
    return np.where(rejected, Status.MISFIT, status)


def rejected_by_worst_group(
    reduced_chi_square: np.ndarray,
    residual_freedom: np.ndarray,
    n_groups: np.ndarray,
    freedom: np.ndarray,
) -> np.ndarray:
    """Whether (V,) the worst of n_groups of measurements, such as a shell, rejects the model.

    Bonferroni correction for the number of groups, which is 0 if the model has none; `freedom`
    are the degrees of freedom of the noise level.
    """
    p_value = f_distribution.sf(reduced_chi_square, np.maximum(residual_freedom, 1), freedom)
    return (n_groups > 0) & (p_value * n_groups < _LEVEL_PER_TEST)


def birge_variance(
    reduced_chi_square: np.ndarray,
    freedom: np.ndarray | int,
    worst_reduced_chi_square: np.ndarray | float = 0.0,
    worst_freedom: np.ndarray | float = 1.0,
    n_groups: np.ndarray | float = 0,
) -> np.ndarray:
    """Factor (V,) of the variance of the noise, for the intervals of models that are rejected.

    The reduced chi-square where it, or that of the worst of `n_groups` of measurements, rejects
    the model at a known noise level; else 1. Its root is Birge's ratio, Phys. Rev. 40 (1932) 207,
    https://doi.org/10.1103/PhysRev.40.207.
    """
    rejected = chi2.sf(reduced_chi_square * freedom, freedom) < _LEVEL_PER_TEST
    p_worst = chi2.sf(np.multiply(worst_reduced_chi_square, worst_freedom), worst_freedom)
    rejected |= p_worst * n_groups < _LEVEL_PER_TEST * (np.asarray(n_groups) > 0)
    return np.where(rejected, np.maximum(reduced_chi_square, 1.0), 1.0)


def unknown_noise_variance(freedom: np.ndarray) -> np.ndarray:
    """Factor (V,) of a variance that is estimated from a residual of few degrees of freedom.

    With it, normal 95 % intervals have the width of Student's distribution.
    """
    return (student.ppf(0.975, freedom) / norm.ppf(0.975)) ** 2


def explains_nothing(residual_rms: np.ndarray, scatter: np.ndarray, S0: np.ndarray) -> np.ndarray:
    """Whether (V,) the residual is as large as the standard deviation of the signals, `scatter`.

    The test that remains if the noise level is unknown.
    """
    return (residual_rms > _EXPLAINS_NOTHING * scatter) & (residual_rms > _NUMERICAL_ERROR * S0)
