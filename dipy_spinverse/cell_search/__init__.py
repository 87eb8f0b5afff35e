"""Separate cells in a box with an absorbing outside: which tetrahedra are inside of them.

A cell is a set of tetrahedra, so its walls are closed. During the search tetrahedra may be partly
inside, which makes the signals smooth functions of the shape. Cells are compared by an objective
that counts wrong tetrahedra instead of squared residuals.
"""

from dipy_spinverse.cell_search.budget import CellSearchBudget
from dipy_spinverse.cell_search.voxel_inversion import CellInversion

__all__ = ["CellInversion", "CellSearchBudget"]
