"""The noise level of each voxel: from repeats, from beyond the harmonics, from a residual."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from dipy_spinverse.acquisition import Acquisition, TensorAcquisition
from dipy_spinverse.voxels.acquired import Acquired
from dipy_spinverse.voxels.shells import shells_of

# Degrees of freedom of a noise level that is given.
KNOWN = 10**9
# With fewer degrees of freedom a single voxel's estimate is off by more than a third.
_LEAST_FREEDOM = 4
# Repeats that differ less, relative to their mean, are without noise and say nothing about it.
_LEAST_SPREAD = 1e-6
# How many degrees of freedom the noise of the other voxels is worth at most: it changes slowly
# over a volume, but it does.
_SHARED_FREEDOM = 20
# Levels of variance that an image may have: their ratio, how many, and how they are found.
_LEVEL_RATIO = 1.12
_MOST_LEVELS = 80
_LEVEL_STEPS = 40
_VOXELS_FOR_LEVELS = 5000
# Share, and number, of voxels that make a level; share of those whose level no other has.
_FREQUENT, _FEW = 0.02, 3.0
_RARE = 1e-3
# Voxels that a neighbourhood has, and how much it counts beside the whole image.
_NEIGHBOURS = 27
_LOCAL = 0.8
_LOCAL_STEPS = 4
# Numbers for each voxel beside its signals, at most, while noise is looked for: chances of levels.
NUMBERS_BESIDE = 4 * _MOST_LEVELS + 20
_VOXELS_AT_ONCE = 10_000
# Shells up to this b (ms/um^2) have hardly any signal beyond the harmonics that their directions
# determine; and signal over noise above which Rician noise is normal.
_SMOOTH_B = 1.6
_CLEAR = 4.0


def independent_noise(
    signals: np.ndarray, acquisition: Acquired, wanted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Noise that rests on no model of tissue, to judge any model by.

    From repeated b0 measurements of one echo time, and from what is beyond the spherical
    harmonics of shells of low b. Where a voxel has few of them, its variance is drawn towards
    the levels that the image has, and first to those of its neighbours: there may be several.

    Parameters
    ----------
    signals : ndarray (V, M)
        As measured.
    acquisition : Acquired
    wanted : ndarray (...) of bool, optional
        Which voxels of an image these are, for their neighbours.

    Returns
    -------
    sigma : ndarray (V,)
        Standard deviation in each channel; 1 where nothing tells.
    freedom : ndarray (V,) of int
        Its degrees of freedom; 0 where nothing tells.
    """
    estimates = [
        _of_each(signals[start : start + _VOXELS_AT_ONCE], acquisition)
        for start in range(0, max(len(signals), 1), _VOXELS_AT_ONCE)
    ]
    squares, freedom, determined, shares_levels = map(np.concatenate, zip(*estimates, strict=True))
    variance = np.where(determined, squares / np.maximum(freedom, 1), 1.0)
    if shares_levels.sum() > 1:
        sampled = None
        if wanted is not None:
            sampled = np.zeros(wanted.shape, dtype=bool)
            sampled[wanted] = shares_levels
        variance[shares_levels], freedom[shares_levels] = _with_levels(
            squares[shares_levels], freedom[shares_levels], sampled
        )
    return np.sqrt(variance), np.where(determined, freedom, 0)


def _of_each(signals, acquisition):
    """Sum of squares (V,), its degrees of freedom, whether it tells, and as those of others."""
    squares, n_b0 = _repeated_b0(signals, acquisition)
    freedom = np.full(len(signals), n_b0)
    for shell in _smooth_shells(acquisition):
        on_shell = signals[:, shell.rows]
        residual_squares = (shell.beyond_smooth(on_shell) ** 2).sum(axis=1)
        clear = on_shell.mean(axis=1) > _CLEAR * np.sqrt(residual_squares / shell.freedom)
        squares = squares + np.where(clear, residual_squares, 0)
        freedom = freedom + np.where(clear, shell.freedom, 0)
    size = np.abs(signals).max(axis=1, initial=0)
    determined = (freedom >= _LEAST_FREEDOM) & (squares > freedom * (_LEAST_SPREAD * size) ** 2)
    variance = np.where(determined, squares / np.maximum(freedom, 1), 1.0)
    # Magnitudes of noise alone scatter less than noise does.
    b0 = np.asarray(acquisition.b0_per_te).any(axis=0)
    shares_levels = determined & (
        signals[:, b0].mean(axis=1) > _CLEAR * np.sqrt(variance) if b0.any() else determined
    )
    return squares, freedom, determined, shares_levels


def _with_levels(squares, freedom, mask=None):
    """Variances (V,) of sums of squares (V,), with the image's own distribution of variances.

    The distribution over a ladder of levels is the likeliest (expectation maximisation); that of
    a voxel is mostly its neighbours' mean. Their degrees of freedom are those of an inverse gamma
    distribution as wide as what is left.
    """
    raw = squares / freedom
    low, high = np.log([raw.min(), raw.max()])
    n_levels = int(np.clip((high - low) / np.log(_LEVEL_RATIO) + 2, 5, _MOST_LEVELS))
    levels = np.exp(np.linspace(low, high, n_levels))
    log_chance = -0.5 * (freedom[:, None] * np.log(levels) + squares[:, None] / levels)
    chance = np.exp(log_chance - log_chance.max(axis=1, keepdims=True))
    subset = chance[:: -(-len(chance) // _VOXELS_FOR_LEVELS)]
    share = np.full(n_levels, 1 / n_levels)
    for _ in range(_LEVEL_STEPS):
        posterior = share * subset
        share = (posterior / posterior.sum(axis=1, keepdims=True)).mean(axis=0)
    # A level is one of several voxels: the few that scatter least have none of their own.
    frequent = np.convolve(share, np.ones(5), "same") > _FREQUENT + _FEW / len(subset)
    share = np.where(frequent, share, 0)
    if not share.any():
        share[np.abs(levels - squares.sum() / freedom.sum()).argmin()] = 1.0
    share = share / share.sum() + _RARE / n_levels
    posterior = share * chance
    posterior /= posterior.sum(axis=1, keepdims=True)
    for _ in range(0 if mask is None else _LOCAL_STEPS):
        posterior = chance * (_LOCAL * _neighbours(posterior, mask) + (1 - _LOCAL) * share)
        posterior /= posterior.sum(axis=1, keepdims=True)
    variance = posterior @ levels
    posterior_variance = np.maximum(posterior @ levels**2 - variance**2, 1e-12 * variance**2)
    return variance, np.clip(
        2 * variance**2 / posterior_variance, freedom / 2, freedom + _SHARED_FREEDOM
    )


def _neighbours(values, mask):
    """Mean (V, K) of values (V, K) of an image's voxels over their neighbourhoods."""
    size = round(_NEIGHBOURS ** (1 / max(mask.ndim, 1)))
    dense, means = np.zeros(mask.shape), np.empty_like(values)
    count = uniform_filter(mask.astype(float), size, mode="constant")[mask]
    for k, column in enumerate(values.T):
        dense[mask] = column
        means[:, k] = uniform_filter(dense, size, mode="constant")[mask] / count
    return means


def _smooth_shells(acquisition):
    """Shells whose measurements are more than the harmonics of their signals."""
    if not isinstance(acquisition, Acquisition | TensorAcquisition):
        return
    for shell in shells_of(acquisition):
        if shell.b <= _SMOOTH_B and shell.order >= 2 and shell.freedom >= _LEAST_FREEDOM:
            yield shell


def _repeated_b0(data, acquisition):
    """Sum of squares (V,) of repeated b0 about their means; its degrees of freedom."""
    squares, freedom = np.zeros(len(data)), 0
    for group in acquisition.repeated_b0:
        repeats = data[:, group]
        if repeats.shape[1] > 1:
            squares += repeats.var(axis=1) * repeats.shape[1]
            freedom += repeats.shape[1] - 1
    return squares, freedom


def noise_from_b0(data: np.ndarray, acquisition: Acquired) -> tuple[np.ndarray | None, int]:
    """Standard deviation of the noise from repeated b0 measurements.

    Pooled over groups of b0 with the same echo time, b and direction. Each voxel's
    variance is drawn towards the levels of the image, as its scatter is mostly chance.

    Parameters
    ----------
    data : ndarray (V, M)
    acquisition : Acquired

    Returns
    -------
    sigma : ndarray (V,) or None
        None where there are too few repeats, or most voxels have none but equal ones.
    freedom : int
        Degrees of freedom of each, less what other voxels tell.
    """
    squares, freedom = _repeated_b0(data, acquisition)
    if len(data) == 0 or freedom < _LEAST_FREEDOM:
        return None, 0
    if np.median(squares) <= freedom * (_LEAST_SPREAD * np.median(np.abs(data))) ** 2:
        return None, 0
    if len(data) == 1:
        return np.sqrt(squares / freedom), freedom
    floor = freedom * (_LEAST_SPREAD * np.median(np.abs(data))) ** 2
    variance, _ = _with_levels(np.maximum(squares, floor), np.full(len(data), freedom))
    return np.sqrt(variance), freedom


def noise_of_each_te(data: np.ndarray, acquisition: Acquired) -> np.ndarray | None:
    """Standard deviation (V, K) of the noise at each echo time from its repeated b0.

    None where an echo time has too few repeats.
    """
    if any(same_te.sum() <= _LEAST_FREEDOM for same_te in acquisition.b0_per_te):
        return None
    sigma = [data[:, same_te].std(axis=1, ddof=1) for same_te in acquisition.b0_per_te]
    return np.stack(sigma, axis=1)


def noise_from_residual(residual: np.ndarray, n_determined: np.ndarray) -> np.ndarray:
    """Standard deviation (V,) of the noise from residuals (V, M) of a fit.

    Parameters
    ----------
    residual : ndarray (V, M)
    n_determined : ndarray (V,)
        Number of degrees of freedom that the fit took from the data.
    """
    n_measurements = residual.shape[1]
    freedom = np.maximum(n_measurements - n_determined, n_measurements / 10)
    return np.sqrt((residual**2).sum(axis=1) / freedom)
