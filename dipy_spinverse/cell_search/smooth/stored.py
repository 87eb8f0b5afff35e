"""Smooth cells as the arrays that a fit keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dipy_spinverse.acquisition.measurements import Measurements
from dipy_spinverse.cell_search.smooth.forward import SmoothCells, SmoothModel
from dipy_spinverse.cell_search.smooth.level_set import RASTER, prior_of
from dipy_spinverse.cell_search.smooth.search import DEFAULT_EFFORT
from dipy_spinverse.grid import TetrahedralGrid

STORED = ("cell_field", "cell_leaks", "cell_parts")
# Cells smaller than a twentieth of all have no permeability of their own.
_MOST_CELLS = 19


def smooth_layout(grid: TetrahedralGrid, n_fields: int) -> dict[str, object]:
    """Type and shape of what a fit holds of the smooth cells of a voxel."""
    return {
        "cell_field": ("f4", (n_fields + 1, prior_of(grid).n_modes)),
        "cell_leaks": ("f4", (n_fields + 1, _MOST_CELLS)),
        "cell_parts": ("i1", (RASTER,) * 3),
    }


def stored(cells: Sequence[SmoothCells]) -> dict[str, np.ndarray]:
    """Arrays of the best cells and of draws like them."""
    leaks = np.zeros((len(cells), _MOST_CELLS))
    leaks[:, : len(cells[0].leaks)] = [x.leaks for x in cells]
    return {
        "cell_field": np.array([x.z for x in cells]),
        "cell_leaks": leaks,
        "cell_parts": np.broadcast_to(cells[0].parts, (RASTER,) * 3),
    }


def cells_of(voxel: Any) -> list[SmoothCells]:
    """The best cells and the draws of the fit of one voxel."""
    number = voxel.cell_parts.max() + 1
    pairs = zip(voxel.cell_field, voxel.cell_leaks[:, :number], strict=True)
    return [SmoothCells(z, leaks, voxel.cell_parts) for z, leaks in pairs]


def signals_of_cells(
    values: Mapping[str, np.ndarray],
    acquisition: Measurements,
    grid: TetrahedralGrid,
    diffusivity: float,
) -> np.ndarray:
    """Signals (V, M) of the best cells of each voxel."""
    model = SmoothModel(acquisition, prior_of(grid), DEFAULT_EFFORT.finest, diffusivity)
    signals = []
    for z, leaks, parts in zip(*(values[name] for name in STORED), strict=True):
        cells = SmoothCells(z[0], leaks[0, : parts.max() + 1], parts)
        signals.append(model.signals(cells))
    return np.array(signals).reshape(-1, len(acquisition))
