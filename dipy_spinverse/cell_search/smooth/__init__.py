"""Smooth cells in a box: bodies of any form whose walls need not lie on a lattice."""

from dipy_spinverse.cell_search.smooth.effort import SmoothEffort
from dipy_spinverse.cell_search.smooth.inversion import SmoothCellInversion
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior, prior_of
from dipy_spinverse.cell_search.smooth.mesh import smooth_mesh, wall_probability
from dipy_spinverse.cell_search.smooth.stored import (
    STORED,
    cells_of,
    signals_of_cells,
    smooth_layout,
)

__all__ = [
    "STORED",
    "FieldPrior",
    "SmoothCellInversion",
    "SmoothEffort",
    "cells_of",
    "prior_of",
    "signals_of_cells",
    "smooth_layout",
    "smooth_mesh",
    "wall_probability",
]
