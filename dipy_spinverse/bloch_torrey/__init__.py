"""Bloch-Torrey simulation: from permeabilities to signals, and the derivatives."""

from dipy_spinverse.bloch_torrey.encodings import unique_encodings
from dipy_spinverse.bloch_torrey.finite_element import simulate_finite_elements
from dipy_spinverse.bloch_torrey.finite_volume import permeability_of, relative_transmissibility
from dipy_spinverse.bloch_torrey.matrix_formalism import laplace_modes, simulate_modes
from dipy_spinverse.bloch_torrey.simulation import simulate, simulate_with_jacobian
from dipy_spinverse.bloch_torrey.simulator import Simulator

__all__ = [
    "Simulator",
    "laplace_modes",
    "permeability_of",
    "relative_transmissibility",
    "simulate",
    "simulate_finite_elements",
    "simulate_modes",
    "simulate_with_jacobian",
    "unique_encodings",
]
