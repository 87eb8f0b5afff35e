"""Inversion: unknowns, priors, curriculum, optimisers and uncertainty."""

from dipy_spinverse.inversion.curriculum import (
    ADAM_CURRICULUM,
    CARVING_CURRICULUM,
    DEFAULT_CURRICULUM,
    Stage,
)
from dipy_spinverse.inversion.face_solver import FaceSolver, InversionSettings
from dipy_spinverse.inversion.priors import Binarisation, Continuity, Manifoldness, WallArea
from dipy_spinverse.inversion.reconstruction import Reconstruction
from dipy_spinverse.inversion.unknowns import (
    WALL_THRESHOLD,
    scaled_transmissibility,
    transmissibility,
)

__all__ = [
    "ADAM_CURRICULUM",
    "CARVING_CURRICULUM",
    "DEFAULT_CURRICULUM",
    "WALL_THRESHOLD",
    "Binarisation",
    "Continuity",
    "FaceSolver",
    "InversionSettings",
    "Manifoldness",
    "Reconstruction",
    "Stage",
    "WallArea",
    "scaled_transmissibility",
    "transmissibility",
]
