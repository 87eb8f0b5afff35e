"""Microscopic walls from diffusion MRI, as a DIPY model."""

from dipy_spinverse.spinverse.fit import SpinverseFit
from dipy_spinverse.spinverse.model import SpinverseModel
from dipy_spinverse.spinverse.permeability_fields import ClosedCellInversion, FaceInversion
from dipy_spinverse.spinverse.tissue_walls import TissueWallInversion

__all__ = [
    "ClosedCellInversion",
    "FaceInversion",
    "SpinverseFit",
    "SpinverseModel",
    "TissueWallInversion",
]
