"""Compartment models (NODDI, ActiveAx, ZCD, IVIM and own ones): definition, simulation, fits."""

from __future__ import annotations

from dipy_spinverse.compartments.compose import compose
from dipy_spinverse.compartments.definition import (
    Compartment,
    Definition,
    Parameter,
    complement,
    tortuosity,
)
from dipy_spinverse.compartments.fit import CompartmentFit
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.compartments.named import ActiveAxModel, IVIMModel, NODDIModel, ZCDModel
from dipy_spinverse.compartments.ready_made import (
    MTENODDIModel,
    NEXIModel,
    SANDIModel,
    StandardModel,
    VERDICTModel,
)
from dipy_spinverse.compartments.signals.exchange import TWO_SITES
from dipy_spinverse.compartments.signals.kernels import GAMMA_CYLINDERS, CustomKernel

__all__ = [
    "GAMMA_CYLINDERS",
    "TWO_SITES",
    "ActiveAxModel",
    "Compartment",
    "CompartmentFit",
    "CompartmentModel",
    "Definition",
    "IVIMModel",
    "MTENODDIModel",
    "NEXIModel",
    "NODDIModel",
    "CustomKernel",
    "Parameter",
    "SANDIModel",
    "StandardModel",
    "VERDICTModel",
    "ZCDModel",
    "compose",
    "complement",
    "tortuosity",
]
