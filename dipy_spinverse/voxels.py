"""Arguments that are one number for all voxels, or one for each."""

from __future__ import annotations

import numpy as np


def per_voxel(name: str, value, shape: tuple[int, ...]) -> np.ndarray:
    """Value of each voxel (V,), from one for all or an array of the data's shape."""
    value = np.asarray(value)
    if value.shape not in ((), shape):
        raise ValueError(
            f"{name} has shape {value.shape}, the data have voxels {shape}; give one value for "
            "all, or one for each voxel."
        )
    return np.broadcast_to(value, shape).reshape(-1)
