"""Noise level of each voxel before a fit, from repeated b0 and from residuals of harmonics."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from dipy_spinverse.acquisition import Acquisition, BaseAcquisition, TensorAcquisition
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.outliers import squares_without_outliers
from dipy_spinverse.voxels.shells import shells_of

# Degrees of freedom of a noise level that is given.
KNOWN = 10**9
# With fewer degrees of freedom the estimate of a single voxel has an error of more than a third.
_MIN_DEGREES_OF_FREEDOM = 4
# Repeats that differ less, relative to their mean, are noise-free and say nothing about noise.
_MIN_RELATIVE_SPREAD = 1e-6
# Noise varies slowly over a volume: degrees of freedom that the other voxels add at most. Chosen
# by hand, like the other constants of the distribution of variances.
_MAX_SHARED_DEGREES_OF_FREEDOM = 20
# Grid of variances of an image: ratio of neighbours, maximum number, iterations, sample of voxels.
_VARIANCE_RATIO = 1.12
_MAX_VARIANCES = 80
_EM_ITERATIONS = 40
_MAX_SAMPLED_VOXELS = 5000
# A variance is supported by this share of the voxels and this number; others share a small rest.
_MIN_SHARE, _MIN_VOXELS = 0.02, 3.0
_UNSUPPORTED_SHARE = 1e-3
# Voxels of a neighbourhood, and its weight relative to that of the whole image.
_NEIGHBOURHOOD = 27
_NEIGHBOURHOOD_WEIGHT = 0.8
_NEIGHBOURHOOD_ITERATIONS = 4
# Temporary numbers per voxel, at most: likelihoods of the variances.
TEMPORARY_NUMBERS = 4 * _MAX_VARIANCES + 20
_VOXELS_AT_ONCE = 10_000
# Shells up to this b (ms/um^2) have hardly any signal beyond the harmonics that their directions
# determine. Above this ratio of signal to noise the Rician distribution is nearly normal.
_MAX_SMOOTH_B = 1.6
_MIN_SNR = 4.0
# The floor sigma^2 / 2S of n magnitudes, over the noise s = sigma / n^1/2 of their mean, is
# n s / 2S: a half at this S / s for 30 directions.
_MIN_SNR_OF_AVERAGES = 30.0


def noise_before_fit(
    signals: np.ndarray,
    acquisition: BaseAcquisition,
    mask: np.ndarray | None = None,
    *,
    b0_only: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Noise level that does not depend on a model of tissue.

    From repeated b0 (of equal echo time, b and direction) and, unless `b0_only`, from residuals of
    spherical harmonics on shells of low b, without outliers. The variances of single voxels have
    few degrees of freedom and are shrunk towards those that are frequent in the image, first in
    the neighbourhood.

    Parameters
    ----------
    signals : ndarray (V, M)
        As measured.
    acquisition : BaseAcquisition
    mask : ndarray (...) of bool, optional
        The V voxels within the image, for neighbourhoods.
    b0_only : bool, optional
        Do not use shells.

    Returns
    -------
    sigma : ndarray (V,)
        Standard deviation in each channel of one magnitude, also of means of several; 1 where it
        is not determined.
    degrees_of_freedom : ndarray (V,) of int
        0 where sigma is not determined.
    """
    shells = [] if b0_only else _smooth_shells(acquisition)
    estimates = [
        _squares_of_voxels(signals[start : start + _VOXELS_AT_ONCE], acquisition, shells)
        for start in range(0, max(len(signals), 1), _VOXELS_AT_ONCE)
    ]
    squares, freedom, determined, shrunk = map(np.concatenate, zip(*estimates, strict=True))
    variance = np.where(determined, squares / np.maximum(freedom, 1), 1.0)
    if shrunk.sum() > 1:
        shrunk_mask = None
        if mask is not None:
            shrunk_mask = np.zeros(mask.shape, dtype=bool)
            shrunk_mask[mask] = shrunk
        variance[shrunk], freedom[shrunk] = _shrunk_variances(
            squares[shrunk], freedom[shrunk], shrunk_mask
        )
    return np.sqrt(variance), np.where(determined, freedom, 0)


def warn_of_unknown_noise(acquisition: BaseAcquisition) -> None:
    """Warn if neither repeated b0 nor shells give the noise, so that no model can be rejected."""
    n_repeats = sum(int(group.sum()) - 1 for group in acquisition.repeated_b0)
    if n_repeats < _MIN_DEGREES_OF_FREEDOM and not any(_smooth_shells(acquisition)):
        warn(
            f"The noise level is unknown: {_MIN_DEGREES_OF_FREEDOM + 1} b0 of the same echo time, "
            "or shells of low b with more directions than their harmonics, give it. No voxel "
            "can be MISFIT, and intervals take all of the residual for noise. Give sigma."
        )


def warn_of_unknown_averages(
    signals: np.ndarray, sigma: np.ndarray, acquisition: BaseAcquisition
) -> None:
    """Warn of powder averages (V, M) near the noise (V,) that are said to be single magnitudes."""
    averages = acquisition.isotropic & (acquisition.n_averages == 1)
    is_magnitude = signals.min(axis=1, initial=0) >= 0
    if not (averages.any() and is_magnitude.any()):
        return
    snr = signals[is_magnitude][:, averages].min(axis=1) / sigma[is_magnitude]
    if np.median(snr) < _MIN_SNR_OF_AVERAGES:
        warn(
            f"The smallest averages over directions are {np.median(snr):.0f} times their noise: "
            "averages of magnitudes that low keep a noise floor which depends on the number of "
            "directions, and maps are biased without it. Give n_averages (--n_averages), with "
            'the sigma of one magnitude; or likelihood="gaussian" for averages of real parts.'
        )


def noise_per_te(
    signals: np.ndarray, acquisition: BaseAcquisition
) -> tuple[np.ndarray, np.ndarray]:
    """Noise (V, K) of each echo time from its b0, and its degrees of freedom (V,), 0 if few."""
    n_repeats = acquisition.b0_per_te.sum(axis=1)
    if (n_repeats <= _MIN_DEGREES_OF_FREEDOM).any():
        return np.ones((len(signals), len(n_repeats))), np.zeros(len(signals), dtype=int)
    sigma = [signals[:, same_te].std(axis=1, ddof=1) for same_te in acquisition.b0_per_te]
    return np.stack(sigma, axis=1), np.full(len(signals), (n_repeats - 1).sum())


def _squares_of_voxels(signals, acquisition, shells):
    """Sums of squares (V,), degrees of freedom, whether these suffice, whether to shrink them."""
    squares, freedom = _repeated_b0(signals, acquisition)
    for shell in shells:
        on_shell = signals[:, shell.rows]
        projection = shell.projection
        residual_squares, n_outliers = squares_without_outliers(on_shell @ projection, projection)
        variances = np.diag(projection) / acquisition.n_averages[shell.rows]
        residual_squares *= shell.freedom / variances.sum()
        shell_freedom = shell.freedom - n_outliers
        clear = on_shell.mean(axis=1) > _MIN_SNR * np.sqrt(residual_squares / shell_freedom)
        squares = squares + np.where(clear, residual_squares, 0)
        freedom = freedom + np.where(clear, shell_freedom, 0)
    size = np.abs(signals).max(axis=1, initial=0)
    determined = (freedom >= _MIN_DEGREES_OF_FREEDOM) & (
        squares > freedom * (_MIN_RELATIVE_SPREAD * size) ** 2
    )
    variance = np.where(determined, squares / np.maximum(freedom, 1), 1.0)
    # Magnitudes of pure noise vary less than the noise of each channel.
    b0 = acquisition.b0_per_te.any(axis=0)
    shrunk = determined & (
        signals[:, b0].mean(axis=1) > _MIN_SNR * np.sqrt(variance) if b0.any() else determined
    )
    return squares, freedom, determined, shrunk


def _shrunk_variances(squares, freedom, mask):
    """Variances (V,) of sums of squares (V,), and their degrees of freedom, by empirical Bayes.

    The prior on a grid of variances has maximum likelihood (expectation maximisation); that of a
    voxel is mostly the mean posterior of its neighbours. The degrees of freedom are those of an
    inverse gamma distribution with the variance of the posterior.
    """
    raw = squares / freedom
    low, high = np.log([raw.min(), raw.max()])
    n_variances = int(np.clip((high - low) / np.log(_VARIANCE_RATIO) + 2, 5, _MAX_VARIANCES))
    variances = np.exp(np.linspace(low, high, n_variances))
    log_likelihood = -0.5 * (freedom[:, None] * np.log(variances) + squares[:, None] / variances)
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    subset = likelihood[:: -(-len(likelihood) // _MAX_SAMPLED_VOXELS)]
    prior = np.full(n_variances, 1 / n_variances)
    for _ in range(_EM_ITERATIONS):
        posterior = prior * subset
        prior = (posterior / posterior.sum(axis=1, keepdims=True)).mean(axis=0)
    # The few voxels that vary least by chance do not make a variance of their own.
    supported = np.convolve(prior, np.ones(5), "same") > _MIN_SHARE + _MIN_VOXELS / len(subset)
    prior = np.where(supported, prior, 0)
    if not prior.any():
        prior[np.abs(variances - squares.sum() / freedom.sum()).argmin()] = 1.0
    prior = prior / prior.sum() + _UNSUPPORTED_SHARE / n_variances
    posterior = prior * likelihood
    posterior /= posterior.sum(axis=1, keepdims=True)
    for _ in range(0 if mask is None else _NEIGHBOURHOOD_ITERATIONS):
        local = _neighbourhood_mean(posterior, mask)
        posterior = likelihood * (
            _NEIGHBOURHOOD_WEIGHT * local + (1 - _NEIGHBOURHOOD_WEIGHT) * prior
        )
        posterior /= posterior.sum(axis=1, keepdims=True)
    mean = posterior @ variances
    uncertainty = np.maximum(posterior @ variances**2 - mean**2, 1e-12 * mean**2)
    return mean, np.clip(
        2 * mean**2 / uncertainty, freedom / 2, freedom + _MAX_SHARED_DEGREES_OF_FREEDOM
    )


def _neighbourhood_mean(values, mask):
    """Means (V, K) over the neighbourhoods of the voxels of a mask, of their values (V, K)."""
    size = round(_NEIGHBOURHOOD ** (1 / max(mask.ndim, 1)))
    dense, means = np.zeros(mask.shape), np.empty_like(values)
    count = uniform_filter(mask.astype(float), size, mode="constant")[mask]
    for k, column in enumerate(values.T):
        dense[mask] = column
        means[:, k] = uniform_filter(dense, size, mode="constant")[mask] / count
    return means


def _smooth_shells(acquisition):
    """Shells of low b with enough measurements beyond the harmonics of their signals."""
    if not isinstance(acquisition, Acquisition | TensorAcquisition):
        return []
    low = [shell for shell in shells_of(acquisition) if shell.b <= _MAX_SMOOTH_B]
    return [s for s in low if s.order >= 2 and s.freedom >= _MIN_DEGREES_OF_FREEDOM]


def _repeated_b0(signals, acquisition):
    """Sums of squares (V,) of repeated b0 about their means, and their degrees of freedom."""
    squares, freedom = np.zeros(len(signals)), np.zeros(len(signals), dtype=int)
    for group in acquisition.repeated_b0:
        weight = np.sqrt(acquisition.n_averages[group])
        if len(weight) > 1:
            projection = np.eye(len(weight)) - np.outer(weight, weight) / (weight @ weight)
            residual = (signals[:, group] * weight) @ projection
            of_group, n_outliers = squares_without_outliers(residual, projection)
            squares += of_group
            freedom += len(weight) - 1 - n_outliers
    return squares, freedom
