"""The noise level of each voxel: from repeats, from beyond the harmonics, from a residual."""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.voxels.acquired import Acquired
from dipy_spinverse.voxels.shells import shells_of

# Degrees of freedom of a noise level that is given.
KNOWN = 10**9
# With fewer degrees of freedom a single voxel's estimate is off by more than a third.
_LEAST_FREEDOM = 4
# Repeats that differ less, relative to their mean, are without noise and say nothing about it.
_LEAST_SPREAD = 1e-6
# How many degrees of freedom the typical noise of the other voxels is worth: noise changes
# slowly over a volume.
_SHARED_FREEDOM = 20
# Shells up to this b (ms/um^2) have hardly any signal beyond the harmonics that their directions
# determine; and signal over noise above which Rician noise is normal.
_SMOOTH_B = 1.6
_CLEAR = 4.0


def independent_noise(signals: np.ndarray, acquisition: Acquired) -> tuple[np.ndarray, np.ndarray]:
    """Noise that rests on no model of tissue, to judge any model by.

    From repeated b0 measurements of one echo time, and from what is beyond the spherical
    harmonics of shells of low b. Where a voxel has few of them, its variance is drawn towards the
    median of all.

    Parameters
    ----------
    signals : ndarray (V, M)
        As measured.
    acquisition : Acquired

    Returns
    -------
    sigma : ndarray (V,)
        Standard deviation in each channel; 1 where nothing tells.
    freedom : ndarray (V,) of int
        Its degrees of freedom; 0 where nothing tells.
    """
    squares, n_b0 = _repeated_b0(signals, acquisition)
    freedom = np.full(len(signals), n_b0)
    for shell in _smooth_shells(acquisition):
        on_shell = signals[:, shell.rows]
        rest = ((on_shell @ shell.rest.T) ** 2).sum(axis=1)
        clear = on_shell.mean(axis=1) > _CLEAR * np.sqrt(rest / shell.freedom)
        squares = squares + np.where(clear, rest, 0)
        freedom = freedom + np.where(clear, shell.freedom, 0)
    size = np.abs(signals).max(axis=1, initial=0)
    told = (freedom >= _LEAST_FREEDOM) & (squares > freedom * (_LEAST_SPREAD * size) ** 2)
    variance = np.where(told, squares / np.maximum(freedom, 1), 1.0)
    if told.sum() > 1:
        typical = np.median(squares[told] / chi2.median(freedom[told]))
        lacking = np.maximum(_SHARED_FREEDOM - freedom, 0)
        squares, freedom = squares + lacking * typical, freedom + lacking
        variance = np.where(told, squares / freedom, 1.0)
    return np.sqrt(variance), np.where(told, freedom, 0)


def _smooth_shells(acquisition):
    """Shells whose measurements are more than the harmonics of their signals."""
    if not isinstance(acquisition, Acquisition):
        return
    for shell in shells_of(acquisition):
        if shell.b <= _SMOOTH_B and shell.order >= 2 and shell.freedom >= _LEAST_FREEDOM:
            yield shell


def _repeated_b0(data, acquisition):
    """Sum of squares (V,) of b0 about their mean at each echo time; its degrees of freedom."""
    squares, freedom = np.zeros(len(data)), 0
    for same_te in acquisition.b0_per_te:
        repeats = data[:, same_te]
        if repeats.shape[1] > 1:
            squares += repeats.var(axis=1) * repeats.shape[1]
            freedom += repeats.shape[1] - 1
    return squares, freedom


def noise_from_b0(data: np.ndarray, acquisition: Acquired) -> tuple[np.ndarray | None, int]:
    """Standard deviation of the noise from repeated b0 measurements.

    Pooled over echo times; within one, all b0 are repeats of the same signal. Each voxel's
    variance is drawn towards the median of all, as their scatter is mostly chance.

    Parameters
    ----------
    data : ndarray (V, M)
    acquisition : Acquired

    Returns
    -------
    sigma : ndarray (V,) or None
        None where there are too few repeats, or most voxels have none but equal ones.
    freedom : int
        Degrees of freedom of each.
    """
    squares, freedom = _repeated_b0(data, acquisition)
    if len(data) == 0 or freedom < _LEAST_FREEDOM:
        return None, 0
    if np.median(squares) <= freedom * (_LEAST_SPREAD * np.median(np.abs(data))) ** 2:
        return None, 0
    if len(data) == 1:
        return np.sqrt(squares / freedom), freedom
    typical = np.median(squares) / chi2.median(freedom)
    shared = _SHARED_FREEDOM + freedom
    return np.sqrt((squares + _SHARED_FREEDOM * typical) / shared), shared


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
