"""Bloch-Torrey simulation: from permeabilities to signals, and the derivatives."""

from dipy_spinverse.bloch_torrey.encoding_groups import unique_encodings
from dipy_spinverse.bloch_torrey.finite_elements.matrix_formalism import (
    laplace_modes,
    simulate_modes,
)
from dipy_spinverse.bloch_torrey.finite_elements.operator import simulate_finite_elements
from dipy_spinverse.bloch_torrey.finite_volumes.operator import (
    permeability_of,
    relative_transmissibility,
)
from dipy_spinverse.bloch_torrey.finite_volumes.simulator import Simulator
from dipy_spinverse.bloch_torrey.simulation import simulate, simulate_with_jacobian

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
