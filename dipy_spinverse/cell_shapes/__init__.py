"""Shapes of closed cells from their diffusion signals: meshes whose vertices move."""

from dipy_spinverse.cell_shapes.fit import CellShapeFit
from dipy_spinverse.cell_shapes.model import CellShapeModel
from dipy_spinverse.cell_shapes.shape_spaces.free import FreeVertices
from dipy_spinverse.cell_shapes.shape_spaces.latent import LatentSpace, latent_space
from dipy_spinverse.cell_shapes.shape_spaces.protocol import ShapeSpace
from dipy_spinverse.cell_shapes.shape_spaces.tube import TubeSpace, tube_space

__all__ = [
    "CellShapeFit",
    "CellShapeModel",
    "FreeVertices",
    "LatentSpace",
    "ShapeSpace",
    "TubeSpace",
    "latent_space",
    "tube_space",
]
