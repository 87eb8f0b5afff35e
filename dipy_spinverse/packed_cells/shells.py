"""Measurements of an acquisition, grouped into shells that differ in direction only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.packed_cells.equivalent_pulses import EquivalentPulses, PulsedMeasurements
from dipy_spinverse.packed_cells.waveform_correction import EncodingSpectrum

# Relative difference of q within a shell: changes signals by less than 0.1 %.
_SAME_Q = 1e-3


@dataclass(frozen=True, eq=False)
class Shells:
    """S shells of M measurements, which differ in q, delta, Delta and shape of the b-tensor.

    `order` (M,) are the measurements shell by shell, `starts` (S + 1,) where each shell starts.
    q is in rad/um, times in ms; `b_anisotropy` is 1 of linear, -1/2 of planar and 0 of spherical
    b-tensors. `spectra` are those of waveforms that the pulses are equivalent to, else None.
    """

    order: np.ndarray
    starts: np.ndarray
    q: np.ndarray
    small_delta: np.ndarray
    big_delta: np.ndarray
    b_anisotropy: np.ndarray
    spectra: tuple[EncodingSpectrum | None, ...]

    def __len__(self) -> int:
        return len(self.q)

    @property
    def of_measurement(self) -> np.ndarray:
        """Shell (M,) of each measurement, in the order of the shells."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @property
    def b(self) -> np.ndarray:
        """(S,) ms/um^2."""
        return self.q**2 * (self.big_delta - self.small_delta / 3)


def group_into_shells(acquisition: PulsedMeasurements) -> Shells:
    """Shells of the same q and timing, or kind of waveform."""
    q, timing = acquisition.q, acquisition.timing_index
    kind, anisotropy = np.zeros_like(timing), np.ones(len(q))
    spectra: tuple[EncodingSpectrum | None, ...] = (None,)
    if isinstance(acquisition, EquivalentPulses):
        kind, spectra = acquisition.kind, acquisition.spectra
        anisotropy = acquisition.b_anisotropy
    order = np.lexsort((q, kind, timing))
    is_new = (np.diff(timing[order]) > 0) | (np.diff(kind[order]) > 0)
    is_new |= np.diff(q[order]) > _SAME_Q * q[order][1:]
    starts = np.r_[0, np.flatnonzero(is_new) + 1, len(q)]
    mean_q = np.add.reduceat(q[order], starts[:-1]) / np.diff(starts)
    index = order[starts[:-1]]
    return Shells(
        order, starts, mean_q, acquisition.small_delta[index], acquisition.big_delta[index],
        anisotropy[index], tuple(spectra[k] for k in kind[index]),
    )  # fmt: skip
