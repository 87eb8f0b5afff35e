"""Smooth cells as the arrays that a fit stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.cell_search.smooth.budget import SmoothSearchBudget
from dipy_spinverse.cell_search.smooth.forward import LimitModel, SmoothModel
from dipy_spinverse.cell_search.smooth.level_set import RASTER, SmoothCells, level_set_prior
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.units import MM2_PER_S

CELL_ARRAYS = ("cell_field", "cell_log_permeability", "cell_index")
# Only cells above 5 % of the volume of all cells have a separate permeability (`level_set`).
_MAX_CELLS = 19


def smooth_layout(grid: TetrahedralGrid, n_fields: int) -> dict[str, object]:
    """Types and shapes of the stored arrays of the smooth cells of a voxel."""
    return {
        "cell_field": ("f4", (n_fields + 1, level_set_prior(grid).n_modes)),
        "cell_log_permeability": ("f4", (n_fields + 1, _MAX_CELLS)),
        "cell_index": ("i1", (n_fields + 1, *(RASTER,) * 3)),
    }


def cell_arrays(cells: Sequence[SmoothCells]) -> dict[str, np.ndarray]:
    """Arrays of the best cells and of posterior samples."""
    log_permeability = np.zeros((len(cells), _MAX_CELLS))
    for row, x in zip(log_permeability, cells, strict=True):
        row[: len(x.log_permeability)] = x.log_permeability
    return {
        "cell_field": np.array([x.z for x in cells]),
        "cell_log_permeability": log_permeability,
        "cell_index": np.array([np.broadcast_to(x.cell_index, (RASTER,) * 3) for x in cells]),
    }


def stored_cells(voxel: Any) -> list[SmoothCells]:
    """The best cells and the posterior samples of the fit of one voxel."""
    arrays = zip(*(getattr(voxel, name) for name in CELL_ARRAYS), strict=True)
    return [_cells(*arrays_of_one) for arrays_of_one in arrays]


def _cells(z, log_permeability, index):
    return SmoothCells(z, log_permeability[: index.max() + 1], index)


def signals_of_cells(
    values: Mapping[str, np.ndarray],
    acquisition: BaseAcquisition,
    grid: TetrahedralGrid,
) -> np.ndarray:
    """Signals (V, M) of the best cells of each voxel."""

    @cache
    def model(diffusivity):
        grids = SmoothSearchBudget().cubes[2:]
        prior = level_set_prior(grid)
        return LimitModel(*(SmoothModel(acquisition, prior, n, diffusivity) for n in grids))

    arrays = (values[name] for name in (*CELL_ARRAYS, "field_diffusivity"))
    best_of_voxels = ([array[0] for array in voxel] for voxel in zip(*arrays, strict=True))
    signals = [model(MM2_PER_S * float(D)).signals(_cells(*best)) for *best, D in best_of_voxels]
    return np.array(signals).reshape(-1, len(acquisition))
