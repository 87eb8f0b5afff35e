"""What signals of packed cells under a waveform have beyond those of the pulses most like it.

Two pools that exchange [1]_, under the waveform less under the pulses: an error that both share
cancels. Inside bodies phases are normal. Outside, the velocity of water loses its memory as
(1 + 2 D t / R^2)^-2, a mixture of exponentials, so that both follow from the same tensors beff
(``like_pulses``). Water exchanges for three times the mean |t - t'| under the weights q(t)^2 [2]_,
[3]_: the separation, of two short pulses.

References
----------
.. [1] Karger, Ber. Bunsenges. Phys. Chem. 75 (1971), https://doi.org/10.1002/bbpc.19710750727
.. [2] Ning et al., J. Chem. Phys. 148 (2018), https://doi.org/10.1063/1.5014044
.. [3] Chakwizira et al., NMR Biomed. 36 (2023), https://doi.org/10.1002/nbm.4827
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from scipy.interpolate import CubicSpline

from dipy_spinverse.acquisition.waveforms import Waveforms, pulsed_waveforms
from dipy_spinverse.bloch_torrey.analytic.bodies import DIMENSIONS, dipole_roots
from dipy_spinverse.bloch_torrey.analytic.exchange import karger_closed_form

# Times the root mean square of q over that of g: beyond, beff is that of no walls, or goes as the
# inverse square of the rate.
RATES = np.geomspace(1e-3, 100, 51)
# Of x exp(-x): rates 2 x D / R^2 of what walls take from the motion of water between bodies.
_NODES, _SHARES = np.polynomial.laguerre.laggauss(12)
_SHARES = _SHARES * _NODES
# Of a departure, its own error: what simulated packings leave beyond that of the emulator
# (benchmarks/waveform_tissue.py).
CORRECTION_ERROR = 0.3
# Into which a waveform is cut at least, and points of each.
_STEPS = 200
_GAUSS, _WEIGHTS = np.polynomial.legendre.leggauss(3)


@dataclass(frozen=True)
class EncodingSpectrum:
    """How water is weighted by the rate at which it meets walls, and for how long it exchanges.

    Attributes
    ----------
    time : float
        Root mean square of q over that of g, ms.
    passing : tuple (K, 2)
        beff / b along and across the axis, at `RATES` / time.
    exchange_time : float
        ms.
    """

    time: float
    passing: tuple[tuple[float, float], ...]
    exchange_time: float

    def at(self, rates: np.ndarray) -> np.ndarray:
        """beff / b (..., 2) at rates (...), 1/ms."""
        x = rates * self.time
        within = np.clip(x, *RATES[[0, -1]])
        found = self._spline(np.log(within)) / (1 + within[..., None] ** 2)
        return found * (within / np.maximum(x, within))[..., None] ** 2

    @cached_property
    def _spline(self):
        return CubicSpline(np.log(RATES), np.array(self.passing) * (1 + RATES**2)[:, None])


@cache
def pulse_spectrum(small_delta: float, big_delta: float) -> EncodingSpectrum:
    """Of two rectangular pulses, ms."""
    time = np.sqrt(small_delta * (big_delta - small_delta / 3) / 2)
    along = pulse_relative_b(small_delta, big_delta, RATES / time)
    passing = tuple((float(each), 0.0) for each in along)
    echo = small_delta + big_delta
    both = pulsed_waveforms(np.arange(1), np.eye(3)[:1], small_delta, big_delta, echo)
    return EncodingSpectrum(float(time), passing, exchange_time(both))


def pulse_relative_b(small_delta: float, big_delta: float, rates: np.ndarray) -> np.ndarray:
    """beff / b (K,) of two rectangular pulses at rates (K,), 1/ms."""
    a, b = rates * small_delta, rates * big_delta
    phases = 2 * a - 2 + 2 * np.exp(-a) + 2 * np.exp(-b) - np.exp(a - b) - np.exp(-a - b)
    return phases / (a**2 * (b - a / 3))


def exchange_time(waveforms: Waveforms) -> float:
    """Three times the mean |t - t'| of one waveform, weighted by q(t)^2 q(t')^2, ms."""
    edges = np.union1d(waveforms.times, np.linspace(0, waveforms.times[-1], _STEPS + 1))
    spans = np.diff(edges)[:, None]
    t = (edges[:-1, None] + spans * (_GAUSS + 1) / 2).ravel()
    weight = (waveforms.q(t)[:, 0] ** 2).sum(axis=1) * (spans * _WEIGHTS / 2).ravel()
    weight /= weight.sum()
    before, moment = np.cumsum(weight) - weight / 2, np.cumsum(weight * t) - weight * t / 2
    return float(6 * (weight * (t * before - moment)).sum())


def waveform_correction(
    shape: str, tissue: np.ndarray, spectrum: EncodingSpectrum, pulses: tuple[float, float],
    b: np.ndarray, square: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Signals (N, E) of a waveform less those of pulses of the same b-tensor.

    Parameters
    ----------
    shape : {"cylinder", "sphere"}
    tissue : ndarray (N, 5)
        As the emulator takes it.
    spectrum : EncodingSpectrum
        Of the waveform.
    pulses : (float, float)
        delta and Delta, ms.
    b : ndarray (E,)
        ms/um^2.
    square : ndarray (E,)
        Squared cosine between the axes of cylinders and waveform.
    """
    free = np.array(spectrum.passing[0])
    free = free / (free @ [1, 2])
    known = pulse_spectrum(*pulses)

    def of_pulses(rates):
        return known.at(rates)[..., :1] * free

    own = two_compartment_signals(
        shape, tissue, spectrum.at, free, spectrum.exchange_time, b, square
    )
    return own - two_compartment_signals(
        shape, tissue, of_pulses, free, known.exchange_time, b, square
    )


def two_compartment_signals(
    shape: str, tissue: np.ndarray, passing: Callable[[np.ndarray], np.ndarray], free: np.ndarray,
    time: float, b: np.ndarray, square: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Signals (N, E) of water inside and outside of bodies, with `passing` of rates beff / b
    (..., 2), `free` (2,) at none, and `time` to exchange, ms; else as
    :func:`waveform_correction`."""
    dimension, roots = DIMENSIONS[shape], np.array(dipole_roots(shape))
    radius, f, permeability, inside, outside = np.moveaxis(tissue[:, :, None], 1, 0)

    def across(both):
        along, flat = both[..., :1], both[..., 1:]
        if shape == "sphere":
            return along + 2 * flat + 0 * square
        return along * (1 - square) + flat * (1 + square)

    weights = 2 / (roots**2 - dimension + 1)
    confined = weights @ passing(inside / radius**2 * roots**2)
    slowed = _SHARES @ passing(2 * outside / radius**2 * _NODES)
    axial = 1 - across(free)
    within = inside * b * (across(confined) + axial)
    tortuosity = 1 / (1 + f / (dimension - 1))
    between = tortuosity * across(free) + (1 - tortuosity) * across(slowed) + axial
    to_leave = radius / (dimension * permeability) + radius**2 / (4 * (dimension + 2) * inside)
    return karger_closed_form(within, outside * b * between, time / to_leave, f)
