"""The noise level of each voxel."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.acquisition import Acquisition

# With fewer degrees of freedom the estimate is off by more than a third.
_LEAST_REPEATS = 4


def noise_from_b0(data: np.ndarray, acquisition: Acquisition) -> np.ndarray | None:
    """Standard deviation of the noise from repeated b0 measurements.

    Pooled over echo times; within one, all b0 are repeats of the same signal.

    Parameters
    ----------
    data : ndarray (V, M)
    acquisition : Acquisition

    Returns
    -------
    ndarray (V,) or None
        None where there are too few repeats (less than 4 degrees of freedom).
    """
    squares, freedom = 0.0, 0
    for same_te in acquisition.b0_per_te:
        repeats = data[:, same_te]
        if repeats.shape[1] > 1:
            squares = squares + repeats.var(axis=1) * repeats.shape[1]
            freedom += repeats.shape[1] - 1
    if freedom < _LEAST_REPEATS:
        return None
    return np.sqrt(squares / freedom)


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
