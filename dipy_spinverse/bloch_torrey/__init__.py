"""Bloch-Torrey simulation: from permeabilities to signals, and the derivatives."""

from dipy_spinverse.bloch_torrey.encodings import unique_encodings
from dipy_spinverse.bloch_torrey.finite_volume import permeability_of, relative_transmissibility
from dipy_spinverse.bloch_torrey.simulation import simulate, simulate_with_jacobian
from dipy_spinverse.bloch_torrey.simulator import Simulator

__all__ = [
    "Simulator",
    "permeability_of",
    "relative_transmissibility",
    "simulate",
    "simulate_with_jacobian",
    "unique_encodings",
]
