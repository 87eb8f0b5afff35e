"""The noise level of each voxel."""

from __future__ import annotations

import numpy as np
from scipy.special import ive
from scipy.stats import chi2

from dipy_spinverse.acquisition.pulsed import Acquisition

# Degrees of freedom of a noise level that is given.
KNOWN = 10**9
# With fewer degrees of freedom a single voxel's estimate is off by more than a third.
_LEAST_FREEDOM = 4
# Repeats that differ less, relative to their mean, are without noise and say nothing about it.
_LEAST_SPREAD = 1e-6
# How many degrees of freedom the typical noise of the other voxels is worth: noise changes
# slowly over a volume.
_SHARED_FREEDOM = 20


def noise_from_b0(data: np.ndarray, acquisition: Acquisition) -> tuple[np.ndarray | None, int]:
    """Standard deviation of the noise from repeated b0 measurements.

    Pooled over echo times; within one, all b0 are repeats of the same signal. Each voxel's
    variance is drawn towards the median of all, as their scatter is mostly chance.

    Parameters
    ----------
    data : ndarray (V, M)
    acquisition : Acquisition

    Returns
    -------
    sigma : ndarray (V,) or None
        None where there are too few repeats, or most voxels have none but equal ones.
    freedom : int
        Degrees of freedom of each.
    """
    squares, freedom = np.zeros(len(data)), 0
    for same_te in acquisition.b0_per_te:
        repeats = data[:, same_te]
        if repeats.shape[1] > 1:
            squares += repeats.var(axis=1) * repeats.shape[1]
            freedom += repeats.shape[1] - 1
    if len(data) == 0 or freedom < _LEAST_FREEDOM:
        return None, 0
    if np.median(squares) <= freedom * (_LEAST_SPREAD * np.median(np.abs(data))) ** 2:
        return None, 0
    if len(data) == 1:
        return np.sqrt(squares / freedom), freedom
    typical = np.median(squares) / chi2.median(freedom)
    shared = _SHARED_FREEDOM + freedom
    return np.sqrt((squares + _SHARED_FREEDOM * typical) / shared), shared


def noise_of_each_te(data: np.ndarray, acquisition: Acquisition) -> np.ndarray | None:
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


def rician_mean(signals: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Mean of the magnitude of signals with complex noise of standard deviation sigma.

    References
    ----------
    Rice, Bell Syst. Tech. J. 23 (1944), https://doi.org/10.1002/j.1538-7305.1944.tb00874.x
    """
    variance = np.maximum(np.asarray(sigma, dtype=float) ** 2, np.finfo(float).tiny)
    x = np.minimum(np.asarray(signals) ** 2 / (4 * variance), 1e6)
    laguerre = (1 + 2 * x) * ive(0, x) + 2 * x * ive(1, x)
    # Far above the noise the mean is the signal itself, to its relative precision.
    return np.where(x < 1e4, np.sqrt(np.pi / 2 * variance) * laguerre, signals)
