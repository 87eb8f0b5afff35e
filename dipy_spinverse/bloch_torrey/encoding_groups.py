"""Which measurements are simulated, side by side, and where their encoding is cut in time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.polynomial.legendre import legvander

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.waveforms import Waveforms

# A part of an encoding is a stretch of time in which every q(t) is a cubic, up to this share of
# its largest q. Steps are placed by parts; what q(t) does within a step counts whatever it is.
_PART_TOLERANCE = 3e-3
_SAMPLES = np.linspace(0, 1, 4)  # of each piece
_MOST_PIECES = 600  # of finely sampled waveforms, some knots are enough


def unique_encodings(acquisition: BaseAcquisition) -> tuple[np.ndarray, np.ndarray]:
    """Measurements that differ in q(t), up to its sign: the only ones to simulate.

    Returns
    -------
    representatives : ndarray (U,)
        Index of one measurement of each kind.
    encoding : ndarray (M,)
        The kind of each measurement.
    """
    representatives: list[int] = []
    encoding = np.empty(len(acquisition), dtype=int)
    for waveforms in acquisition.waveforms:
        rates = np.moveaxis(waveforms.rates, 2, 0).reshape(len(waveforms.rows), -1)
        rates = rates.round(9) + 0.0
        first_nonzero = np.argmax(rates != 0, axis=1)
        rates *= np.sign(np.take_along_axis(rates, first_nonzero[:, None], axis=1))
        kinds: dict[bytes, list[int]] = {}
        for row, key in zip(waveforms.rows, rates + 0.0, strict=True):
            kinds.setdefault(key.tobytes(), []).append(row)
        for rows in kinds.values():
            encoding[rows] = len(representatives)
            representatives.append(rows[0])
    return np.array(representatives), encoding


def timing_groups(
    acquisition: BaseAcquisition, representatives: np.ndarray
) -> list[tuple[Waveforms, bool]]:
    """Waveforms of the same duration and symmetry, and whether they are symmetric in time.

    Of the measurements `representatives` (U,); rows count among these.
    """
    place = np.full(len(acquisition), -1)
    place[representatives] = np.arange(len(representatives))
    groups = []
    for waveforms in acquisition.waveforms:
        waveforms = replace(waveforms, rows=place[waveforms.rows])
        waveforms = waveforms.select(waveforms.rows >= 0)
        symmetric = waveforms.symmetric()
        for kind in (True, False):
            if (symmetric == kind).any():
                groups.append((waveforms.select(symmetric == kind), kind))
    return groups


def smooth_segments(waveforms: Waveforms) -> np.ndarray:
    """Times (P + 1,) between which each q(t) is smooth, see `_PART_TOLERANCE`; some knots."""
    n_pieces = len(waveforms.stored)
    kept = np.arange(n_pieces) % -(-n_pieces // _MOST_PIECES) == 0
    kept[1:] |= np.diff(waveforms.stored)
    times = np.append(waveforms.times[:-1][kept], waveforms.times[-1])
    stored, n_pieces = waveforms.stored[kept], kept.sum()
    t = times[:-1, None] + np.diff(times)[:, None] * _SAMPLES
    scale = np.where(waveforms.largest_q > 0, waveforms.largest_q, 1)[:, None]
    q = (waveforms.q(t.ravel()) / scale).reshape(n_pieces, len(_SAMPLES), -1)

    def smooth(first, last):
        if last > n_pieces or (stored[first:last] != stored[first]).any():
            return False
        samples = q[first:last].reshape((last - first) * len(_SAMPLES), -1)
        position = 2 * (t[first:last].ravel() - times[first]) / (times[last] - times[first]) - 1
        basis = np.linalg.qr(legvander(position, 3))[0]
        return np.abs(samples - basis @ (basis.T @ samples)).max() <= _PART_TOLERANCE

    edges = [0]
    while edges[-1] < n_pieces:
        first, size = edges[-1], 1
        while smooth(first, first + 2 * size):
            size *= 2
        low, high = first + size, min(first + 2 * size, n_pieces + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if smooth(first, middle) else (low, middle)
        edges.append(low)
    return times[edges]
