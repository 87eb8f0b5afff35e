"""Compartment models (NODDI, ActiveAx, ZCD, IVIM and own ones): definition, simulation, fits."""

from __future__ import annotations

from dipy_spinverse.compartments.compose import compose
from dipy_spinverse.compartments.definition import (
    Compartment,
    Definition,
    Parameter,
    rest,
    tortuosity,
)
from dipy_spinverse.compartments.fit import CompartmentFit
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.compartments.named import ActiveAxModel, IVIMModel, NODDIModel, ZCDModel

__all__ = [
    "ActiveAxModel",
    "Compartment",
    "CompartmentFit",
    "CompartmentModel",
    "Definition",
    "IVIMModel",
    "NODDIModel",
    "Parameter",
    "ZCDModel",
    "compose",
    "rest",
    "tortuosity",
]
