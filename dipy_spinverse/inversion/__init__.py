"""Inversion: unknowns, priors, curriculum, optimisers and uncertainty."""

from dipy_spinverse.inversion.curriculum import (
    CARVING_CURRICULUM,
    DEFAULT_CURRICULUM,
    Stage,
)
from dipy_spinverse.inversion.face_solver import FaceSolver
from dipy_spinverse.inversion.priors import Binarisation, Continuity, Manifoldness, WallArea
from dipy_spinverse.inversion.protocols import Reconstruction, WallProblem
from dipy_spinverse.inversion.unknowns import (
    WALL_THRESHOLD,
    scaled_transmissibility,
    transmissibility,
)

__all__ = [
    "CARVING_CURRICULUM",
    "DEFAULT_CURRICULUM",
    "WALL_THRESHOLD",
    "Binarisation",
    "Continuity",
    "FaceSolver",
    "Manifoldness",
    "Reconstruction",
    "Stage",
    "WallArea",
    "WallProblem",
    "scaled_transmissibility",
    "transmissibility",
]
