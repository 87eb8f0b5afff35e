"""Which measurements of an acquisition share their times."""

from __future__ import annotations

from functools import cached_property

import numpy as np

_TIMING_DECIMALS = 6  # closer timings (ms) are one: seconds times 1000 is not exact


class SharedTimes:
    """Distinct echo times and pulse timings of measurements, and the b0 of each.

    For classes with arrays `te`, `small_delta`, `big_delta` (ms) and `b0_mask`.
    """

    @cached_property
    def mixing_time(self) -> np.ndarray:
        """(M,) ms during which the magnetisation is stored: none in a spin echo."""
        return read_only(np.zeros_like(self.te))

    @cached_property
    def _distinct_timings(self):
        return _distinct(np.stack([self.small_delta, self.big_delta, self.te], axis=1))

    @property
    def timings(self) -> np.ndarray:
        """(T, 3) the distinct (delta, Delta, TE) in ms, sorted."""
        return self._distinct_timings[0]

    @property
    def timing_index(self) -> np.ndarray:
        """(M,) row of `timings` of each measurement."""
        return self._distinct_timings[1]

    @cached_property
    def _distinct_echo_times(self):
        return _distinct(self.te)

    @property
    def echo_times(self) -> np.ndarray:
        """(K,) the distinct TE in ms, ascending."""
        return self._distinct_echo_times[0]

    @property
    def te_index(self) -> np.ndarray:
        """(M,) place in `echo_times` of each measurement."""
        return self._distinct_echo_times[1]

    @cached_property
    def b0_per_te(self) -> np.ndarray:
        """(K, M) bool: the b0 measurements of each of `echo_times`."""
        k = np.arange(self.echo_times.size)[:, None]
        return read_only(self.b0_mask & (self.te_index == k))

    @cached_property
    def b0_per_timing(self) -> np.ndarray:
        """(T, M) bool: the b0 measurements of each of `timings`."""
        t = np.arange(len(self.timings))[:, None]
        return read_only(self.b0_mask & (self.timing_index == t))


def _distinct(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, index = np.unique(times.round(_TIMING_DECIMALS), axis=0, return_inverse=True)
    return read_only(values), read_only(index.reshape(-1))


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
