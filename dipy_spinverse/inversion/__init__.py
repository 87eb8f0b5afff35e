"""Inversion: unknowns, priors, curriculum, optimisers and uncertainty."""

from dipy_spinverse.inversion.curriculum import (
    ADAM_CURRICULUM,
    CARVING_CURRICULUM,
    DEFAULT_CURRICULUM,
    Stage,
)
from dipy_spinverse.inversion.inversion import Inversion, InversionSettings
from dipy_spinverse.inversion.priors import Binarisation, Continuity, Manifoldness, WallArea
from dipy_spinverse.inversion.reconstruction import Reconstruction
from dipy_spinverse.inversion.unknowns import WALL_THRESHOLD, openness, transmissibility

__all__ = [
    "ADAM_CURRICULUM",
    "CARVING_CURRICULUM",
    "DEFAULT_CURRICULUM",
    "WALL_THRESHOLD",
    "Binarisation",
    "Continuity",
    "Inversion",
    "InversionSettings",
    "Manifoldness",
    "Reconstruction",
    "Stage",
    "WallArea",
    "openness",
    "transmissibility",
]
