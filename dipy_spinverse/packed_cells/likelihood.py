"""How well signals explain measured magnitudes, with the amplitudes eliminated.

Magnitudes are compared with the mean of their Rice distribution, in units of its standard
deviation [1]_; measurements that can be negative have normal noise. Errors of the emulator are
part of the noise, and shells share them the more the closer they are. So is a share of every
signal, the floor, that stands for what a scanner adds to noise. Fleeting terms have a normal prior
and are eliminated with the amplitudes.

References
----------
.. [1] Gudbjartsson and Patz, Magn. Reson. Med. 34 (1995), https://doi.org/10.1002/mrm.1910340618
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from dipy_spinverse.packed_cells.nuisance import FAST_PRIOR_SD, NO_FAST_TERMS, FastTerms
from dipy_spinverse.voxels.rician import (
    EXCESSES,
    compiled_excess,
    rician_excess,
    rician_variance,
)

# A priori the floor is half-normal with this standard deviation, of the signal.
_FLOOR_SPREAD = 0.004
_FLOORS = np.linspace(0, 0.016, 17)
# Of the derivative of the mean magnitude, in amplitudes over sigma.
_DIFFERENCE = 0.01
_TINY = 1e-200
_NO_TERM = 1e300
# Of a model error over the noise: weaker ones add less than 2 % to it.
_LEAST_STRENGTH = 0.2


@dataclass(frozen=True, eq=False)
class VoxelData:
    """Measurements of voxels and their noise.

    Attributes
    ----------
    data : ndarray (V, M)
    sigma : ndarray (V,)
        Standard deviation of the noise in each channel.
    magnitude : ndarray (V,) of bool
        Whether the noise is Rician.
    inverse_sd : ndarray (V, M)
        One over the standard deviations of the measurements; 0 for those left out.
    modes : ndarray (V, K, M)
        Orthonormal directions of whitened data along which model errors add to the noise.
    damping : ndarray (V, K)
        1 - 1/sqrt(1 + variance of the model error) along `modes`.
    labels : ndarray (M,) of int
        Measurements of one label share an amplitude.
    fleeting : FastTerms
    fleeting_spread : ndarray (V, G)
        Standard deviations of its terms a priori; 0 where there are none.
    """

    data: np.ndarray
    sigma: np.ndarray
    magnitude: np.ndarray
    inverse_sd: np.ndarray
    modes: np.ndarray
    damping: np.ndarray
    labels: np.ndarray
    fleeting: FastTerms
    fleeting_spread: np.ndarray

    @property
    def n_labels(self) -> int:
        """Number of amplitudes, K."""
        return int(self.labels.max()) + 1

    @property
    def n_used(self) -> int:
        """Measurements that are not left out."""
        return int((self.inverse_sd[0] > 0).sum())

    def of_voxels(self, index: np.ndarray) -> VoxelData:
        """Some of the voxels."""
        names = (
            "data", "sigma", "magnitude", "inverse_sd", "modes", "damping", "fleeting_spread",
        )  # fmt: skip
        own = {name: getattr(self, name)[index] for name in names}
        return VoxelData(**own, labels=self.labels, fleeting=self.fleeting)

    def with_spread(self, spread: np.ndarray) -> VoxelData:
        """The same, without errors of the model, with fleeting terms of other spreads (V, G)."""
        none = np.zeros((len(self.data), 1, self.data.shape[1]))
        return _with_errors(replace(self, fleeting_spread=spread), none)

    @property
    def widest_spread(self) -> np.ndarray:
        """Standard deviations (V, G) of all fleeting terms, told by weak weightings or not."""
        largest = np.abs(self.data).max(axis=1)[:, None]
        return FAST_PRIOR_SD * largest * np.ones(len(self.fleeting.told))

    @property
    def fleeting_precision(self) -> np.ndarray:
        """(V, G); huge where there is no term."""
        there = self.fleeting_spread > 0
        return np.where(there, 1 / np.where(there, self.fleeting_spread, 1.0) ** 2, _NO_TERM)

    @property
    def n_linear(self) -> np.ndarray:
        """Amplitudes and fleeting terms (V,)."""
        return self.n_labels + (self.fleeting_spread > 0).sum(axis=1)

    def with_inflated_noise(self, excess: np.ndarray) -> VoxelData:
        """The same with variances (V,) times as large."""
        scale = np.sqrt(excess)[:, None]
        return replace(self, inverse_sd=self.inverse_sd / scale)


def voxel_data(
    data: np.ndarray, sigma: np.ndarray, labels: np.ndarray, used: np.ndarray,
    fleeting: FastTerms = NO_FAST_TERMS,
) -> VoxelData:  # fmt: skip
    """Noise of the same standard deviation everywhere, and a model without errors."""
    n_voxels, n = data.shape
    inverse_sd = used / sigma[:, None]
    none = np.zeros((n_voxels, 1, n))
    known = VoxelData(
        data, sigma, data.min(axis=1) >= 0, inverse_sd, none, none[..., 0], labels, fleeting,
        np.zeros((n_voxels, len(fleeting.told))),
    )  # fmt: skip
    return known.with_spread(known.widest_spread * fleeting.told)


def with_model_errors(
    known: VoxelData, noise_free: np.ndarray, model_errors: np.ndarray, floor: np.ndarray
) -> VoxelData:
    """Variances of the measurements around a first fit, and the model's errors there.

    Parameters
    ----------
    known : VoxelData
    noise_free : ndarray (V, M)
        Signals of the first fit, in the units of the data.
    model_errors : ndarray (V, K, M)
        Errors with one standard deviation, in the units of the data.
    floor : ndarray (V,)
        Share of the signal.
    """
    inverse_sd = (known.inverse_sd > 0) / np.sqrt(
        _variances(known, noise_free) + (floor[:, None] * noise_free) ** 2
    )
    return _with_errors(replace(known, inverse_sd=inverse_sd), model_errors)


def _with_errors(known, model_errors):
    """Measurements with errors (V, K, M) of the model, and with fleeting terms."""
    rows, decay, term = known.fleeting[:3]
    terms = np.zeros((*known.fleeting_spread.shape, model_errors.shape[2]))
    terms[:, term, rows] = known.fleeting_spread[:, term] * decay
    errors = np.concatenate([model_errors, terms], axis=1)
    whitened = errors * known.inverse_sd[:, None]
    _, strength, modes = np.linalg.svd(whitened, full_matrices=False)
    # Rounding decides their sign otherwise, and with it what is drawn along them.
    largest = np.abs(modes).argmax(axis=2)[..., None]
    modes = modes * np.sign(np.take_along_axis(modes, largest, axis=2))
    felt = max(int((strength > _LEAST_STRENGTH).any(axis=0).sum()), 1)
    strength, modes = strength[:, :felt], modes[:, :felt]
    return replace(
        known,
        modes=np.ascontiguousarray(modes),
        damping=1 - 1 / np.sqrt(1 + strength**2),
    )


def _variances(known, noise_free):
    sigma = known.sigma[:, None]
    of_magnitude = np.maximum(rician_variance(noise_free / sigma), 0.3)
    return sigma**2 * np.where(known.magnitude[:, None], of_magnitude, 1.0)


def systematic_error(
    known: VoxelData, noise_free: np.ndarray, n_unknowns: np.ndarray
) -> np.ndarray:
    """Likeliest share (V,) of the signal that adds to the noise, from what a fit leaves."""
    mean = noise_free + known.sigma[:, None] * _excess(known, noise_free)
    used = known.inverse_sd > 0
    # What the fit took from the residual.
    left = used.sum(axis=1) / np.maximum(used.sum(axis=1) - n_unknowns, 1)
    square = (known.data - mean) ** 2 * left[:, None]
    noise = _variances(known, noise_free)
    costs = []
    for floor in _FLOORS:
        variance = noise + (floor * noise_free) ** 2
        each = used * (square / variance + np.log(variance))
        costs.append(0.5 * each.sum(axis=1) + 0.5 * (floor / _FLOOR_SPREAD) ** 2)
    return _FLOORS[np.argmin(costs, axis=0)]


def _excess(known, noise_free):
    relative = np.maximum(noise_free, 0) / known.sigma[:, None]
    return known.magnitude[:, None] * rician_excess(relative)


def expected_magnitudes(known: VoxelData, noise_free: np.ndarray) -> np.ndarray:
    """Mean measurements (V, M) of signals."""
    return noise_free + known.sigma[:, None] * _excess(known, noise_free)


def noise_free_data(
    known: VoxelData, signals: np.ndarray, amplitude: np.ndarray, voxel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free data (N, M) of signals, and the fleeting terms (N, G) that are part of them."""
    noise_free = amplitude[:, known.labels] * np.maximum(signals, 0)
    rows, decay, term = known.fleeting[:3]
    of_term = (term[:, None] == np.arange(len(known.fleeting.label))).astype(float)
    weight = known.inverse_sd[voxel][:, rows] ** 2 * decay
    rest = known.data[voxel][:, rows] - noise_free[:, rows]
    precision = (weight * decay) @ of_term + known.fleeting_precision[voxel]
    terms = (weight * rest) @ of_term / precision
    noise_free[:, rows] += terms[:, term] * decay
    return noise_free, terms


def residuals(known: VoxelData, signals: np.ndarray, voxel: np.ndarray):
    """Whitened residuals of signals with the best amplitude of each label.

    Parameters
    ----------
    known : VoxelData
    signals : ndarray (N, M)
        Relative to b = 0.
    voxel : ndarray (N,) of int
        Voxel that each row explains.

    Returns
    -------
    residual : ndarray (N, M)
        (data - mean measurement), whitened.
    amplitude : ndarray (N, K)
        Signal at b = 0 of each label.
    information : ndarray (N,)
        Half the logarithm of the determinant of the amplitudes' precision.
    """
    return _residuals(
        known.data, known.sigma * known.magnitude, known.sigma, known.inverse_sd, known.modes,
        known.damping, known.labels, known.n_labels, np.ascontiguousarray(signals), voxel,
        EXCESSES, known.fleeting, known.fleeting_precision,
    )  # fmt: skip


def normal_equations(
    known: VoxelData, signals: np.ndarray, amplitude: np.ndarray, slopes: np.ndarray,
    residual: np.ndarray, voxel: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Gradient (N, P) and Gauss-Newton Hessian (N, P, P) of half the sum of squared residuals.

    The amplitudes follow: only what they cannot explain counts.

    Parameters
    ----------
    signals : ndarray (N, M)
    amplitude : ndarray (N, K)
    slopes : ndarray (N, P, M)
        Derivatives of the signals.
    residual : ndarray (N, M)
        As :func:`residuals` gives it.
    """
    products, against = _products(
        known.sigma, known.magnitude, known.inverse_sd, known.modes, known.damping, known.labels,
        signals, amplitude, slopes, residual, voxel, EXCESSES,
    )  # fmt: skip
    p = slopes.shape[1]
    # Labels of which nothing is used have no amplitude to follow with.
    products[:, p:, p:] += _TINY * np.eye(known.n_labels)
    follow = np.linalg.solve(products[:, p:, p:], products[:, p:, :p])
    mixed = np.swapaxes(follow, 1, 2)
    gradient = (mixed @ against[:, p:, None])[..., 0] - against[:, :p]
    return gradient, products[:, :p, :p] - mixed @ products[:, p:, :p]


@njit(cache=True, nogil=True, fastmath=True)
def _products(
    sigma, magnitude, inverse_sd, modes, damping, labels, signals, amplitude, slopes, residual,
    voxel, table,
):  # fmt: skip
    """Products (N, P + K, P + K) of whitened derivatives by places and by amplitudes.

    And those (N, P + K) with the residual.
    """
    n_rows, p, n = slopes.shape
    n_modes, n_own = modes.shape[1], p + amplitude.shape[1]
    products, against = np.empty((n_rows, n_own, n_own)), np.empty((n_rows, n_own))
    own, weight, along = np.empty((n_own, n)), np.empty(n), np.empty((n_modes, n_own))
    seen = np.empty(n)
    for row in range(n_rows):
        v = voxel[row]
        for m in range(n):
            mean = amplitude[row, labels[m]] * signals[row, m]
            weight[m] = inverse_sd[v, m]
            if magnitude[v]:
                relative = max(mean, 0) / sigma[v]
                ahead = compiled_excess(relative + _DIFFERENCE, table)
                weight[m] *= 1 + (ahead - compiled_excess(relative, table)) / _DIFFERENCE
            seen[m] = residual[row, m]
        own[p:] = 0
        for m in range(n):
            own[p + labels[m], m] = signals[row, m] * weight[m]
            weight[m] *= amplitude[row, labels[m]]
        for i in range(p):
            for m in range(n):
                own[i, m] = slopes[row, i, m] * weight[m]
        for k in range(n_modes):
            if damping[v, k] > 0:
                mode = modes[v, k]
                _subtract(seen, mode, damping[v, k] * _dot(mode, residual[row]))
                for i in range(n_own):
                    along[k, i] = _dot(mode, own[i])
        for i in range(n_own):
            against[row, i] = _dot(own[i], seen)
            for j in range(i + 1):
                both = _dot(own[i], own[j])
                for k in range(n_modes):
                    if damping[v, k] > 0:
                        # 1 - (1 - damping)^2 of what lies along the modes is not seen.
                        unseen = damping[v, k] * (2 - damping[v, k])
                        both -= unseen * along[k, i] * along[k, j]
                products[row, i, j] = products[row, j, i] = both
    return products, against


@njit(cache=True, nogil=True, fastmath=True)
def _dot(one, other):
    total = 0.0
    for m in range(len(one)):
        total += one[m] * other[m]
    return total


@njit(cache=True, nogil=True, fastmath=True)
def _subtract(values, other, weight):
    for m in range(len(values)):
        values[m] -= weight * other[m]


@njit(cache=True, nogil=True, fastmath=True)
def _residuals(
    data, rician, sigma, inverse_sd, modes, damping, labels, n_labels, signals, voxel, table,
    fleeting, precision,
):  # fmt: skip
    n_rows, n = signals.shape
    result = np.empty((n_rows, n))
    amplitudes = np.empty((n_rows, n_labels))
    information = np.zeros(n_rows)
    cross, power = np.empty(n_labels), np.empty(n_labels)
    n_terms = len(fleeting.label)
    seen, mixed, own = np.empty(n_terms), np.empty(n_terms), np.empty(n_terms)
    for row in range(n_rows):
        v = voxel[row]
        amplitude = amplitudes[row]
        # Linear, then twice with the excess at the amplitude so far.
        for repeat in range(3 if rician[v] > 0 else 1):
            cross[:] = 0
            power[:] = 0
            for m in range(n):
                k, s = labels[m], signals[row, m]
                y = data[v, m]
                if repeat > 0:
                    y -= rician[v] * compiled_excess(abs(amplitude[k] * s) / rician[v], table)
                w = inverse_sd[v, m] ** 2 * s
                cross[k] += w * y
                power[k] += w * s
            seen[:] = 0
            mixed[:] = 0
            own[:] = precision[v]
            for i in range(len(fleeting.rows)):
                m, g, decay = fleeting.rows[i], fleeting.term[i], fleeting.decay[i]
                w = inverse_sd[v, m] ** 2 * decay
                seen[g] += w * data[v, m]
                mixed[g] += w * signals[row, m]
                own[g] += w * decay
            for g in range(n_terms):
                cross[fleeting.label[g]] -= mixed[g] * seen[g] / own[g]
                power[fleeting.label[g]] -= mixed[g] ** 2 / own[g]
            for k in range(n_labels):
                amplitude[k] = max(cross[k] / max(power[k], 1e-12), 1e-6 * sigma[v])
        for k in range(n_labels):
            information[row] += 0.5 * np.log(max(power[k], 1e-12))
        for m in range(n):
            mean = amplitude[labels[m]] * signals[row, m]
            if rician[v] > 0:
                mean += rician[v] * compiled_excess(abs(mean) / rician[v], table)
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
