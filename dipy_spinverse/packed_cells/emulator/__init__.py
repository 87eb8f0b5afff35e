"""Signals of packed permeable cylinders and spheres for any pulses, without simulation."""

from __future__ import annotations

from dipy_spinverse.packed_cells.emulator.signals import (
    RANGES,
    Encodings,
    emulated_signals,
    emulator_error,
)

__all__ = ["RANGES", "Encodings", "emulated_signals", "emulator_error"]
