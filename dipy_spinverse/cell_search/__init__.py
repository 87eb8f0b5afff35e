"""Separate cells in a box with an absorbing outside: which tetrahedra are inside of them.

A cell is a set of tetrahedra, so its walls are closed. Smooth bodies of few parameters are fitted
first; then every tetrahedron at a wall may change sides. Both are judged by a misfit that counts
wrong tetrahedra, not signal.
"""

from dipy_spinverse.cell_search.inversion import CellInversion

__all__ = ["CellInversion"]
