"""What came of a voxel: whether it can be fitted, and whether the fit explains its signals."""

from __future__ import annotations

import warnings
from enum import IntEnum

import numpy as np
from scipy.stats import f as f_distribution


class Status(IntEnum):
    """What came of a voxel; the same in every model."""

    NOT_FITTED = 0
    """Outside of the mask."""
    CONVERGED = 1
    """The optimiser stopped by its own rule, or reached the noise level."""
    NOT_CONVERGED = 2
    """The iterations came to their end above the noise level."""
    MISFIT = 3
    """The model does not explain the signals: the residual is larger than noise makes it in one
    of 1000 voxels, or where the noise is not known, as large as without diffusion."""
    BAD_SAMPLES = 4
    """NaN or infinite measurements."""
    NO_SIGNAL = 5
    """All measurements are zero, or noise alone."""
    NO_B0 = 6
    """The b0 signal, or the S0 given, is not positive."""
    PATTERN_NOT_DETERMINED = 7
    """Converged, but other wall fields that explain the same signals have their walls elsewhere
    (`pattern_agreement` is below 0.8): the maps hold, a mesh shows one of many patterns."""
    TISSUES_NOT_SEPARATED = 8
    """Converged, but the contrasts say nothing about some mixture of the tissues: their fractions
    rest on what other voxels are."""


FITTED = (
    Status.CONVERGED,
    Status.NOT_CONVERGED,
    Status.MISFIT,
    Status.PATTERN_NOT_DETERMINED,
    Status.TISSUES_NOT_SEPARATED,
)
# Probability of a residual by chance below which a model counts as refuted: with it one voxel
# of a thousand that the model does explain is lost.
REFUTED = 1e-3
_EACH = REFUTED / 2  # of the whole residual, and of its worst group
# The noise level counts as reached below the residual that chance exceeds this seldom.
_REACHED = 0.05
# Residual over the scatter of the signals about their mean from which a model explains nothing,
# and the least residual, relative to S0, that is one: simulations are not more exact.
_EXPLAINS_NOTHING = 0.9
_LEAST_RESIDUAL = 1e-3
# Over the noise: a mean b0 that may be noise (magnitudes of noise are 1.25 of it, and 1.9 of their
# own scatter), and a difference from other measurements that is not by chance.
_LEAST_SIGNAL = 3.0
_SURELY = 4.0


def screened(signals: np.ndarray, S0: np.ndarray) -> np.ndarray:
    """Status (V,) before a fit, CONVERGED where one is possible; warns of what is not.

    Parameters
    ----------
    signals : ndarray (V, M)
    S0 : ndarray (V,)
        Signal without diffusion, which must be positive.
    """
    status = np.full(len(signals), int(Status.CONVERGED))
    with np.errstate(invalid="ignore"):
        status[~((S0 > 0) & np.isfinite(S0))] = Status.NO_B0
        status[~np.isfinite(signals).all(axis=1)] = Status.BAD_SAMPLES
    status[(signals == 0).all(axis=1)] = Status.NO_SIGNAL
    bad = status != Status.CONVERGED
    if bad.any():
        warnings.warn(
            f"{bad.sum()} of {len(bad)} voxels cannot be fitted (NaN or infinite samples, or no "
            "signal); their status says why, their maps are zero.",
            stacklevel=4,
        )
    return status


def only_noise(
    signals: np.ndarray, b0: np.ndarray, sigma: np.ndarray, freedom: np.ndarray | int
) -> np.ndarray:
    """Whether (V,) there is nothing but noise: b0 is within it, and no larger than the rest.

    Parameters
    ----------
    signals : ndarray (V, M)
    b0 : ndarray (M,) of bool
    sigma : ndarray (V,)
        Noise, which where it is estimated from magnitudes may be theirs.
    freedom : int or ndarray (V,)
        Its degrees of freedom; nothing is said where it is 0.
    """
    if not b0.any() or b0.all():
        return np.zeros(len(signals), dtype=bool)
    without, rest = signals[:, b0].mean(axis=1), signals[:, ~b0].mean(axis=1)
    error = sigma * np.sqrt(1 / b0.sum() + 1 / (~b0).sum())
    alike = np.abs(without - rest) < _SURELY * error
    scatter = np.maximum(sigma, signals.std(axis=1))
    return (freedom > 0) & alike & (without < _LEAST_SIGNAL * scatter)


def outcome(
    converged: np.ndarray,
    excess: np.ndarray,
    n_unknowns: np.ndarray | int,
    freedom: np.ndarray | int,
    n_measurements: int,
) -> np.ndarray:
    """Status (V,) of voxels whose residual can be compared with the noise.

    The one rule of all models: an F-test of the residual against the noise.

    Parameters
    ----------
    converged : ndarray (V,) of bool
        Whether the optimiser stopped by its own rule.
    excess : ndarray (V,)
        Sum of squared residuals over the variances that noise, and known errors of the model,
        give them, per degree of freedom.
    n_unknowns : int or ndarray (V,)
        Degrees of freedom that the fit took.
    freedom : int or ndarray (V,)
        Degrees of freedom of the noise level.
    n_measurements : int
    """
    left = np.maximum(n_measurements - np.asarray(n_unknowns), 1)
    refuted = excess > f_distribution.isf(_EACH, left, freedom)
    reached = excess <= f_distribution.isf(_REACHED, left, freedom)
    status = np.where(converged | reached, Status.CONVERGED, Status.NOT_CONVERGED)
    return np.where(refuted, Status.MISFIT, status)


def worst_refutes(
    excess: np.ndarray, left: np.ndarray, n_groups: np.ndarray, freedom: np.ndarray
) -> np.ndarray:
    """Whether (V,) the worst of groups of measurements, such as shells, refutes a model.

    Parameters
    ----------
    excess, left : ndarray (V,)
        As in :func:`outcome`, of the worst group; `left` are its degrees of freedom.
    n_groups : ndarray (V,)
        Of which it is the worst (Bonferroni); 0 where a model tells of none.
    freedom : ndarray (V,)
        Degrees of freedom of the noise level.
    """
    chance = f_distribution.sf(excess, np.maximum(left, 1), freedom)
    return (n_groups > 0) & (chance * n_groups < _EACH)


def explains_nothing(residual_rms: np.ndarray, scatter: np.ndarray, S0: np.ndarray) -> np.ndarray:
    """Whether (V,) a residual is as large as the scatter of the signals about their means.

    What is left to say where neither noise nor repeats are known.

    Parameters
    ----------
    residual_rms : ndarray (V,)
    scatter : ndarray (V,)
        Standard deviation of the signals about the mean of each echo time.
    S0 : ndarray (V,)
        Signal without diffusion.
    """
    return (residual_rms > _EXPLAINS_NOTHING * scatter) & (residual_rms > _LEAST_RESIDUAL * S0)
