"""Measurements of packed cells that differ in direction only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.packed_cells.equivalent_pulses import EquivalentPulses, PulsedMeasurements
from dipy_spinverse.packed_cells.waveform_correction import EncodingSpectrum

# Steps of q by less than a thousandth are within one shell: an error of S below 0.1 %.
_SAME_Q = 1e-3


@dataclass(frozen=True, eq=False)
class Shells:
    """Measurements that differ in direction only.

    Attributes
    ----------
    order : ndarray (M,) of int
        Measurements, shell by shell.
    first : ndarray (S + 1,) of int
        Where each shell begins in `order`.
    q, small_delta, big_delta : ndarray (S,)
    b_anisotropy : ndarray (S,)
        1 of gradients along one direction, -1/2 of a plane that directions are normal to, 0 of
        b-tensors without one.
    spectra : tuple of EncodingSpectrum (S,)
        Of waveforms, whose most similar pulses these are; None of pulses.
    """

    order: np.ndarray
    first: np.ndarray
    q: np.ndarray
    small_delta: np.ndarray
    big_delta: np.ndarray
    b_anisotropy: np.ndarray
    spectra: tuple[EncodingSpectrum | None, ...]

    def __len__(self) -> int:
        return len(self.q)

    @property
    def of_measurement(self) -> np.ndarray:
        """Shell (M,) of each measurement, as ordered."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    @property
    def b(self) -> np.ndarray:
        """ms/um^2."""
        return self.q**2 * (self.big_delta - self.small_delta / 3)


def group_into_shells(acquisition: PulsedMeasurements) -> Shells:
    """Shells of one pair of pulses, or kind of waveforms, and one q each."""
    q, timing = acquisition.q, acquisition.timing_index
    kind, anisotropy = np.zeros_like(timing), np.ones(len(q))
    spectra: tuple[EncodingSpectrum | None, ...] = (None,)
    if isinstance(acquisition, EquivalentPulses):
        kind, spectra = acquisition.kind, acquisition.spectra
        anisotropy = acquisition.b_anisotropy
    order = np.lexsort((q, kind, timing))
    apart = (np.diff(timing[order]) > 0) | (np.diff(kind[order]) > 0)
    apart |= np.diff(q[order]) > _SAME_Q * q[order][1:]
    first = np.r_[0, np.flatnonzero(apart) + 1, len(q)]
    count = np.diff(first)
    mean_q = np.add.reduceat(q[order], first[:-1]) / count
    at = order[first[:-1]]
    small, big = acquisition.small_delta[at], acquisition.big_delta[at]
    return Shells(
        order, first, mean_q, small, big, anisotropy[at], tuple(spectra[k] for k in kind[at])
    )
