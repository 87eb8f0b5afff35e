"""Errors of the emulated signals of packed cells, and how they correlate between shells."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.packed_cells.maps import tissue_parameters
from dipy_spinverse.packed_cells.orientations import rotation_of
from dipy_spinverse.packed_cells.shells import Shells
from dipy_spinverse.packed_cells.tissue_classes import TissueClass
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals

# Errors of two shells correlate as exp(-|x| / reach), x the logarithm of the ratio of their Delta,
# and of their b: so they do in packings that the emulator was not fitted to
# (results/emulator.md).
TIME_REACH, B_REACH = 1.5, 1.2
# Of the variance of the errors, in patterns that are left out.
_NEGLECTED = 0.03


def model_errors(
    model: TissueSignals, tissue: TissueClass, z: np.ndarray, frames: np.ndarray,
    patterns: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Errors (N, K, M) of the emulator with one standard deviation, of each pattern (K, S)."""
    values = tissue_parameters(tissue, z, model.diffusivity)
    cells = (1 - values["free_water"]) * (1 - values["dot"]) * (1 - values["hindered"])
    shell = model.shells.of_measurement
    patterns = patterns[:, shell]
    parts = []
    if tissue.has_cylinders:
        if tissue.turns:
            frames = rotation_of(z[:, -3:]) @ frames
        along = model.share_along(frames[:, 2])
        # Errors across the axis: the decay along it is free of them.
        decay = np.exp(-model.b * values["diffusivity_inside"][:, None] * along)
        share = cells * (1 - values["sphere_share"])
        parts.append(share[:, None] * model.model_error("cylinder", values)[:, shell] * decay)
    if tissue.has_spheres:
        share = cells * values["sphere_share"]
        parts.append(share[:, None] * model.model_error("sphere", values)[:, shell])
    if not parts:
        return np.zeros((len(z), 1, len(shell)))
    return np.concatenate([patterns * part[:, None] for part in parts], axis=1)


def timing_patterns(shells: Shells) -> np.ndarray:
    """Patterns (K, S) of errors that all shells of a timing share."""
    pulses = np.stack([shells.small_delta, shells.big_delta])
    timings, index = np.unique(pulses, axis=1, return_inverse=True)
    return np.where(index.reshape(-1) == np.arange(timings.shape[1])[:, None], 1.0, 0.0)


def error_patterns(shells: Shells) -> np.ndarray:
    """Patterns (K, S) over the shells, whose sum with normal weights correlates as errors do."""
    weighted = shells.b > 0
    time, b = np.log(shells.big_delta), np.log(np.where(weighted, shells.b, 1))
    apart = np.abs(time[:, None] - time) / TIME_REACH + np.abs(b[:, None] - b) / B_REACH
    variance, patterns = np.linalg.eigh(np.exp(-apart) * np.outer(weighted, weighted))
    kept = np.cumsum(variance) > _NEGLECTED * variance.sum()
    return (patterns * np.sqrt(np.maximum(variance, 0))).T[kept]
