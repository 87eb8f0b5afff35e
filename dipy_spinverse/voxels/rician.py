"""What magnitudes with Rician noise say about signals."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numba import njit, vectorize
from numpy.typing import ArrayLike
from scipy.special import ive
from torch import Tensor

# Of a table of amplitudes over the noise.
_TABLE_END = 12.0
_TABLE_STEP = 0.01
_LEAST_INFORMATION = 0.05
_NOISE_STEPS = 5
LEAST_NOISE = 1e-6  # of the signal without diffusion


def rician_mean(signals: ArrayLike, sigma: ArrayLike) -> np.ndarray:
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


_AMPLITUDES = np.arange(0, _TABLE_END + 2 * _TABLE_STEP, _TABLE_STEP)
EXCESSES = rician_mean(_AMPLITUDES, 1.0) - _AMPLITUDES


def rician_excess(amplitude: np.ndarray) -> np.ndarray:
    """Mean of a magnitude minus its noise-free amplitude, both over sigma."""
    return _excesses(np.ravel(amplitude), EXCESSES).reshape(np.shape(amplitude))


def rician_variance(amplitude: np.ndarray) -> np.ndarray:
    """Variance of a magnitude over that of a channel, at an amplitude over sigma."""
    excess = rician_excess(amplitude)
    return 2 - 2 * amplitude * excess - excess**2


@njit(cache=True, nogil=True)
def compiled_excess(amplitude, table):
    """`rician_excess` of a number, for compiled loops, which are given `EXCESSES`."""
    if amplitude >= _TABLE_END:
        return 0.5 / amplitude + 0.125 / amplitude**3
    position = amplitude / _TABLE_STEP
    k = int(position)
    return table[k] + (position - k) * (table[k + 1] - table[k])


@njit(cache=True, nogil=True)
def _excesses(amplitude, table):
    result = np.empty_like(amplitude)
    for k in range(len(amplitude)):
        # What is not a number stays what it is.
        is_number = amplitude[k] >= 0
        result[k] = compiled_excess(amplitude[k], table) if is_number else amplitude[k]
    return result


def rician_target(data: Tensor, predicted: Tensor, sigma: Tensor | None) -> Tensor:
    """What least squares are to be fitted to, for signals near `predicted`.

    y I1(z) / I0(z) with z = y S / sigma^2: the magnitude less what noise added to it.

    Parameters
    ----------
    data, predicted : Tensor (V, M)
    sigma : Tensor (V,) or None
        None for Gaussian noise, which leaves the data as they are. So do negative data, which are
        no magnitudes.
    """
    if sigma is None:
        return data
    z = data.clamp_min(0) * predicted / sigma[:, None] ** 2
    target = data * torch.from_numpy(_bessel_ratio(z.numpy()))
    return torch.where((data < 0).any(dim=1, keepdim=True), data, target)


def log_likelihoods(data: Tensor, predicted: Tensor, sigma: Tensor, rician: bool) -> Tensor:
    """Logarithms (V,) of the likelihood of signals, up to what does not depend on them."""
    if rician:
        arrays = (tensor.contiguous().numpy() for tensor in (data, predicted, sigma))
        return torch.from_numpy(_log_likelihoods(*arrays))
    return -0.5 * (((data - predicted) / sigma[:, None]) ** 2).sum(dim=1)


def rician_sigma(data: Tensor, predicted: Tensor, sigma: Tensor, n_unknowns: int) -> Tensor:
    """Noise (V,) of magnitudes around a fit that was made with about this noise.

    Half the mean squared distance of the measurements in the complex plane, whose phase is
    averaged over with the noise before. These steps of expectation maximisation halve the
    distance to the likeliest noise.
    """
    for _ in range(_NOISE_STEPS):
        cross = predicted * rician_target(data, predicted, sigma)
        squares = (data**2 + predicted**2 - 2 * cross).sum(dim=1)
        sigma = torch.sqrt(squares / (2 * data.shape[1] - n_unknowns)).clamp_min(LEAST_NOISE)
    return sigma


def rician_information(snr: Tensor) -> Tensor:
    """Information on a signal in its magnitude, relative to normal noise of the same sd."""
    table, step = _information_table()
    position = (snr / step).clamp(0, len(table) - 1.001)
    lower = position.floor()
    table = torch.tensor(table, dtype=snr.dtype)
    lower_value, upper_value = table[lower.long()], table[lower.long() + 1]
    return lower_value + (position - lower) * (upper_value - lower_value)


@lru_cache
def _information_table():
    step, snr = 0.1, np.arange(0, 12.01, 0.1)
    y = np.linspace(1e-3, 20, 4000)
    z = y * snr[:, None]
    density = y * np.exp(-0.5 * (y - snr[:, None]) ** 2) * ive(0, z)
    score = y * ive(1, z) / ive(0, z) - snr[:, None]
    information = (density * score**2).sum(axis=1) / density.sum(axis=1)
    return np.maximum(information, _LEAST_INFORMATION), step


_SWITCH = 3.75
_FACTORS = 16


# Abramowitz and Stegun 9.8.1 to 9.8.4: I0(z) and I1(z) / z below the switch, above it both times
# sqrt(z) exp(-z).
@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _zero(z):
    q = (min(z, _SWITCH) / _SWITCH) ** 2
    q4 = 0.2659732 + q * (0.0360768 + q * 0.0045813)
    small_z = 1 + q * (3.5156229 + q * (3.0899424 + q * (1.2067492 + q * q4)))
    q = _SWITCH / max(z, _SWITCH)
    q5 = -0.02057706 + q * (0.02635537 + q * (-0.01647633 + q * 0.00392377))
    q2 = 0.00225319 + q * (-0.00157565 + q * (0.00916281 + q * q5))
    # Both are computed: without a branch the compiler does several z at once.
    return small_z if z < _SWITCH else 0.39894228 + q * (0.01328592 + q * q2)


@njit(cache=True, nogil=True, fastmath=True)
def _one(z):
    if z < _SWITCH:
        q = (z / _SWITCH) ** 2
        q4 = 0.02658733 + q * (0.00301532 + q * 0.00032411)
        return 0.5 + q * (0.87890594 + q * (0.51498869 + q * (0.15084934 + q * q4)))
    q = _SWITCH / z
    q5 = 0.02282967 + q * (-0.02895312 + q * (0.01787654 - q * 0.00420059))
    q2 = -0.00362018 + q * (0.00163801 + q * (-0.01031555 + q * q5))
    return 0.39894228 + q * (-0.03988024 + q * q2)


@vectorize(["float32(float32)", "float64(float64)"], cache=True)
def _bessel_ratio(z):
    """I1(z) / I0(z) for z >= 0 to 1e-6."""
    return z * _one(z) / _zero(z) if z < _SWITCH else _one(z) / _zero(z)


@njit(cache=True, nogil=True, fastmath=True)
def _log_likelihoods(data, predicted, sigma):
    result, work = np.empty(len(data), data.dtype), np.empty(data.shape[1], data.dtype)
    for v in range(len(data)):
        magnitude = compiled_log_likelihood(data[v], predicted[v], sigma[v], work)
        result[v] = magnitude + 0.5 * (data[v] ** 2).sum() / sigma[v] ** 2
    return result


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def compiled_log_likelihood(data, predicted, sigma, work):
    """Logarithm of I0(y S / sigma^2) exp(-(y^2 + S^2) / (2 sigma^2)) of one voxel's magnitudes.

    `work` (M,) is overwritten.
    """
    squares, scale = 0.0, 1 / sigma**2
    for m in range(len(data)):
        z = data[m] * predicted[m] * scale
        is_large = z >= _SWITCH
        work[m] = _zero(z) ** 2 / (z if is_large else 1.0)
        squares += (data[m] - predicted[m]) ** 2 * scale + (0.0 if is_large else 2 * z)
    # Logarithms are slow: one for the product of several factors.
    total = 0.0
    for start in range(0, len(data), _FACTORS):
        product = 1.0
        for m in range(start, min(start + _FACTORS, len(data))):
            product *= work[m]
        total += np.log(product)
    return 0.5 * (total - squares)
