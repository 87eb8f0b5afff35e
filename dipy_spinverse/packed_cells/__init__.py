"""Packed cylinders and spheres of unknown size, fraction, orientation and permeability."""

from __future__ import annotations

from dipy_spinverse.packed_cells.fit import PackedCellsFit
from dipy_spinverse.packed_cells.model import PackedCellsModel
from dipy_spinverse.packed_cells.posterior import PackedCellsPosterior

__all__ = ["PackedCellsFit", "PackedCellsModel", "PackedCellsPosterior"]
