"""Groups of measurements that are simulated together, and segments of their encoding in time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.polynomial.legendre import legvander

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.waveforms import Waveforms

# A segment of an encoding is an interval in which every q(t) is a cubic, up to this fraction of
# its largest q. It only places the steps: what q(t) does within a step counts whatever it is.
_CUBIC_TOLERANCE = 3e-3
_SAMPLES = np.linspace(0, 1, 4)  # of each piece: as many as a cubic has coefficients
_MAX_KNOTS = 600  # of finely sampled waveforms, to bound the time that this takes


def unique_encodings(acquisition: BaseAcquisition) -> tuple[np.ndarray, np.ndarray]:
    """Measurements that differ in q(t) by more than sign, the only ones to simulate.

    Index (U,) of one of each kind, and the kind (M,) of each measurement.
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

    Of the measurements `representatives` (U,); rows are indices into these.
    """
    index = np.full(len(acquisition), -1)
    index[representatives] = np.arange(len(representatives))
    groups = []
    for waveforms in acquisition.waveforms:
        waveforms = replace(waveforms, rows=index[waveforms.rows])
        waveforms = waveforms.select(waveforms.rows >= 0)
        symmetric = waveforms.symmetric()
        for kind in (True, False):
            if (symmetric == kind).any():
                groups.append((waveforms.select(symmetric == kind), kind))
    return groups


def smooth_segments(waveforms: Waveforms) -> np.ndarray:
    """Times (P + 1,) between which each q(t) is smooth, see `_CUBIC_TOLERANCE`; some knots."""
    n_pieces = len(waveforms.stored)
    is_knot = np.arange(n_pieces) % -(-n_pieces // _MAX_KNOTS) == 0
    is_knot[1:] |= np.diff(waveforms.stored)
    times = np.append(waveforms.times[:-1][is_knot], waveforms.times[-1])
    stored, n_pieces = waveforms.stored[is_knot], is_knot.sum()
    t = times[:-1, None] + np.diff(times)[:, None] * _SAMPLES
    scale = np.where(waveforms.largest_q > 0, waveforms.largest_q, 1)[:, None]
    q = (waveforms.q(t.ravel()) / scale).reshape(n_pieces, len(_SAMPLES), -1)

    def smooth(start, stop):
        if stop > n_pieces or (stored[start:stop] != stored[start]).any():
            return False
        samples = q[start:stop].reshape((stop - start) * len(_SAMPLES), -1)
        position = 2 * (t[start:stop].ravel() - times[start]) / (times[stop] - times[start]) - 1
        basis = np.linalg.qr(legvander(position, 3))[0]
        return np.abs(samples - basis @ (basis.T @ samples)).max() <= _CUBIC_TOLERANCE

    edges = [0]
    while edges[-1] < n_pieces:
        start, size = edges[-1], 1
        while smooth(start, start + 2 * size):
            size *= 2
        low, high = start + size, min(start + 2 * size, n_pieces + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if smooth(start, middle) else (low, middle)
        edges.append(low)
    return times[edges]
