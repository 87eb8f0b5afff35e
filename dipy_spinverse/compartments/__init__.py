"""Compartment models (NODDI, ActiveAx, ZCD, IVIM, custom ones): definition, simulation, fits."""

from __future__ import annotations

from dipy_spinverse.compartments.definition import (
    Compartment,
    Definition,
    Parameter,
    complement,
    tortuosity,
)
from dipy_spinverse.compartments.fit import CompartmentFit
from dipy_spinverse.compartments.model import CompartmentModel, compose
from dipy_spinverse.compartments.other_tissue import IVIMModel, NEXIModel, SANDIModel, VERDICTModel
from dipy_spinverse.compartments.signals.exchange import TWO_SITES, exchanging
from dipy_spinverse.compartments.signals.kernels import GAMMA_CYLINDERS, CustomKernel
from dipy_spinverse.compartments.signals.short_pulses import short_pulse_pore
from dipy_spinverse.compartments.white_matter import (
    ActiveAxModel,
    MTENODDIModel,
    NODDIModel,
    StandardModel,
    ZCDModel,
)

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
    "exchanging",
    "short_pulse_pore",
    "tortuosity",
]
