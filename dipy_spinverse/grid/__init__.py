"""Tetrahedral grids: the fixed tetrahedra whose faces carry the permeabilities."""

from dipy_spinverse.grid.bcc import bcc_grid
from dipy_spinverse.grid.read import read_grid
from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid

__all__ = ["TetrahedralGrid", "bcc_grid", "read_grid"]
