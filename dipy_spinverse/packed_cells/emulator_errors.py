"""Errors of the emulated signals of packed cells, and how they correlate between shells."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.packed_cells.maps import tissue_parameters
from dipy_spinverse.packed_cells.orientations import rotation_of
from dipy_spinverse.packed_cells.shells import Shells
from dipy_spinverse.packed_cells.tissue_classes import TissueClass
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals

# Errors of two shells correlate as exp(-|x| / length), where x is the logarithm of the ratio of
# their Delta, or of their b: fitted to packings that were not used to train the emulator
# (benchmarks/emulator.py, benchmarks/results/emulator.md).
TIME_LENGTH, B_LENGTH = 1.5, 1.2
# Fraction of the variance of the errors in patterns that are neglected; chosen by hand.
_NEGLECTED_VARIANCE = 0.03


def model_errors(
    model: TissueSignals, tissue: TissueClass, z: np.ndarray, frames: np.ndarray,
    patterns: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Errors (N, K, M) of one standard deviation of the emulator, for each pattern (K, S)."""
    values = tissue_parameters(tissue, z, model.diffusivity)
    cells = (1 - values["free_water"]) * (1 - values["dot"]) * (1 - values["hindered"])
    shell = model.shells.of_measurement
    patterns = patterns[:, shell]
    errors = []
    if "cylinder" in tissue.shapes:
        if tissue.turns:
            frames = rotation_of(z[:, -3:]) @ frames
        linear, b = model.shells.b_anisotropy[shell], model.shells.b[shell]
        axial = (1 - linear) / 3 + linear * (frames[:, 2] @ model.scan.directions.T) ** 2
        # The emulator errs across the axis only: multiplied by the decay along it.
        decay = np.exp(-b * values["diffusivity_inside"][:, None] * axial)
        fraction = cells * (1 - values["sphere_share"])
        errors.append(fraction[:, None] * model.model_error("cylinder", values)[:, shell] * decay)
    if "sphere" in tissue.shapes:
        fraction = cells * values["sphere_share"]
        errors.append(fraction[:, None] * model.model_error("sphere", values)[:, shell])
    if not errors:
        return np.zeros((len(z), 1, len(shell)))
    return np.concatenate([patterns * error[:, None] for error in errors], axis=1)


def timing_patterns(shells: Shells) -> np.ndarray:
    """Patterns (K, S) of errors that all shells of a timing share."""
    pulses = np.stack([shells.small_delta, shells.big_delta])
    timings, index = np.unique(pulses, axis=1, return_inverse=True)
    return np.where(index.reshape(-1) == np.arange(timings.shape[1])[:, None], 1.0, 0.0)


def error_patterns(shells: Shells) -> np.ndarray:
    """Principal patterns (K, S) of the correlated errors of shells."""
    weighted = shells.b > 0
    log_time, log_b = np.log(shells.big_delta), np.log(np.where(weighted, shells.b, 1))
    distance = np.abs(log_time[:, None] - log_time) / TIME_LENGTH
    distance += np.abs(log_b[:, None] - log_b) / B_LENGTH
    variance, patterns = np.linalg.eigh(np.exp(-distance) * np.outer(weighted, weighted))
    retained = np.cumsum(variance) > _NEGLECTED_VARIANCE * variance.sum()
    return (patterns * np.sqrt(np.maximum(variance, 0))).T[retained]
