"""Tetrahedral grids, whose faces carry the permeabilities."""

from dipy_spinverse.grid.bcc import bcc_grid
from dipy_spinverse.grid.mesh_files import read_grid, read_regions
from dipy_spinverse.grid.packed_cylinders import packed_cylinders_grid
from dipy_spinverse.grid.regions import membranes_between
from dipy_spinverse.grid.surfaces import mesh_surfaces
from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid

__all__ = [
    "TetrahedralGrid",
    "bcc_grid",
    "membranes_between",
    "mesh_surfaces",
    "packed_cylinders_grid",
    "read_grid",
    "read_regions",
]
