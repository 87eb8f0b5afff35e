"""Smooth cells as the arrays that a fit keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.cell_search.smooth.effort import DEFAULT_EFFORT
from dipy_spinverse.cell_search.smooth.forward import LimitModel, SmoothCells, SmoothModel
from dipy_spinverse.cell_search.smooth.level_set import RASTER, level_set_prior
from dipy_spinverse.grid import TetrahedralGrid

CELL_ARRAYS = ("cell_field", "cell_log_permeability", "cell_index")
# Cells smaller than a twentieth of all have no permeability of their own.
_MOST_CELLS = 19


def smooth_layout(grid: TetrahedralGrid, n_fields: int) -> dict[str, object]:
    """Type and shape of what a fit holds of the smooth cells of a voxel."""
    return {
        "cell_field": ("f4", (n_fields + 1, level_set_prior(grid).n_modes)),
        "cell_log_permeability": ("f4", (n_fields + 1, _MOST_CELLS)),
        "cell_index": ("i1", (n_fields + 1, *(RASTER,) * 3)),
    }


def stored(cells: Sequence[SmoothCells]) -> dict[str, np.ndarray]:
    """Arrays of the best cells and of draws like them."""
    leaks = np.zeros((len(cells), _MOST_CELLS))
    for of_one, x in zip(leaks, cells, strict=True):
        of_one[: len(x.leaks)] = x.leaks
    return {
        "cell_field": np.array([x.z for x in cells]),
        "cell_log_permeability": leaks,
        "cell_index": np.array([np.broadcast_to(x.parts, (RASTER,) * 3) for x in cells]),
    }


def stored_cells(voxel: Any) -> list[SmoothCells]:
    """The best cells and the draws of the fit of one voxel."""
    values = zip(voxel.cell_field, voxel.cell_log_permeability, voxel.cell_index, strict=True)
    return [SmoothCells(z, leaks[: parts.max() + 1], parts) for z, leaks, parts in values]


def signals_of_cells(
    values: Mapping[str, np.ndarray],
    acquisition: BaseAcquisition,
    grid: TetrahedralGrid,
) -> np.ndarray:
    """Signals (V, M) of the best cells of each voxel."""

    @cache
    def model(diffusivity):
        return LimitModel(
            *(
                SmoothModel(acquisition, level_set_prior(grid), cubes, diffusivity)
                for cubes in (DEFAULT_EFFORT.fine, DEFAULT_EFFORT.finest)
            )
        )

    signals = []
    of_voxels = (values[name] for name in (*CELL_ARRAYS, "field_diffusivity"))
    for z, leaks, parts, diffusivity in zip(*of_voxels, strict=True):
        cells = SmoothCells(z[0], leaks[0, : parts[0].max() + 1], parts[0])
        signals.append(model(float(diffusivity[0])).signals(cells))
    return np.array(signals).reshape(-1, len(acquisition))
