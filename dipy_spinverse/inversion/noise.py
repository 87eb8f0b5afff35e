"""The noise level of each voxel."""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2

from dipy_spinverse.acquisition import Acquisition

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
