"""Signals of packed cells under a waveform minus those under its equivalent pulses.

Two exchanging compartments [1]_, under the waveform minus under the pulses: errors that both share
cancel. Inside bodies the phase distribution is Gaussian. Outside, the velocity autocorrelation
decays as (1 + 2 D t / R^2)^-2, a mixture of exponentials, so that both compartments follow from
the same tensors beff (``equivalent_pulses``). Water exchanges for three times the mean |t - t'|
under the weights q(t)^2 [2]_, [3]_: the separation, of two short pulses.

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
from dipy_spinverse.bloch_torrey.analytic import DIMENSIONS, dipole_roots, karger_closed_form

# Rates of the spectra, multiplied by the root mean square of q over that of g. Below them beff is
# that of free diffusion, above it decreases as the inverse square of the rate.
RATES = np.geomspace(1e-3, 100, 51)
# Quadrature of x exp(-x), the weights of the rates 2 x D / R^2 of the velocity autocorrelation
# between bodies.
_NODES, _WEIGHTS = np.polynomial.laguerre.laggauss(12)
_WEIGHTS = _WEIGHTS * _NODES
# Relative error of a correction, beyond the error of the emulator, in simulated packings
# (benchmarks/waveform_tissue.py).
CORRECTION_ERROR = 0.3
# Quadrature over time: least number of intervals, and points of each.
_N_INTERVALS = 200
_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(3)


@dataclass(frozen=True)
class EncodingSpectrum:
    """Diffusion weighting as a function of the rate at which water meets walls, and exchange.

    `time`, ms, is the root mean square of q over that of g; `relative_b` (K, 2) is beff / b along
    and across the axis, at `RATES` / time; the exchange time is in ms.
    """

    time: float
    relative_b: tuple[tuple[float, float], ...]
    exchange_time: float

    def at(self, rates: np.ndarray) -> np.ndarray:
        """beff / b (..., 2) at rates (...), 1/ms."""
        x = rates * self.time
        limited = np.clip(x, *RATES[[0, -1]])
        values = self._spline(np.log(limited)) / (1 + limited[..., None] ** 2)
        return values * (limited / np.maximum(x, limited))[..., None] ** 2

    @cached_property
    def _spline(self):
        return CubicSpline(np.log(RATES), np.array(self.relative_b) * (1 + RATES**2)[:, None])


@cache
def pulse_spectrum(small_delta: float, big_delta: float) -> EncodingSpectrum:
    """Spectrum of two rectangular pulses, ms."""
    time = np.sqrt(small_delta * (big_delta - small_delta / 3) / 2)
    along = pulse_relative_b(small_delta, big_delta, RATES / time)
    relative_b = tuple((float(value), 0.0) for value in along)
    echo = small_delta + big_delta
    waveforms = pulsed_waveforms(np.arange(1), np.eye(3)[:1], small_delta, big_delta, echo)
    return EncodingSpectrum(float(time), relative_b, exchange_time(waveforms))


def pulse_relative_b(small_delta: float, big_delta: float, rates: np.ndarray) -> np.ndarray:
    """beff / b (K,) of two rectangular pulses at rates (K,), 1/ms."""
    a, b = rates * small_delta, rates * big_delta
    phases = 2 * a - 2 + 2 * np.exp(-a) + 2 * np.exp(-b) - np.exp(a - b) - np.exp(-a - b)
    return phases / (a**2 * (b - a / 3))


def exchange_time(waveforms: Waveforms) -> float:
    """Three times the mean |t - t'| of one waveform, weighted by q(t)^2 q(t')^2, ms."""
    edges = np.union1d(waveforms.times, np.linspace(0, waveforms.times[-1], _N_INTERVALS + 1))
    spans = np.diff(edges)[:, None]
    t = (edges[:-1, None] + spans * (_GAUSS_NODES + 1) / 2).ravel()
    weight = (waveforms.q(t)[:, 0] ** 2).sum(axis=1) * (spans * _GAUSS_WEIGHTS / 2).ravel()
    weight /= weight.sum()
    cumulative = np.cumsum(weight) - weight / 2
    moment = np.cumsum(weight * t) - weight * t / 2
    return float(6 * (weight * (t * cumulative - moment)).sum())


def waveform_correction(
    shape: str, tissue: np.ndarray, spectrum: EncodingSpectrum, pulses: tuple[float, float],
    b: np.ndarray, square: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Signals (N, E) of a waveform minus those of pulses of the same b-tensor.

    Tissue (N, 5) is in the units of the emulator; pulses are delta and Delta, ms; b (E,) is in
    ms/um^2, and `square` (E,) the squared cosine between the axes of cylinders and waveform.
    """
    free = np.array(spectrum.relative_b[0])
    free = free / (free @ [1, 2])
    of_pulses = pulse_spectrum(*pulses)

    def pulse_tensor(rates):
        return of_pulses.at(rates)[..., :1] * free

    return two_compartment_signals(
        shape, tissue, spectrum.at, free, spectrum.exchange_time, b, square
    ) - two_compartment_signals(
        shape, tissue, pulse_tensor, free, of_pulses.exchange_time, b, square
    )


def two_compartment_signals(
    shape: str, tissue: np.ndarray, relative_b: Callable[[np.ndarray], np.ndarray],
    free: np.ndarray, time: float, b: np.ndarray, square: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Signals (N, E) of water inside and outside of bodies.

    `relative_b` gives beff / b (..., 2) at rates (...), and `free` (2,) is that of free diffusion;
    `time` is the exchange time of the waveform, ms.
    """
    dimension, roots = DIMENSIONS[shape], np.array(dipole_roots(shape))
    radius, f, permeability, inside, outside = np.moveaxis(tissue[:, :, None], 1, 0)

    def across(tensor):
        along, flat = tensor[..., :1], tensor[..., 1:]
        if shape == "sphere":
            return along + 2 * flat + 0 * square
        return along * (1 - square) + flat * (1 + square)

    weights = 2 / (roots**2 - dimension + 1)
    restricted = weights @ relative_b(inside / radius**2 * roots**2)
    hindered = _WEIGHTS @ relative_b(2 * outside / radius**2 * _NODES)
    axial = 1 - across(free)
    intra = inside * b * (across(restricted) + axial)
    tortuosity = 1 / (1 + f / (dimension - 1))
    extra = tortuosity * across(free) + (1 - tortuosity) * across(hindered) + axial
    residence = radius / (dimension * permeability) + radius**2 / (4 * (dimension + 2) * inside)
    return karger_closed_form(intra, outside * b * extra, time / residence, f)
