"""Smooth cells in a box: bodies of any form whose walls need not lie on a lattice."""

from dipy_spinverse.cell_search.smooth.inversion import SmoothCellInversion
from dipy_spinverse.cell_search.smooth.level_set import level_set_prior
from dipy_spinverse.cell_search.smooth.mesh import smooth_mesh
from dipy_spinverse.cell_search.smooth.storage import (
    CELL_ARRAYS,
    signals_of_cells,
    smooth_layout,
    stored_cells,
)

__all__ = [
    "CELL_ARRAYS",
    "SmoothCellInversion",
    "level_set_prior",
    "signals_of_cells",
    "smooth_layout",
    "smooth_mesh",
    "stored_cells",
]
