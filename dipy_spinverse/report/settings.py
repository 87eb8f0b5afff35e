"""The record of a command: inputs, settings, software versions and numbers of voxels, as JSON."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dipy_spinverse.voxels.fit import VoxelFit

_PACKAGES = (
    "dipy_spinverse", "dipy", "torch", "numpy", "scipy", "numba", "nibabel", "meshio",
    "scikit-image",
)  # fmt: skip


def run_settings(
    inputs: dict, settings: dict, fit: VoxelFit, seconds: float, units: dict[str, str]
) -> dict[str, Any]:
    """Input files and other arguments by name, units of maps, status, time and versions."""
    from dipy_spinverse.voxels import Status

    codes, counts = np.unique(fit.status, return_counts=True)
    voxels = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    return {
        "inputs": {name: str(value) for name, value in inputs.items()},
        "settings": settings,
        "map_units": units,
        "status": {
            status.name.lower(): {"code": int(status), "voxels": voxels.get(int(status), 0)}
            for status in Status
        },
        "prior_dominated_percent": fit.prior_dominated_percent(),
        "seconds": round(seconds, 3),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    }


def save_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write :func:`run_settings` as JSON."""
    path.write_text(json.dumps(settings, indent=2, default=str) + "\n")
