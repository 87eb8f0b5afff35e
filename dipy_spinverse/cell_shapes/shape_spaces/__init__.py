"""Shape spaces: parametrisations of the shape of a closed cell, with bounds and a prior."""

from dipy_spinverse.cell_shapes.shape_spaces.free import FreeVertices
from dipy_spinverse.cell_shapes.shape_spaces.latent import LatentSpace, latent_space
from dipy_spinverse.cell_shapes.shape_spaces.protocol import ShapeSpace
from dipy_spinverse.cell_shapes.shape_spaces.spectral import SpectralSpace, spectral_space
from dipy_spinverse.cell_shapes.shape_spaces.tube import TubeSpace, tube_space

__all__ = [
    "FreeVertices",
    "LatentSpace",
    "ShapeSpace",
    "SpectralSpace",
    "TubeSpace",
    "latent_space",
    "spectral_space",
    "tube_space",
]
