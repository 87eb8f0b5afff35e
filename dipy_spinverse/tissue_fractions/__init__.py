"""Fractions of tissues from ordinary MR images and the description of their sequences."""

from dipy_spinverse.tissue_fractions.contrasts import Contrasts, stack_images
from dipy_spinverse.tissue_fractions.model import TissueFractionFit, TissueFractionModel
from dipy_spinverse.tissue_fractions.mr_simulator import MRSimulator
from dipy_spinverse.tissue_fractions.sequence_files import description_of, sequence_from
from dipy_spinverse.tissue_fractions.sequences import (
    MPRAGE,
    DoubleInversionPreparation,
    InversionPreparation,
    PulseqFile,
    SpoiledGradientEcho,
    T2Preparation,
    TurboSpinEcho,
)
from dipy_spinverse.tissue_fractions.signal_equations import SignalEquations
from dipy_spinverse.tissue_fractions.tissues import (
    PUBLISHED_TISSUES,
    Tissue,
    constants_of,
    tissues_at,
)

__all__ = [
    "MPRAGE",
    "PUBLISHED_TISSUES",
    "Contrasts",
    "DoubleInversionPreparation",
    "InversionPreparation",
    "MRSimulator",
    "PulseqFile",
    "SignalEquations",
    "SpoiledGradientEcho",
    "T2Preparation",
    "Tissue",
    "TissueFractionFit",
    "TissueFractionModel",
    "TurboSpinEcho",
    "constants_of",
    "description_of",
    "sequence_from",
    "stack_images",
    "tissues_at",
]
