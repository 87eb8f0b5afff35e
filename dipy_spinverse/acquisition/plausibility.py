"""Warnings of pulse timings that contradict the b-values."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO
from dipy_spinverse.user_warnings import warn

# T/m, by hand: twice those of micro-imaging (1.5), six times the strongest for humans (0.5,
# https://doi.org/10.1016/j.neuroimage.2021.118530).
_STRONGEST = 3.0
# Relative deviations of largest gradients: rounded b-values and timings change them by less than
# the first; by the second they are not meant to be equal.
_EQUAL, _DIFFERENT = 0.01, 0.05
_SHORTEST_GAP_MS = 1.0  # between the pulses of a spin echo, for the refocusing pulse


def warn_of_timings(acquisition: Acquisition) -> None:
    """Warn of gradients that no scanner has, and of Delta that seem to be gaps between pulses."""
    weighted, delta = ~acquisition.b0_mask, acquisition.small_delta
    if not weighted.any():
        return
    strongest = acquisition.gradient_t_per_m[weighted].max()
    if strongest > _STRONGEST:
        warn(
            f"b-values, big_delta and small_delta imply gradients of up to {strongest:.3g} T/m, "
            f"more than any MRI scanner has ({_STRONGEST:g}): check their units, and that "
            "big_delta is between the leading edges of the pulses."
        )
    timings = [weighted & (acquisition.timing_index == k) for k in range(len(acquisition.timings))]
    largest = _largest_gradients(acquisition, acquisition.big_delta, timings)
    of_gaps = _largest_gradients(acquisition, acquisition.big_delta + delta, timings)
    gap = (acquisition.big_delta - acquisition.mixing_time - delta)[weighted].min()
    if _spread(largest) > _DIFFERENT and _spread(of_gaps) < _EQUAL:
        warn(
            "b-values and timings imply largest gradients of "
            f"{', '.join(f'{1e3 * g:.0f}' for g in largest)} mT/m, but all would be "
            f"{1e3 * of_gaps[0]:.0f} mT/m if big_delta were the gap between the pulses; it is "
            "between their leading edges: add small_delta if so."
        )
    elif gap < _SHORTEST_GAP_MS and not acquisition.mixing_time.any():
        warn(
            f"big_delta leaves {gap:.3g} ms between the pulses, too little for a refocusing "
            "pulse; it is between their leading edges: add small_delta if it is the gap."
        )


def _largest_gradients(acquisition, big_delta, timings):
    """T/m, of each timing."""
    q = np.sqrt(acquisition.b / (big_delta - acquisition.small_delta / 3))
    gradient = q * 1e9 / (GYROMAGNETIC_RATIO * acquisition.small_delta)
    return np.array([gradient[rows].max() for rows in timings if rows.any()])


def _spread(values):
    return values.max() / values.min() - 1
