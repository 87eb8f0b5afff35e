"""Packed cylinders and spheres of unknown size, fraction, orientation and permeability."""

from __future__ import annotations

from dipy_spinverse.packed_cells.model import PackedCellsFit, PackedCellsModel
from dipy_spinverse.packed_cells.posterior import PackedCellsPosterior

__all__ = ["PackedCellsFit", "PackedCellsModel", "PackedCellsPosterior"]
