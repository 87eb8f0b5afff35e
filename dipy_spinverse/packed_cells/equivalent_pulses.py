"""Free waveforms as the pairs of pulses that are most like them.

Packed cells answer to a waveform by the times over which it lets water diffuse. To second order in
q, water that meets walls at a rate r is weighted by

    beff(r) = 1/(2 r) int int g(t) g(t')^T exp(-r |t - t'|) dt dt',

a tensor that is the b-tensor at r = 0, and smaller the faster walls are met [1]_, [2]_. The pulses
most like a waveform have its b-tensor, and of all delta and Delta those whose tr beff / b is most
similar. What still differs is a closed form (``departures``).

References
----------
.. [1] Stepisnik, Physica B 183 (1993), https://doi.org/10.1016/0921-4526(93)90124-O
.. [2] Lundell and Lasic, in Advanced Diffusion Encoding Methods in MRI (2020),
   https://doi.org/10.1039/9781788019910-00012
"""

from __future__ import annotations

import warnings
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
from dipy_spinverse.acquisition.base import distinct_times
from dipy_spinverse.acquisition.waveforms import Waveforms
from dipy_spinverse.packed_cells.waveform_correction import (
    RATES,
    EncodingSpectrum,
    exchange_time,
    pulse_relative_b,
)

# Rates times durations below which exponentials are series.
_SMALL = 3e-3
# Of beff / b and of shapes of b-tensors, between waveforms of one kind.
_SAME_KIND = 2e-3
# Of b: what the b-tensor may differ by across its axis without a warning.
_LOPSIDED = 0.05
# Below, all waveforms of one b are nearly alike.
_TELLING = RATES > 0.02
# Delta in units of the time of `RATES`, and logits of delta / Delta, from which pulses are sought.
_LONG, _PULSED, _STARTS = np.geomspace(0.7, 30, 16), np.arange(-4.0, 4.0), 4


@dataclass(frozen=True, eq=False)
class EquivalentPulses:
    """Measurements with free waveforms, as the pulses most like them.

    It has what an `Acquisition` tells of the measurements, and

    Attributes
    ----------
    acquisition : WaveformAcquisition
    directions : ndarray (M, 3)
        Axes about which the tensors beff are symmetric, as far as there is one.
    b_anisotropy : ndarray (M,)
        Their shapes: 1 linear, -1/2 planar, 0 spherical.
    timings : ndarray (T, 3)
        delta and Delta of the pulses, and TE, ms.
    timing_index : ndarray (M,) of int
        Row of `timings`.
    spectra : tuple of EncodingSpectrum (K,)
        Of each kind of waveforms.
    kind : ndarray (M,) of int
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

    @property
    def b(self) -> np.ndarray:
        """(M,) ms/um^2."""
        return self.acquisition.b

    @property
    def b_tensors(self) -> np.ndarray:
        """(M, 3, 3) ms/um^2."""
        return self.acquisition.b_tensors

    @property
    def b0_mask(self) -> np.ndarray:
        """(M,) without diffusion weighting."""
        return self.acquisition.b0_mask

    @property
    def isotropic(self) -> np.ndarray:
        """(M,) averages over directions."""
        return self.acquisition.isotropic

    @property
    def te(self) -> np.ndarray:
        """(M,) echo times, ms."""
        return self.acquisition.te

    @property
    def mixing_time(self) -> np.ndarray:
        """(M,) ms."""
        return self.acquisition.mixing_time

    @property
    def te_index(self) -> np.ndarray:
        """(M,) which of the echo times."""
        return self.acquisition.te_index

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
        """(M,) of pulses along one direction with this b, rad/um."""
        b = np.where(self.b0_mask, 0.0, self.b)
        return np.sqrt(b / (self.big_delta - self.small_delta / 3))


PulsedMeasurements = Acquisition | EquivalentPulses


def equivalent_pulses(acquisition: BaseAcquisition | EquivalentPulses) -> PulsedMeasurements:
    """Pulsed measurements as they are, others as the pulses most like them.

    Raises
    ------
    ValueError
        B-tensors without waveforms.
    """
    if isinstance(acquisition, WaveformAcquisition):
        return _like_pulses(acquisition)
    if isinstance(acquisition, TensorAcquisition):
        raise ValueError(
            "acquisition is a TensorAcquisition, which does not say when water diffuses: sizes "
            "and exchange of packed cells need the timing. Give the waveforms, "
            "WaveformAcquisition.from_samples, or fit a model of Gaussian diffusion."
        )
    return (
        acquisition if isinstance(acquisition, EquivalentPulses) else require_pulsed(acquisition)
    )


@lru_cache(maxsize=8)
def _like_pulses(acquisition):
    n, weighted = len(acquisition), ~acquisition.b0_mask
    axes, passing, time = np.zeros((n, 3)), np.ones((n, len(RATES), 2)) / 3, np.ones(n)
    lopsided = np.zeros(n)
    for waveforms in acquisition.waveforms:
        some = waveforms.select(weighted[waveforms.rows])
        if len(some.rows):
            tensors, time[some.rows] = tensor_spectra(some)
            axes[some.rows], passing[some.rows], lopsided[some.rows] = _symmetric(tensors)
    _warn_of_lopsided(lopsided)
    kind, first = _alike(np.column_stack([passing.reshape(n, -1), np.log(time)]), weighted)
    along, across = passing[first, 0].T
    shape = (along - across) / (along + 2 * across)
    shape[np.abs(shape) < _SAME_KIND] = 0
    pulses = np.array([_most_like(passing[m] @ [1, 2], time[m]) for m in first])
    for m in np.flatnonzero(~weighted):
        # As others of the same echo time.
        same = np.flatnonzero(weighted & (acquisition.te_index == acquisition.te_index[m]))
        kind[m] = kind[same[0]] if len(same) else 0
    spectra = tuple(
        EncodingSpectrum(
            float(time[m]), tuple(map(tuple, passing[m].tolist())), _exchange(acquisition, m)
        )
        for m in first
    )
    echo = np.stack([acquisition.te, acquisition.mixing_time], axis=1)
    timings, index = distinct_times(np.column_stack([pulses[kind], echo]))
    return EquivalentPulses(
        acquisition, axes, np.where(weighted, shape[kind], 1.0), timings[:, :3], index, spectra,
        kind,
    )  # fmt: skip


def _exchange(acquisition, m):
    for waveforms in acquisition.waveforms:
        if m in waveforms.rows:
            return exchange_time(waveforms.select(np.flatnonzero(waveforms.rows == m)))
    raise IndexError(m)


def tensor_spectra(waveforms: Waveforms) -> tuple[np.ndarray, np.ndarray]:
    """beff / b (m, K, 3, 3) at `RATES` over the times (m,), ms, that go with these."""
    spans = np.diff(waveforms.times)
    start, end = np.moveaxis(waveforms.rates, 1, 0)
    power = np.einsum("k,kmi,kmi->m", spans / 3, start, start + end)
    power += np.einsum("k,kmi,kmi->m", spans / 3, end, end)
    b = np.trace(waveforms.b_tensors(), axis1=1, axis2=2)
    time = np.sqrt(b / power)
    gradients = np.ascontiguousarray(np.moveaxis(waveforms.rates, 2, 0))
    passing = [
        _passing(g, spans, RATES / t) / each for g, t, each in zip(gradients, time, b, strict=True)
    ]
    return np.array(passing), time


@njit(cache=True, nogil=True)
def _passing(gradient, spans, rates):
    """beff (K, 3, 3) of a gradient (P, 2, 3) that is linear on each of its pieces: exact."""
    result = np.zeros((len(rates), 3, 3))
    level, tilt = np.zeros(3), np.zeros(3)
    for k in range(len(rates)):
        rate, state = rates[k], np.zeros(3)
        for p in range(len(spans)):
            h = spans[p]
            z = rate * h
            left = np.exp(-z)
            # Integrals of the exponential with powers of time.
            if z < _SMALL:
                one, two, three = 1 - z / 2 + z * z / 6, 0.5 - z / 6 + z * z / 24, 1 / 6 - z / 24
                late, later, latest = 0.5 - z / 3 + z * z / 8, 1 / 3 - z / 8, 0.125 - z / 30
            else:
                one = (1 - left) / z
                two, late = (1 - one) / z, (1 - left * (1 + z)) / z**2
                three, later = (0.5 - two) / z, (0.5 - late) / z
                latest = (1 / 3 - later) / z
            for i in range(3):
                g, bend = gradient[p, 0, i], gradient[p, 1, i] - gradient[p, 0, i]
                level[i] = h * (one * state[i] + h * (two * g + three * bend))
                tilt[i] = h * (late * state[i] + h * (later * g + latest * bend))
                state[i] = left * state[i] + h * (one * g + two * bend)
            for i in range(3):
                g, bend = gradient[p, 0, i], gradient[p, 1, i] - gradient[p, 0, i]
                for j in range(3):
                    result[k, i, j] += g * level[j] + bend * tilt[j]
        result[k] = (result[k] + result[k].T) / (2 * rate)
    return result


def _symmetric(tensors):
    """Axes (m, 3) of tensors (m, K, 3, 3), their parts (m, K, 2) along and across these, and how
    much the first of them differ between directions across (m,)."""
    level = tensors * (1 + RATES**2)[:, None, None]
    candidates = np.linalg.eigh(level[:, :: len(RATES) // 4])[1]
    candidates = np.swapaxes(candidates, 2, 3).reshape(len(tensors), -1, 3)
    along = np.einsum("mci,mkij,mcj->mck", candidates, level, candidates, optimize=True)
    across = (np.trace(level, axis1=2, axis2=3)[:, None] - along) / 2
    # What a tensor has beyond these parts is least where their squares are most.
    best = (along**2 + 2 * across**2).sum(axis=2).argmax(axis=1)
    row = np.arange(len(tensors))
    axes = candidates[row, best]
    last = 2 - np.argmax(np.abs(axes[:, ::-1]) > 1e-9, axis=1)
    axes = axes * np.sign(np.take_along_axis(axes, last[:, None], axis=1))
    parts = np.stack([along[row, best], across[row, best]], axis=2)
    left = (level[:, 0] ** 2).sum(axis=(1, 2)) - parts[:, 0] ** 2 @ [1, 2]
    return axes, parts / (1 + RATES**2)[:, None], np.sqrt(2 * np.maximum(left, 0))


def _warn_of_lopsided(lopsided):
    many = np.sum(lopsided > _LOPSIDED)
    if many:
        warnings.warn(
            f"acquisition has {many} measurements whose b-tensors have three different "
            f"eigenvalues, by up to {100 * lopsided.max():.0f} % of b; packed cells take them for "
            "symmetric about an axis, which is wrong by as much. Leave them out "
            "(acquisition.subset), or use linear, planar and spherical ones.",
            stacklevel=2,
        )


def _alike(numbers, there):
    """Kind (M,) of each row that is there, else 0, and the first row of each kind."""
    kind, first = np.zeros(len(numbers), dtype=int), list[int]()
    for m in np.flatnonzero(there):
        apart = np.abs(numbers[first] - numbers[m]).max(axis=1, initial=0)
        near = np.flatnonzero(apart < _SAME_KIND)
        if not len(near):
            first.append(m)
        kind[m] = near[0] if len(near) else len(first) - 1
    return kind, np.array(first, dtype=int)


def _most_like(passing, time):
    """delta and Delta, ms, of the pulses whose beff / b is most like that given (K,)."""

    def pulses(x):
        return np.exp(x[0]) * np.array([1 / (1 + np.exp(-x[1])), 1])

    def apart(x):
        # What is left where rates are large counts like what is lost where they are small.
        left = pulse_relative_b(*pulses(x), RATES[_TELLING] / time) - passing[_TELLING]
        return left * (1 + RATES[_TELLING])

    starts = [np.array([np.log(long * time), start]) for long in _LONG for start in _PULSED]
    starts = sorted(starts, key=lambda x: (apart(x) ** 2).sum())[:_STARTS]
    found = [
        least_squares(apart, x, method="lm", xtol=1e-10, ftol=1e-14, diff_step=1e-5)
        for x in starts
    ]
    return pulses(min(found, key=lambda each: each.cost).x)
