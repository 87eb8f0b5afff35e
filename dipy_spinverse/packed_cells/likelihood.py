"""Likelihood of measured signals, with the linear nuisance parameters eliminated.

Magnitudes are compared with the mean of their Rice distribution, in units of its standard
deviation [1]_; data with negative values are real parts and have normal noise. Three errors add to
the covariance of the noise: those of the emulator, which are correlated between shells; a
systematic error proportional to the signal; and fast terms (``nuisance``) with a normal prior,
which are eliminated together with the amplitudes.

References
----------
.. [1] Gudbjartsson and Patz, Magn. Reson. Med. 34 (1995), https://doi.org/10.1002/mrm.1910340618
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from dipy_spinverse.packed_cells.gaussian_process import Smoothing
from dipy_spinverse.packed_cells.nuisance import FAST_PRIOR_SD, NO_FAST_TERMS, FastTerms
from dipy_spinverse.voxels.rician import (
    EXCESSES,
    compiled_excess,
    rician_excess,
    rician_variance,
)

# Scale of the half-Cauchy prior of the systematic error, relative to the signal, and the values
# that are tried. Measured scans have 0.4 to 4 % (benchmarks/results/misfit_size.md).
_SYSTEMATIC_SCALE = 0.004
_SYSTEMATIC_ERRORS = np.concatenate([[0.0], np.geomspace(0.001, 0.1, 24)])
# Step of the numerical derivative of the mean magnitude, in units of sigma.
_RICIAN_STEP = 0.01
_TINY = 1e-200
_NO_TERM = 1e300  # precision of a fast term that is absent
# Errors below a fifth of the noise would change standard deviations by less than 2 %.
_MIN_ERROR = 0.2


@dataclass(frozen=True, eq=False)
class TissueData:
    """Measured signals (V, M) of voxels and the covariance of their errors.

    `rician` (V,) are means of `n_averages` (M,) magnitudes, with noise of `sigma` (V,) in each
    channel of one; `systematic` (V,) is the standard deviation of errors proportional to the
    signal. `inverse_sd` (V, M) is that of uncorrelated errors, 0 for excluded measurements.
    Correlated errors of whitened data have orthonormal principal `error_directions` (V, K, M), and
    `damping` (V, K) is 1 - 1/sqrt(1 + variance) along these. Measurements of one of the `labels`
    (M,) share an amplitude. `fast_prior_sd` (V, G) is 0 where a fast term is absent.
    """

    measured: np.ndarray
    sigma: np.ndarray
    systematic: np.ndarray
    n_averages: np.ndarray
    rician: np.ndarray
    inverse_sd: np.ndarray
    error_directions: np.ndarray
    damping: np.ndarray
    labels: np.ndarray
    fast_terms: FastTerms
    fast_prior_sd: np.ndarray

    @property
    def n_labels(self) -> int:
        """Number of amplitudes, L."""
        return int(self.labels.max()) + 1

    @property
    def n_used(self) -> int:
        """Number of measurements that are not excluded."""
        return int((self.inverse_sd[0] > 0).sum())

    @property
    def n_linear(self) -> np.ndarray:
        """Number (V,) of amplitudes and fast terms."""
        return self.n_labels + (self.fast_prior_sd > 0).sum(axis=1)

    @property
    def fast_precision(self) -> np.ndarray:
        """Prior precisions (V, G) of the fast terms; huge where these are absent."""
        present = self.fast_prior_sd > 0
        return np.where(present, 1 / np.where(present, self.fast_prior_sd, 1.0) ** 2, _NO_TERM)

    @property
    def all_fast_prior_sd(self) -> np.ndarray:
        """Prior standard deviations (V, G) with all fast terms present."""
        largest = np.abs(self.measured).max(axis=1)[:, None]
        return FAST_PRIOR_SD * largest * np.ones(len(self.fast_terms.identifiable))

    def of_voxels(self, index: np.ndarray) -> TissueData:
        """Subset of the voxels."""
        names = (
            "measured", "sigma", "systematic", "rician", "inverse_sd", "error_directions",
            "damping", "fast_prior_sd",
        )  # fmt: skip
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def with_fast_prior_sd(self, prior_sd: np.ndarray) -> TissueData:
        """The same data with other fast terms (V, G) and without errors of the model."""
        no_errors = np.zeros((len(self.measured), 1, self.measured.shape[1]))
        return _with_correlated_errors(replace(self, fast_prior_sd=prior_sd), no_errors)

    def with_inflated_noise(self, factor: np.ndarray) -> TissueData:
        """The same data with variances larger by factors (V,)."""
        return replace(self, inverse_sd=self.inverse_sd / np.sqrt(factor)[:, None])


def tissue_data(
    measured: np.ndarray, sigma: np.ndarray, labels: np.ndarray, used: np.ndarray,
    n_averages: np.ndarray | None = None, fast_terms: FastTerms = NO_FAST_TERMS,
) -> TissueData:  # fmt: skip
    """Data (V, M) with the same noise (V,) in all used magnitudes and no error of the model."""
    n_voxels, n = measured.shape
    n_averages = np.ones(n) if n_averages is None else n_averages
    no_errors = np.zeros((n_voxels, 1, n))
    data = TissueData(
        measured, sigma, np.zeros(n_voxels), n_averages, measured.min(axis=1) >= 0,
        used * np.sqrt(n_averages) / sigma[:, None], no_errors, no_errors[..., 0], labels,
        fast_terms, np.zeros((n_voxels, len(fast_terms.identifiable))),
    )  # fmt: skip
    return data.with_fast_prior_sd(data.all_fast_prior_sd * fast_terms.identifiable)


def with_model_errors(
    data: TissueData, noise_free: np.ndarray, model_errors: np.ndarray
) -> TissueData:
    """The same data with the error covariance at a fit.

    The fit has `noise_free` signals (V, M); `model_errors` (V, K, M) are independent patterns of
    one standard deviation in the same units.
    """
    variances = _noise_variances(data, noise_free) + (data.systematic[:, None] * noise_free) ** 2
    inverse_sd = (data.inverse_sd > 0) / np.sqrt(variances)
    return _with_correlated_errors(replace(data, inverse_sd=inverse_sd), model_errors)


def _with_correlated_errors(data, model_errors):
    """Data whose whitened covariance is 1 plus that of model errors (V, K, M) and fast terms."""
    rows, decay, term = data.fast_terms[:3]
    fast = np.zeros((*data.fast_prior_sd.shape, model_errors.shape[2]))
    fast[:, term, rows] = data.fast_prior_sd[:, term] * decay
    whitened = np.concatenate([model_errors, fast], axis=1) * data.inverse_sd[:, None]
    _, sd, directions = np.linalg.svd(whitened, full_matrices=False)
    # Without a sign convention rounding decides the signs, and with them posterior samples.
    largest = np.abs(directions).argmax(axis=2)[..., None]
    directions = directions * np.sign(np.take_along_axis(directions, largest, axis=2))
    # Voxel by voxel: directions that another voxel needs must not change this one.
    sd = np.where(sd > _MIN_ERROR, sd, 0.0)
    n_kept = max(int(sd.any(axis=0).sum()), 1)
    return replace(
        data,
        error_directions=np.ascontiguousarray(directions[:, :n_kept]),
        damping=1 - 1 / np.sqrt(1 + sd[:, :n_kept] ** 2),
    )


def _noise_variances(data, noise_free):
    sigma = data.sigma[:, None]
    rician = np.maximum(rician_variance(noise_free / sigma), 0.3)
    return sigma**2 * np.where(data.rician[:, None], rician, 1.0) / data.n_averages


def systematic_error(data: TissueData, smoothing: Smoothing) -> np.ndarray:
    """Maximum a posteriori systematic error (V,), relative to the signal.

    From what a model-free description leaves, so that it does not contain errors of a model.
    """
    signals, freedom = data.measured - smoothing.residual, smoothing.freedom
    squares = smoothing.residual**2 / np.maximum(freedom, 1e-12)
    noise, costs = _noise_variances(data, np.maximum(signals, 0)), []
    for error in _SYSTEMATIC_ERRORS:
        variance = noise + (error * signals) ** 2
        cost = 0.5 * (freedom * (squares / variance + np.log(variance))).sum(axis=1)
        costs.append(cost + np.log1p((error / _SYSTEMATIC_SCALE) ** 2))
    return _SYSTEMATIC_ERRORS[np.argmin(costs, axis=0)]


def expected_signals(data: TissueData, noise_free: np.ndarray) -> np.ndarray:
    """Mean measurements (V, M) of noise-free ones: magnitudes have the bias of Rician noise."""
    sigma = data.sigma[:, None]
    bias = rician_excess(np.maximum(noise_free, 0) / sigma)
    return noise_free + sigma * data.rician[:, None] * bias


def noise_free_signals(
    data: TissueData, signals: np.ndarray, amplitudes: np.ndarray, voxel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free measurements (N, M) of relative signals, and fitted fast terms (N, G)."""
    noise_free = amplitudes[:, data.labels] * np.maximum(signals, 0)
    rows, decay, term = data.fast_terms[:3]
    membership = (term[:, None] == np.arange(len(data.fast_terms.label))).astype(float)
    weight = data.inverse_sd[voxel][:, rows] ** 2 * decay
    residual = data.measured[voxel][:, rows] - noise_free[:, rows]
    precision = (weight * decay) @ membership + data.fast_precision[voxel]
    fast = (weight * residual) @ membership / precision
    noise_free[:, rows] += fast[:, term] * decay
    return noise_free, fast


def residuals(data: TissueData, signals: np.ndarray, voxel: np.ndarray):
    """Whitened residuals (N, M) of signals (N, M) relative to b = 0, at the best amplitudes.

    Row n is compared with voxel[n]. Also the amplitudes (N, L), and half the logarithm (N,) of the
    determinant of their precision.
    """
    return _residuals(
        data.measured, data.sigma * data.rician, data.sigma, data.inverse_sd,
        data.error_directions, data.damping, data.labels, data.n_labels,
        np.ascontiguousarray(signals), voxel, EXCESSES, data.fast_terms, data.fast_precision,
    )  # fmt: skip


def normal_equations(
    data: TissueData, signals: np.ndarray, amplitudes: np.ndarray, slopes: np.ndarray,
    residual: np.ndarray, voxel: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Gradient (N, P) and Gauss-Newton Hessian (N, P, P) of half the sum of squared residuals.

    Both are projected on the complement of the amplitudes (variable projection); slopes (N, P, M)
    are derivatives of the signals, amplitudes and residual those of :func:`residuals`.
    """
    hessian, correlation = _normal_products(
        data.sigma, data.rician, data.inverse_sd, data.error_directions, data.damping,
        data.labels, signals, amplitudes, slopes, residual, voxel, EXCESSES,
    )  # fmt: skip
    p = slopes.shape[1]
    # Labels whose measurements are all excluded have no amplitude.
    hessian[:, p:, p:] += _TINY * np.eye(data.n_labels)
    projection = np.swapaxes(np.linalg.solve(hessian[:, p:, p:], hessian[:, p:, :p]), 1, 2)
    gradient = (projection @ correlation[:, p:, None])[..., 0] - correlation[:, :p]
    return gradient, hessian[:, :p, :p] - projection @ hessian[:, p:, :p]


@njit(cache=True, nogil=True, fastmath=True)
def _normal_products(
    sigma, rician, inverse_sd, directions, damping, labels, signals, amplitudes, slopes, residual,
    voxel, table,
):  # fmt: skip
    """Products (N, P + L, P + L) of whitened derivatives by parameters and by amplitudes.

    And their products (N, P + L) with the residual.
    """
    n_rows, p, n = slopes.shape
    n_directions, n_columns = directions.shape[1], p + amplitudes.shape[1]
    hessian = np.empty((n_rows, n_columns, n_columns))
    correlation = np.empty((n_rows, n_columns))
    columns, weight = np.empty((n_columns, n)), np.empty(n)
    projected, whitened = np.empty((n_directions, n_columns)), np.empty(n)
    for row in range(n_rows):
        v = voxel[row]
        for m in range(n):
            mean = amplitudes[row, labels[m]] * signals[row, m]
            weight[m] = inverse_sd[v, m]
            if rician[v]:
                snr = max(mean, 0) / sigma[v]
                change = compiled_excess(snr + _RICIAN_STEP, table) - compiled_excess(snr, table)
                weight[m] *= 1 + change / _RICIAN_STEP
            whitened[m] = residual[row, m]
        columns[p:] = 0
        for m in range(n):
            columns[p + labels[m], m] = signals[row, m] * weight[m]
            weight[m] *= amplitudes[row, labels[m]]
        for i in range(p):
            for m in range(n):
                columns[i, m] = slopes[row, i, m] * weight[m]
        for k in range(n_directions):
            if damping[v, k] > 0:
                direction = directions[v, k]
                _subtract(whitened, direction, damping[v, k] * _dot(direction, residual[row]))
                for i in range(n_columns):
                    projected[k, i] = _dot(direction, columns[i])
        for i in range(n_columns):
            correlation[row, i] = _dot(columns[i], whitened)
            for j in range(i + 1):
                product = _dot(columns[i], columns[j])
                for k in range(n_directions):
                    if damping[v, k] > 0:
                        # Both columns shrink by 1 - damping along a direction.
                        removed = damping[v, k] * (2 - damping[v, k])
                        product -= removed * projected[k, i] * projected[k, j]
                hessian[row, i, j] = hessian[row, j, i] = product
    return hessian, correlation


@njit(cache=True, nogil=True, fastmath=True)
def _dot(a, b):
    total = 0.0
    for m in range(len(a)):
        total += a[m] * b[m]
    return total


@njit(cache=True, nogil=True, fastmath=True)
def _subtract(values, direction, weight):
    for m in range(len(values)):
        values[m] -= weight * direction[m]


@njit(cache=True, nogil=True, fastmath=True)
def _residuals(
    measured, rician_sigma, sigma, inverse_sd, directions, damping, labels, n_labels, signals,
    voxel, table, fast_terms, fast_precision,
):  # fmt: skip
    n_rows, n = signals.shape
    result = np.empty((n_rows, n))
    amplitudes = np.empty((n_rows, n_labels))
    log_determinant = np.zeros(n_rows)
    cross, power = np.empty(n_labels), np.empty(n_labels)
    n_terms = len(fast_terms.label)
    fast_measured, fast_signal = np.empty(n_terms), np.empty(n_terms)
    fast_power = np.empty(n_terms)
    for row in range(n_rows):
        v = voxel[row]
        amplitude = amplitudes[row]
        # A linear fit, then twice with the Rician bias at the current amplitudes removed.
        for iteration in range(3 if rician_sigma[v] > 0 else 1):
            cross[:] = 0
            power[:] = 0
            for m in range(n):
                k, s = labels[m], signals[row, m]
                y = measured[v, m]
                if iteration > 0:
                    snr = abs(amplitude[k] * s) / rician_sigma[v]
                    y -= rician_sigma[v] * compiled_excess(snr, table)
                w = inverse_sd[v, m] ** 2 * s
                cross[k] += w * y
                power[k] += w * s
            fast_measured[:] = 0
            fast_signal[:] = 0
            for g in range(n_terms):  # copies of arrays take seconds to compile
                fast_power[g] = fast_precision[v, g]
            for i in range(len(fast_terms.rows)):
                m, g, decay = fast_terms.rows[i], fast_terms.term[i], fast_terms.decay[i]
                w = inverse_sd[v, m] ** 2 * decay
                fast_measured[g] += w * measured[v, m]
                fast_signal[g] += w * signals[row, m]
                fast_power[g] += w * decay
            for g in range(n_terms):
                cross[fast_terms.label[g]] -= fast_signal[g] * fast_measured[g] / fast_power[g]
                power[fast_terms.label[g]] -= fast_signal[g] ** 2 / fast_power[g]
            for k in range(n_labels):
                amplitude[k] = max(cross[k] / max(power[k], 1e-12), 1e-6 * sigma[v])
        for k in range(n_labels):
            log_determinant[row] += 0.5 * np.log(max(power[k], 1e-12))
        for m in range(n):
            mean = amplitude[labels[m]] * signals[row, m]
            if rician_sigma[v] > 0:
                mean += rician_sigma[v] * compiled_excess(abs(mean) / rician_sigma[v], table)
            result[row, m] = (measured[v, m] - mean) * inverse_sd[v, m]
        for k in range(directions.shape[1]):
            if damping[v, k] > 0:
                direction = directions[v, k]
                _subtract(result[row], direction, damping[v, k] * _dot(direction, result[row]))
    return result, amplitudes, log_determinant
