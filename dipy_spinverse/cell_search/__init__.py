"""Separate cells in a box with an absorbing outside: which tetrahedra are inside of them.

A cell is a set of tetrahedra, so its walls are closed. On the way to it, cells fill tetrahedra
partly, which makes the signals smooth in their shape. What counts is a misfit that counts wrong
tetrahedra, not signal.
"""

from dipy_spinverse.cell_search.effort import SearchEffort
from dipy_spinverse.cell_search.voxel_inversion import CellInversion

__all__ = ["CellInversion", "SearchEffort"]
