"""Signals known without a grid: exact and approximate ones."""

from dipy_spinverse.bloch_torrey.analytic.bodies import (
    exact_restricted_signal,
    free_signal,
    gaussian_phase_attenuation,
    restricted_signal,
)
from dipy_spinverse.bloch_torrey.analytic.exchange import (
    karger_signal,
    long_time_diffusivity,
    permeable_planes_signal,
    short_time_diffusivity,
)

__all__ = [
    "exact_restricted_signal",
    "free_signal",
    "gaussian_phase_attenuation",
    "karger_signal",
    "long_time_diffusivity",
    "permeable_planes_signal",
    "restricted_signal",
    "short_time_diffusivity",
]
