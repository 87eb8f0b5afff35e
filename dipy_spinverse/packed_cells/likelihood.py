"""How well signals explain measured magnitudes, with the amplitudes eliminated.

Magnitudes are compared with the mean of their Rice distribution, in units of its standard
deviation [1]_. Errors of the signal table are part of the noise: a covariance of low rank.

References
----------
.. [1] Gudbjartsson and Patz, Magn. Reson. Med. 34 (1995), https://doi.org/10.1002/mrm.1910340618
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from dipy_spinverse.voxels.rician import EXCESSES, compiled_excess, rician_excess


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Measurements of voxels and their noise.

    Attributes
    ----------
    data : ndarray (V, M)
    sigma : ndarray (V,)
        Standard deviation of the noise in each channel.
    inverse_sd : ndarray (V, M)
        One over the standard deviations of the magnitudes.
    modes : ndarray (V, K, M)
        Orthonormal directions of whitened data along which model errors add to the noise.
    damping : ndarray (V, K)
        1 - 1/sqrt(1 + variance of the model error) along `modes`.
    te_index : ndarray (M,)
        Measurements with the same echo time share an amplitude.
    """

    data: np.ndarray
    sigma: np.ndarray
    inverse_sd: np.ndarray
    modes: np.ndarray
    damping: np.ndarray
    te_index: np.ndarray


def gaussian_likelihood(data: np.ndarray, sigma: np.ndarray, te_index: np.ndarray) -> Likelihood:
    """Noise of the same standard deviation everywhere, and a model without errors."""
    n_voxels, n = data.shape
    inverse_sd = np.repeat(1 / sigma[:, None], n, axis=1)
    none = np.zeros((n_voxels, 1, n))
    return Likelihood(data, sigma, inverse_sd, none, none[..., 0], te_index)


def refined_likelihood(
    likelihood: Likelihood, noise_free: np.ndarray, model_errors: np.ndarray
) -> Likelihood:
    """Variances of the magnitudes around a first fit, and the model's errors there.

    Parameters
    ----------
    likelihood : Likelihood
    noise_free : ndarray (V, M)
        Signals of the first fit, in the units of the data.
    model_errors : ndarray (V, K, M)
        Errors with one standard deviation, in the units of the data.
    """
    sigma = likelihood.sigma[:, None]
    amplitude = noise_free / sigma
    mean = amplitude + rician_excess(amplitude)
    inverse_sd = 1 / (sigma * np.sqrt(np.maximum(2 + amplitude**2 - mean**2, 0.3)))
    whitened = model_errors * inverse_sd[:, None]
    _, strength, modes = np.linalg.svd(whitened, full_matrices=False)
    return Likelihood(
        likelihood.data, likelihood.sigma, inverse_sd, np.ascontiguousarray(modes),
        1 - 1 / np.sqrt(1 + strength**2), likelihood.te_index,
    )  # fmt: skip


def residuals(likelihood: Likelihood, signals: np.ndarray, voxel: np.ndarray):
    """Whitened residuals of signals with the best amplitude of each echo time.

    Parameters
    ----------
    likelihood : Likelihood
    signals : ndarray (N, M)
        Relative to b = 0.
    voxel : ndarray (N,) of int
        Voxel that each row explains.

    Returns
    -------
    residual : ndarray (N, M)
        (data - mean magnitude), whitened.
    amplitude : ndarray (N, K)
        Signal at b = 0 of each echo time.
    information : ndarray (N,)
        Half the logarithm of the determinant of the amplitudes' precision.
    """
    return _residuals(
        likelihood.data, likelihood.sigma, likelihood.inverse_sd, likelihood.modes,
        likelihood.damping, likelihood.te_index, int(likelihood.te_index.max()) + 1,
        np.ascontiguousarray(signals), voxel, EXCESSES,
    )  # fmt: skip


def whiten(likelihood: Likelihood, changes: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """Whitened changes of the data (N, M, P)."""
    white = changes * likelihood.inverse_sd[voxel][..., None]
    modes = likelihood.modes[voxel]
    along = modes @ white
    return white - np.swapaxes(modes, 1, 2) @ (likelihood.damping[voxel][..., None] * along)


@njit(cache=True, nogil=True, fastmath=True)
def _residuals(
    data, sigma, inverse_sd, modes, damping, te_index, n_te, signals, voxel, table
):  # fmt: skip
    n_rows, n = signals.shape
    result = np.empty((n_rows, n))
    amplitudes = np.empty((n_rows, n_te))
    information = np.zeros(n_rows)
    cross, power = np.empty(n_te), np.empty(n_te)
    for row in range(n_rows):
        v = voxel[row]
        amplitude = amplitudes[row]
        # Linear, then twice with the excess at the amplitude so far.
        for repeat in range(3):
            cross[:] = 0
            power[:] = 0
            for m in range(n):
                k, s = te_index[m], signals[row, m]
                y = data[v, m]
                if repeat > 0:
                    y -= sigma[v] * compiled_excess(abs(amplitude[k] * s) / sigma[v], table)
                w = inverse_sd[v, m] ** 2 * s
                cross[k] += w * y
                power[k] += w * s
            for k in range(n_te):
                amplitude[k] = max(cross[k] / max(power[k], 1e-12), 1e-6 * sigma[v])
        for k in range(n_te):
            information[row] += 0.5 * np.log(max(power[k], 1e-12))
        for m in range(n):
            mean = amplitude[te_index[m]] * signals[row, m]
            mean += sigma[v] * compiled_excess(abs(mean) / sigma[v], table)
            result[row, m] = (data[v, m] - mean) * inverse_sd[v, m]
        for k in range(modes.shape[1]):
            if damping[v, k] == 0:
                continue
            along = 0.0
            for m in range(n):
                along += modes[v, k, m] * result[row, m]
            along *= damping[v, k]
            for m in range(n):
                result[row, m] -= along * modes[v, k, m]
    return result, amplitudes, information
