"""Packed cells and wall fields of the same voxels as one fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dipy_spinverse.spinverse.fit import (
    AGREEMENT_THRESHOLD,
    CELLS_PREFIX,
    SpinverseFit,
)
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.statistics import ENDINGS
from dipy_spinverse.voxels.status import FITTED, Status

_OF_BOTH = (
    *("sigma", "residual_rms", "S0_per_te", "wall_orientation", "wall_orientation_angle"),
    *(name + end for name in SpinverseFit.MAPS for end in ENDINGS),
)
Values = Mapping[str, np.ndarray]


def walls_alone(status: np.ndarray, walls: Values) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Status (...) and values of a fit without packed cells.

    Parameters
    ----------
    status : ndarray (...)
    walls : mapping of ndarray (V, ...)
        Of the voxels that were fitted.
    """
    everywhere = np.ones(len(walls["sigma"]), dtype=bool)
    own = status[np.isin(status, FITTED)]
    kinds = {"has_walls": everywhere, "packed_cells": ~everywhere, "wall_status": own}
    return _spread(status, _with_doubt(own, everywhere, walls)), {**walls, **kinds}


def tissue_with_walls(
    screened: np.ndarray,
    tissue: VoxelFit,
    has_walls: np.ndarray,
    wall_status: np.ndarray,
    walls: Values,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Status (...) and values: those of packed cells, and of walls where these are refuted.

    Parameters
    ----------
    screened : ndarray (...)
        Status before any fit, which says why a voxel could not be fitted.
    tissue : VoxelFit
        Of V voxels, from packed cells.
    has_walls : ndarray (V,) of bool
        Which W of them have walls.
    wall_status : ndarray (...)
    walls : mapping of ndarray (W, ...)
        Empty where no walls were asked for.
    """
    fitted = np.isin(tissue.status, FITTED)
    found = tissue.status[fitted]
    refuted = has_walls & (found == Status.MISFIT)
    values = {name: v.copy() for name, v in tissue._values.items() if name in _OF_BOTH}
    for name in values if walls else ():
        values[name][refuted] = walls[name][refuted[has_walls]]
    if walls:
        values |= {name: value for name, value in walls.items() if name in SpinverseFit.WALLS}
        values["wall_status"] = wall_status[fitted][has_walls]
    values |= {"has_walls": has_walls, "packed_cells": ~refuted, "_tissue_status": found}
    values |= {CELLS_PREFIX + name: value for name, value in tissue._values.items()}
    found = _with_doubt(np.where(refuted, wall_status[fitted], found), has_walls, walls)
    return _spread(screened, found), values


def _with_doubt(status, has_walls, walls):
    """Status (V,) that also says where the pattern of the walls is not determined."""
    agreement = np.ones(len(status))
    if walls:
        agreement[has_walls] = walls["pattern_agreement"]
    unsure = (status == Status.CONVERGED) & (agreement < AGREEMENT_THRESHOLD)
    return np.where(unsure, Status.PATTERN_NOT_DETERMINED, status)


def _spread(status, found):
    """Status (...) with other values (V,) of the fitted voxels."""
    whole = status.copy()
    whole[np.isin(status, FITTED)] = found
    return whole
