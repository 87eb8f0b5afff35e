"""Members of a population, and what all voxels of a search share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.cell_search.budget import CellSearchBudget
from dipy_spinverse.cell_search.cell_operations import CellOperations
from dipy_spinverse.cell_search.descent import Descent, PartialCells
from dipy_spinverse.cell_search.labelled import LabelledCells, Target


@dataclass(frozen=True, eq=False)
class Member:
    """Cells of a population, as fitted in volume fractions and as labels, and their misfit."""

    target: Target  # exact for these cells
    partial: PartialCells
    cells: LabelledCells
    misfit: float


@dataclass(frozen=True, eq=False)
class SearchTools:
    """What all voxels of a search share."""

    descend: Descent
    operations: CellOperations
    transmissibility: np.ndarray  # (2,) initial values, of walls and of other faces
    budget: CellSearchBudget
