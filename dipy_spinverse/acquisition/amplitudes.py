"""Measurements that share their signal without diffusion, S0."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def amplitude_labels(acquisition: Any, amplitudes: str | ArrayLike) -> np.ndarray:
    """Label (M,) of each measurement, 0 ... L-1; measurements of one label share their S0.

    `amplitudes` is "te" (of each echo time), "timing" (of each delta, Delta and echo time, as the
    gain of a scanner may differ between series), or labels (M,).
    """
    if isinstance(amplitudes, str):
        if amplitudes not in ("te", "timing"):
            raise ValueError(
                f"amplitudes is {amplitudes!r}; give 'te', 'timing', or a label for each "
                "measurement."
            )
        if amplitudes == "timing" and not hasattr(acquisition, "timing_index"):
            raise ValueError(
                "amplitudes is 'timing', but b-tensors have no pulse timings; give a label for "
                "each measurement."
            )
        return acquisition.te_index if amplitudes == "te" else acquisition.timing_index
    labels = np.asarray(amplitudes)
    if labels.shape != (len(acquisition),):
        raise ValueError(
            f"amplitudes has shape {labels.shape}; give one label for each of the "
            f"{len(acquisition)} measurements."
        )
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def labels_of_others(
    fitted: Any, labels: np.ndarray, amplitudes: str | ArrayLike, others: Any
) -> np.ndarray:
    """Label (M,) of other measurements: that of the same echo time, or, unless "te", timing.

    Raises
    ------
    ValueError
        Measurements without a label.
    """
    by_echo = isinstance(amplitudes, str) and amplitudes == "te"
    fitted_keys, keys = (_keys(acquisition, by_echo) for acquisition in (fitted, others))
    fitted_keys, index = np.unique(fitted_keys, axis=0, return_inverse=True)
    # Labels that share a timing cannot be assigned to other measurements of it.
    pairs = np.unique(np.column_stack([index.reshape(-1), labels]), axis=0)
    distance = np.abs(keys[:, None] - fitted_keys).max(axis=2)
    if distance.min(axis=1).max() > 1e-3 or len(fitted_keys) < len(pairs):
        raise ValueError(
            f"gtab has measurements whose amplitude was not fitted (echo times "
            f"{np.unique(others.te).round(3).tolist()} ms, fitted "
            f"{np.unique(fitted.te).round(3).tolist()}); predict at the timings that were fitted, "
            "or give S0."
        )
    return pairs[distance.argmin(axis=1), 1]


def mean_per_te(acquisition: Any, amplitudes: np.ndarray) -> np.ndarray:
    """Mean (V, K) of the amplitudes (V, M) of measurements of each echo time."""
    members = acquisition.te_index == np.arange(len(acquisition.echo_times))[:, None]
    return amplitudes @ members.T / members.sum(axis=1)


def _keys(acquisition, by_echo):
    echo = acquisition.te, acquisition.mixing_time
    return np.column_stack(
        echo if by_echo else (*echo, acquisition.small_delta, acquisition.big_delta)
    )
