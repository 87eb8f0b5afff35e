"""Rician distribution of magnitudes and of their means, and noise levels from residuals.

`sigma` (V,) is always the standard deviation of the noise in each channel of one magnitude, and
`n_averages` (V, M) the number of magnitudes of which a measurement is the mean: 0 where it is left
out, None if all are 1. Means of several are taken as normal, with the mean and the variance of a
magnitude over n.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numba import njit, vectorize
from numpy.typing import ArrayLike
from scipy.special import ive
from torch import Tensor

# Table of amplitudes over sigma; beyond its end two terms of the asymptotic series are exact to
# 1e-6.
_TABLE_END = 12.0
_TABLE_STEP = 0.01
_MIN_INFORMATION = 0.05  # so that no measurement loses all its weight; chosen by hand
_NOISE_ITERATIONS = 5  # each halves the distance to the most likely noise level
_MIN_NOISE = 1e-6  # relative to the signal without diffusion: noise-free simulations


def rician_mean(signals: ArrayLike, sigma: ArrayLike) -> np.ndarray:
    """Mean magnitude of signals with noise of standard deviation sigma in each channel.

    Rice, Bell Syst. Tech. J. 23 (1944), https://doi.org/10.1002/j.1538-7305.1944.tb00874.x.
    """
    variance = np.maximum(np.asarray(sigma, dtype=float) ** 2, np.finfo(float).tiny)
    x = np.minimum(np.asarray(signals) ** 2 / (4 * variance), 1e6)
    laguerre = (1 + 2 * x) * ive(0, x) + 2 * x * ive(1, x)
    # Far above the noise the mean is the signal, to rounding.
    return np.where(x < 1e4, np.sqrt(np.pi / 2 * variance) * laguerre, signals)


_AMPLITUDES = np.arange(0, _TABLE_END + 2 * _TABLE_STEP, _TABLE_STEP)
EXCESSES = rician_mean(_AMPLITUDES, 1.0) - _AMPLITUDES
# Derivative of the mean magnitude by the amplitude; beyond the table it is 1 to 0.4 %.
_SLOPES = np.sqrt(np.pi / 8) * _AMPLITUDES * ive([[0], [1]], _AMPLITUDES**2 / 4).sum(axis=0)


def rician_excess(amplitude: np.ndarray) -> np.ndarray:
    """Mean magnitude minus noise-free amplitude, both over sigma."""
    return _excesses(np.ravel(amplitude), EXCESSES).reshape(np.shape(amplitude))


def rician_variance(amplitude: np.ndarray) -> np.ndarray:
    """Variance of a magnitude over sigma^2, at an amplitude over sigma."""
    excess = rician_excess(amplitude)
    return 2 - 2 * amplitude * excess - excess**2


@njit(cache=True, nogil=True)
def compiled_excess(amplitude, table):
    """`rician_excess` of a number in compiled code; the table is `EXCESSES`."""
    if amplitude >= _TABLE_END:
        return 0.5 / amplitude + 0.125 / amplitude**3
    position = amplitude / _TABLE_STEP
    k = int(position)
    return table[k] + (position - k) * (table[k + 1] - table[k])


@njit(cache=True, nogil=True)
def _excesses(amplitude, table):
    result = np.empty_like(amplitude)
    for k in range(len(amplitude)):
        is_number = amplitude[k] >= 0
        result[k] = compiled_excess(amplitude[k], table) if is_number else amplitude[k]
    return result


def rician_target(
    data: Tensor, predicted: Tensor, sigma: Tensor | None, n_averages: Tensor | None = None
) -> Tensor:
    """Target (V, M) of least squares whose minimum near `predicted` has the largest likelihood.

    y I1(z) / I0(z) with z = y S / sigma^2, the expected real part. The data themselves if sigma
    (V,) is None (Gaussian noise), and in voxels with negative samples, which are real parts. The
    target of means S + (y - mu) mu' / V has their score, too; with mean mu and variance V / n.
    """
    if sigma is None:
        return data
    z = data.clamp_min(0) * predicted / sigma[:, None] ** 2
    target = data * torch.from_numpy(_bessel_ratio(z.numpy()))
    if n_averages is not None:
        mean, slope, variance = _moments(predicted, sigma)
        of_means = predicted + (data - mean) * slope / variance
        target = torch.where(n_averages == 1, target, of_means)
    return torch.where((data < 0).any(dim=1, keepdim=True), data, target)


def _moments(predicted, sigma):
    """Mean magnitude (V, M), its derivative, and its variance over sigma^2."""
    amplitude = (predicted / sigma[:, None]).numpy()
    slope = np.interp(amplitude, _AMPLITUDES, _SLOPES).astype(amplitude.dtype)
    excess, variance = (
        torch.from_numpy(moment(amplitude)) for moment in (rician_excess, rician_variance)
    )
    return predicted + sigma[:, None] * excess, torch.from_numpy(slope), variance


def log_likelihoods(
    data: Tensor,
    predicted: Tensor,
    sigma: Tensor,
    rician: bool,
    n_averages: Tensor | None = None,
) -> Tensor:
    """Log-likelihoods (V,) of predicted signals (V, M), up to a constant of the data."""
    if not rician:
        squares = ((data - predicted) / sigma[:, None]) ** 2
        return -0.5 * (squares if n_averages is None else n_averages * squares).sum(dim=1)
    averages = data.new_empty((0, 0)) if n_averages is None else n_averages
    arrays = [tensor.contiguous().numpy() for tensor in (data, predicted, sigma, averages)]
    return torch.from_numpy(_log_likelihoods(*arrays, EXCESSES))


def noise_from_residual(residual: np.ndarray, n_unknowns: np.ndarray | int) -> np.ndarray:
    """Standard deviation (V,) of Gaussian noise from the residuals (V, M) of a fit.

    `n_unknowns` (V,) is the number of degrees of freedom that the fit took from the data.
    """
    n_measurements = residual.shape[1]
    freedom = np.maximum(n_measurements - n_unknowns, n_measurements / 10)
    return np.maximum(np.sqrt((residual**2).sum(axis=1) / freedom), _MIN_NOISE)


def rician_noise_from_residual(
    data: Tensor,
    predicted: Tensor,
    sigma: Tensor,
    n_unknowns: int,
    n_averages: Tensor | None = None,
) -> Tensor:
    """Standard deviation (V,) of the noise in each channel of magnitudes (V, M), after a fit.

    Expectation maximisation from a first estimate sigma (V,): half the mean squared distance in
    the complex plane, averaged over the unknown phase. Means have the expected distance across the
    signal, and one along it from their bias at the first estimate, with which they were fitted.
    """
    n = data.shape[1] if n_averages is None else (n_averages > 0).sum(dim=1)
    if n_averages is not None:
        mean, _, variance = _moments(predicted, sigma)
    for _ in range(_NOISE_ITERATIONS):
        cross = predicted * rician_target(data, predicted, sigma)
        squares = data**2 + predicted**2 - 2 * cross
        if n_averages is not None:
            of_means = n_averages * (data - mean) ** 2 / variance + sigma[:, None] ** 2
            squares = torch.where(n_averages == 1, squares, (n_averages > 0) * of_means)
        squares = squares.sum(dim=1)
        sigma = torch.sqrt(squares / (2 * n - n_unknowns)).clamp_min(_MIN_NOISE)
    return sigma


def rician_information(snr: Tensor, n_averages: Tensor | None = None) -> Tensor:
    """Fisher information of a magnitude on its signal, relative to Gaussian noise of equal sd.

    That of means is mu'^2 / V, less by up to a tenth.
    """
    information = torch.from_numpy(np.interp(snr.numpy(), *_information_table())).to(snr.dtype)
    if n_averages is None:
        return information
    _, slope, variance = _moments(snr, torch.ones_like(snr[:, 0]))
    return torch.where(n_averages == 1, information, slope**2 / variance).clamp_min(
        _MIN_INFORMATION
    )


@lru_cache
def _information_table():
    """Ratios of signal to noise, and the information at these."""
    snr = np.arange(0, 12.01, 0.1)
    y = np.linspace(1e-3, 20, 4000)
    z = y * snr[:, None]
    density = y * np.exp(-0.5 * (y - snr[:, None]) ** 2) * ive(0, z)
    score = y * ive(1, z) / ive(0, z) - snr[:, None]
    information = (density * score**2).sum(axis=1) / density.sum(axis=1)
    return snr, np.maximum(information, _MIN_INFORMATION)


_SWITCH = 3.75
_FACTORS = 16


# Abramowitz and Stegun 9.8.1 to 9.8.4: I0(z) and I1(z) / z below _SWITCH; above it I0(z) and I1(z)
# times sqrt(z) exp(-z).
@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _zero(z):
    q = (min(z, _SWITCH) / _SWITCH) ** 2
    q4 = 0.2659732 + q * (0.0360768 + q * 0.0045813)
    small_z = 1 + q * (3.5156229 + q * (3.0899424 + q * (1.2067492 + q * q4)))
    q = _SWITCH / max(z, _SWITCH)
    q5 = -0.02057706 + q * (0.02635537 + q * (-0.01647633 + q * 0.00392377))
    q2 = 0.00225319 + q * (-0.00157565 + q * (0.00916281 + q * q5))
    # Both are computed: without a branch the compiler vectorises the loop over z.
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
def _log_likelihoods(data, predicted, sigma, n_averages, table):
    """`n_averages` is empty where all are 1."""
    result, work = np.empty(len(data), data.dtype), np.empty(data.shape[1], data.dtype)
    for v in range(len(data)):
        if len(n_averages) > 0:
            result[v] = compiled_log_likelihood_of_means(
                data[v], predicted[v], sigma[v], n_averages[v], table
            )
        else:
            magnitude = compiled_log_likelihood(data[v], predicted[v], sigma[v], work)
            result[v] = magnitude + 0.5 * (data[v] ** 2).sum() / sigma[v] ** 2
    return result


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def compiled_log_likelihood(data, predicted, sigma, work):
    """log prod I0(y S / sigma^2) exp(-(y^2 + S^2) / (2 sigma^2)) of the magnitudes of a voxel.

    `work` (M,) is overwritten.
    """
    squares, scale = 0.0, 1 / sigma**2
    for m in range(len(data)):
        z = data[m] * predicted[m] * scale
        is_large = z >= _SWITCH
        work[m] = _zero(z) ** 2 / (z if is_large else 1.0)
        squares += (data[m] - predicted[m]) ** 2 * scale + (0.0 if is_large else 2 * z)
    # Logarithms are slow: one per product of several factors.
    total = 0.0
    for start in range(0, len(data), _FACTORS):
        product = 1.0
        for m in range(start, min(start + _FACTORS, len(data))):
            product *= work[m]
        total += np.log(product)
    return 0.5 * (total - squares)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def compiled_log_likelihood_of_means(data, predicted, sigma, n_averages, table):
    """As `compiled_log_likelihood`, of means of n magnitudes; without those of which n is 0."""
    total = 0.0
    for m in range(len(data)):
        amplitude = predicted[m] / sigma
        if n_averages[m] == 1:
            z = data[m] * amplitude / sigma
            large = z - 0.5 * np.log(z) if z >= _SWITCH else 0.0
            total += np.log(_zero(z)) + large - 0.5 * amplitude**2
        elif n_averages[m] > 1:
            excess = compiled_excess(amplitude, table)
            variance = 2 - 2 * amplitude * excess - excess**2
            square = n_averages[m] * (data[m] / sigma - amplitude - excess) ** 2 / variance
            total -= 0.5 * (square + np.log(variance))
    return total
