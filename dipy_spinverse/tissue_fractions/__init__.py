"""Fractions of tissues from ordinary MR images and the description of their sequences."""

from dipy_spinverse.tissue_fractions.contrasts import Contrasts, stacked
from dipy_spinverse.tissue_fractions.fit import TissueFractionFit
from dipy_spinverse.tissue_fractions.model import TissueFractionModel
from dipy_spinverse.tissue_fractions.mr_simulator import MRSimulator, SignalEquations
from dipy_spinverse.tissue_fractions.sequence_files import description_of, sequence_from
from dipy_spinverse.tissue_fractions.sequences import (
    MPRAGE,
    DoubleInversion,
    Inversion,
    PulseqFile,
    SpoiledGradientEcho,
    T2Preparation,
    TurboSpinEcho,
)
from dipy_spinverse.tissue_fractions.tissues import PUBLISHED, Tissue, constants_of, tissues_at

__all__ = [
    "MPRAGE",
    "PUBLISHED",
    "Contrasts",
    "DoubleInversion",
    "Inversion",
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
    "stacked",
    "tissues_at",
]
