"""Shapes of closed cells from their diffusion signals: meshes whose vertices move."""

from dipy_spinverse.cell_shapes.fit import CellShapeFit
from dipy_spinverse.cell_shapes.model import CellShapeModel
from dipy_spinverse.cell_shapes.shape_spaces import (
    FreeVertices,
    LatentSpace,
    ShapeSpace,
    SpectralSpace,
    TubeSpace,
    latent_space,
    spectral_space,
    tube_space,
)

__all__ = [
    "CellShapeFit",
    "CellShapeModel",
    "FreeVertices",
    "LatentSpace",
    "ShapeSpace",
    "SpectralSpace",
    "TubeSpace",
    "latent_space",
    "spectral_space",
    "tube_space",
]
