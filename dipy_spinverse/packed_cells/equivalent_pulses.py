"""Free waveforms as their equivalent pairs of pulses.

Signals of packed cells depend on a waveform through the times over which water diffuses. To
second order in q, water that meets walls at a rate r is weighted by

    beff(r) = 1/(2 r) int int g(t) g(t')^T exp(-r |t - t'|) dt dt',

a tensor that is the b-tensor at r = 0 and decreases with r [1]_, [2]_. Equivalent pulses have the
b-tensor of the waveform, and the delta and Delta whose tr beff / b is closest to its own. The
remaining difference has a closed form (``waveform_correction``).

References
----------
.. [1] Stepisnik, Physica B 183 (1993), https://doi.org/10.1016/0921-4526(93)90124-O
.. [2] Lundell and Lasic, in Advanced Diffusion Encoding Methods in MRI (2020),
   https://doi.org/10.1039/9781788019910-00012
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numba import njit
from scipy.optimize import least_squares

from dipy_spinverse.acquisition import (
    Acquisition,
    BaseAcquisition,
    TensorAcquisition,
    WaveformAcquisition,
    require_pulsed,
)
from dipy_spinverse.acquisition.b_tensors import with_fixed_sign
from dipy_spinverse.acquisition.base import SAME_B0, distinct_times
from dipy_spinverse.acquisition.waveforms import Waveforms
from dipy_spinverse.packed_cells.waveform_correction import (
    RATES,
    EncodingSpectrum,
    exchange_time,
    pulse_relative_b,
)
from dipy_spinverse.user_warnings import warn

# Rates times durations below which exponentials are expanded in series.
_SMALL = 3e-3
# Largest difference of beff / b, and of shapes of b-tensors, within one kind of waveform; this and
# the following limits are chosen by hand.
_SAME_KIND = 2e-3
# Deviation of the b-tensor from axial symmetry, relative to b, that gives a warning.
_ASYMMETRIC = 0.05
# At lower rates all waveforms of one b are nearly alike.
_INFORMATIVE = RATES > 0.02
# Initial values of the pulses: Delta in units of the spectrum's time, and logits of delta / Delta;
# the best four are refined.
_LONG, _LOGITS, _N_INITIAL = np.geomspace(0.7, 30, 16), np.arange(-4.0, 4.0), 4


@dataclass(frozen=True, eq=False)
class EquivalentPulses:
    """Measurements with free waveforms, as their equivalent pulses.

    The directions (M, 3) are the axes about which the tensors beff are most symmetric, and
    `b_anisotropy` (M,) is 1 of linear, -1/2 of planar and 0 of spherical b-tensors. `timings`
    (T, 3) are delta and Delta of the pulses, and TE, ms. `spectra` (K,) are those of each kind of
    waveforms. Names in `_OF_ACQUISITION` are attributes, too.
    """

    acquisition: WaveformAcquisition
    directions: np.ndarray
    b_anisotropy: np.ndarray
    timings: np.ndarray
    timing_index: np.ndarray
    spectra: tuple[EncodingSpectrum, ...]
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.acquisition)

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in _OF_ACQUISITION:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.acquisition, name)

    @property
    def direction_averaged(self) -> np.ndarray:
        """(M,) bool, as of pulses; b0 that hardly decay have no direction."""
        return (self.b > 0) & ~self.directions.any(axis=1)

    @property
    def small_delta(self) -> np.ndarray:
        """(M,) of the pulses, ms."""
        return self.timings[self.timing_index, 0]

    @property
    def big_delta(self) -> np.ndarray:
        """(M,) of the pulses, ms."""
        return self.timings[self.timing_index, 1]

    @cached_property
    def q(self) -> np.ndarray:
        """(M,) of linear pulses with this b, rad/um."""
        return np.sqrt(self.b / (self.big_delta - self.small_delta / 3))


_OF_ACQUISITION = (
    "b", "b_tensors", "b0_mask", "isotropic", "n_averages", "te", "mixing_time", "te_index"
)  # fmt: skip
PulsedMeasurements = Acquisition | EquivalentPulses


def equivalent_pulses(acquisition: BaseAcquisition | EquivalentPulses) -> PulsedMeasurements:
    """Equivalent pulses of measurements; pulsed ones are returned as they are."""
    if isinstance(acquisition, WaveformAcquisition):
        return _of_waveforms(acquisition)
    if isinstance(acquisition, TensorAcquisition):
        raise ValueError(
            "acquisition is a TensorAcquisition, which does not say when water diffuses: sizes "
            "and exchange of packed cells need the timing. Give the waveforms, "
            "WaveformAcquisition.from_samples, or fit a model of Gaussian diffusion."
        )
    if isinstance(acquisition, EquivalentPulses):
        return acquisition
    return require_pulsed(acquisition)


@lru_cache(maxsize=8)
def _of_waveforms(acquisition):
    # The shape of b-tensors that hardly decay, often of imaging gradients alone, is ignored.
    n, weighted = len(acquisition), ~acquisition.b0_mask | (acquisition.b > SAME_B0)
    axes, asymmetry = np.zeros((n, 3)), np.zeros(n)
    relative_b, time = np.ones((n, len(RATES), 2)) / 3, np.ones(n)
    for waveforms in acquisition.waveforms:
        waveforms = waveforms.select(weighted[waveforms.rows])
        rows = waveforms.rows
        if len(rows):
            tensors, time[rows] = tensor_spectra(waveforms)
            axes[rows], relative_b[rows], asymmetry[rows] = _axisymmetric(tensors)
    _warn_of_asymmetry(asymmetry)
    kind, examples = _kinds(np.column_stack([relative_b.reshape(n, -1), np.log(time)]), weighted)
    along, radial = relative_b[examples, 0].T
    anisotropy = (along - radial) / (along + 2 * radial)
    anisotropy[np.abs(anisotropy) < _SAME_KIND] = 0
    pulses = np.array([_closest_pulses(relative_b[m] @ [1, 2], time[m]) for m in examples])
    for m in np.flatnonzero(~weighted):
        # The kind of weighted measurements of the same echo time.
        same_te = np.flatnonzero(weighted & (acquisition.te_index == acquisition.te_index[m]))
        kind[m] = kind[same_te[0]] if len(same_te) else 0
    spectra = tuple(
        EncodingSpectrum(
            float(time[m]), tuple(map(tuple, relative_b[m].tolist())), _exchange(acquisition, m)
        )
        for m in examples
    )
    echo = np.stack([acquisition.te, acquisition.mixing_time], axis=1)
    timings, index = distinct_times(np.column_stack([pulses[kind], echo]))
    return EquivalentPulses(
        acquisition, axes, np.where(weighted, anisotropy[kind], 1.0), timings[:, :3], index,
        spectra, kind,
    )  # fmt: skip


def _exchange(acquisition, m):
    waveforms = next(w for w in acquisition.waveforms if m in w.rows)
    return exchange_time(waveforms.select(np.flatnonzero(waveforms.rows == m)))


def tensor_spectra(waveforms: Waveforms) -> tuple[np.ndarray, np.ndarray]:
    """beff / b (m, K, 3, 3) at `RATES` over times (m,), and these times, ms."""
    spans = np.diff(waveforms.times)
    start, stop = np.moveaxis(waveforms.rates, 1, 0)
    power = np.einsum("k,kmi,kmi->m", spans / 3, start, start + stop)
    power += np.einsum("k,kmi,kmi->m", spans / 3, stop, stop)
    b = np.trace(waveforms.b_tensors(), axis1=1, axis2=2)
    time = np.sqrt(b / power)
    gradients = np.ascontiguousarray(np.moveaxis(waveforms.rates, 2, 0))
    relative_b = [
        _effective_b(gradient, spans, RATES / t) / total
        for gradient, t, total in zip(gradients, time, b, strict=True)
    ]
    return np.array(relative_b), time


@njit(cache=True, nogil=True)
def _effective_b(gradient, spans, rates):
    """beff (K, 3, 3) of a piecewise linear gradient (P, 2, 3): exact."""
    result = np.zeros((len(rates), 3, 3))
    level, tilt = np.zeros(3), np.zeros(3)
    for k in range(len(rates)):
        rate, state = rates[k], np.zeros(3)
        for p in range(len(spans)):
            h = spans[p]
            z = rate * h
            decay = np.exp(-z)
            # Integrals over an interval of exponentials times powers of time.
            if z < _SMALL:
                i0, i1, i2 = 1 - z / 2 + z * z / 6, 0.5 - z / 6 + z * z / 24, 1 / 6 - z / 24
                j0, j1, j2 = 0.5 - z / 3 + z * z / 8, 1 / 3 - z / 8, 0.125 - z / 30
            else:
                i0 = (1 - decay) / z
                i1, j0 = (1 - i0) / z, (1 - decay * (1 + z)) / z**2
                i2, j1 = (0.5 - i1) / z, (0.5 - j0) / z
                j2 = (1 / 3 - j1) / z
            for i in range(3):
                g, change = gradient[p, 0, i], gradient[p, 1, i] - gradient[p, 0, i]
                level[i] = h * (i0 * state[i] + h * (i1 * g + i2 * change))
                tilt[i] = h * (j0 * state[i] + h * (j1 * g + j2 * change))
                state[i] = decay * state[i] + h * (i0 * g + i1 * change)
            for i in range(3):
                g, change = gradient[p, 0, i], gradient[p, 1, i] - gradient[p, 0, i]
                for j in range(3):
                    result[k, i, j] += g * level[j] + change * tilt[j]
        result[k] = (result[k] + result[k].T) / (2 * rate)
    return result


def _axisymmetric(tensors):
    """Axes (m, 3) of tensors (m, K, 3, 3), their components (m, K, 2) along and across these,
    and the deviation (m,) of the first from axial symmetry."""
    scaled = tensors * (1 + RATES**2)[:, None, None]
    candidates = np.linalg.eigh(scaled[:, :: len(RATES) // 4])[1]
    candidates = np.swapaxes(candidates, 2, 3).reshape(len(tensors), -1, 3)
    along = np.einsum("mci,mkij,mcj->mck", candidates, scaled, candidates, optimize=True)
    radial = (np.trace(scaled, axis1=2, axis2=3)[:, None] - along) / 2
    # The norm of the axisymmetric part is largest where that of the remainder is least.
    best_candidate = (along**2 + 2 * radial**2).sum(axis=2).argmax(axis=1)
    row = np.arange(len(tensors))
    axes = with_fixed_sign(candidates[row, best_candidate])
    components = np.stack([along[row, best_candidate], radial[row, best_candidate]], axis=2)
    remainder = (scaled[:, 0] ** 2).sum(axis=(1, 2)) - components[:, 0] ** 2 @ [1, 2]
    asymmetry = np.sqrt(2 * np.maximum(remainder, 0))
    return axes, components / (1 + RATES**2)[:, None], asymmetry


def _warn_of_asymmetry(asymmetry):
    n_asymmetric = np.sum(asymmetry > _ASYMMETRIC)
    if n_asymmetric:
        warn(
            f"acquisition has {n_asymmetric} measurements whose b-tensors have three different "
            f"eigenvalues, by up to {100 * asymmetry.max():.0f} % of b; packed cells treat them "
            "as axially symmetric, an error of the same size. Leave them out "
            "(acquisition.subset), or use linear, planar and spherical ones."
        )


def _kinds(features, weighted):
    """Kind (M,) of each weighted row, else 0, and the first row of each kind."""
    kind, examples = np.zeros(len(features), dtype=int), list[int]()
    for m in np.flatnonzero(weighted):
        difference = np.abs(features[examples] - features[m]).max(axis=1, initial=0)
        matches = np.flatnonzero(difference < _SAME_KIND)
        if not len(matches):
            examples.append(m)
        kind[m] = matches[0] if len(matches) else len(examples) - 1
    return kind, np.array(examples, dtype=int)


def _closest_pulses(relative_b, time):
    """delta and Delta, ms, of the pulses whose beff / b is closest to that given (K,)."""

    def pulses(x):
        return np.exp(x[0]) * np.array([1 / (1 + np.exp(-x[1])), 1])

    def residual(x):
        # Weighted so that low and high rates contribute alike.
        difference = pulse_relative_b(*pulses(x), RATES[_INFORMATIVE] / time)
        return (difference - relative_b[_INFORMATIVE]) * (1 + RATES[_INFORMATIVE])

    initial = [np.array([np.log(long * time), logit]) for long in _LONG for logit in _LOGITS]
    initial = sorted(initial, key=lambda x: (residual(x) ** 2).sum())[:_N_INITIAL]
    solutions = [
        least_squares(residual, x, method="lm", xtol=1e-10, ftol=1e-14, diff_step=1e-5)
        for x in initial
    ]
    return pulses(min(solutions, key=lambda solution: solution.cost).x)
