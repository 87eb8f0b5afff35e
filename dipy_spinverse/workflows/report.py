"""Files that a workflow writes about a fit: maps, meshes, settings."""

from __future__ import annotations

import json
import logging
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
from dipy.io.image import save_nifti
from dipy.io.utils import split_filename_extension

logger = logging.getLogger("dipy_spinverse")

MAP_UNITS = {
    "surface_to_volume": "1/um",
    "wall_permeability": "um/ms",
    "exchange_time": "ms",
    "restricted_fraction": "1",
    "pore_diameter": "um",
    "wall_orientation": "1",
    "wall_anisotropy": "1",
    "free_water_fraction": "1",
}
MESH_SUFFIXES = (".ply", ".vtu", ".surf.gii")
PACKAGES = (
    "dipy_spinverse",
    "dipy",
    "torch",
    "numpy",
    "scipy",
    "numba",
    "nibabel",
    "meshio",
    "scikit-image",
)


def save_maps(fit, paths: dict[str, Path], affine: np.ndarray, *, free_water: bool) -> None:
    """Write the maps of a fit and their standard deviations as float32 NIfTI.

    Parameters
    ----------
    fit : SpinverseFit
    paths : dict
        Path of each output by its name, ``out_surface_to_volume`` and so on; standard
        deviations go beside them with ``_std`` in their names.
    affine : ndarray, shape (4, 4)
        Affine of the input volume.
    free_water : bool
        Whether a free-water fraction was fitted; its map is left out if not.
    """
    for name in MAP_UNITS:
        if name == "free_water_fraction" and not free_water:
            continue
        path = paths[f"out_{name}"]
        save_nifti(path, getattr(fit, name).astype(np.float32), affine)
        std = getattr(fit, f"{name}_std")
        save_nifti(_std_path(path), std.astype(np.float32), affine)
    save_nifti(paths["out_S0"], fit.S0_hat.astype(np.float32), affine)
    save_nifti(paths["out_residual_rms"], fit.residual_rms.astype(np.float32), affine)
    save_nifti(paths["out_status"], fit.status.astype(np.int16), affine)


def _std_path(path: Path) -> Path:
    stem, suffix = split_filename_extension(path)
    return path.with_name(f"{stem}_std{suffix}")


def save_meshes(fit, voxels: list[tuple[int, ...]], stem: Path) -> None:
    """Write the interface mesh of each voxel as PLY, VTU (um) and GIFTI (mm).

    Parameters
    ----------
    fit : SpinverseFit
    voxels : list of tuple of int
    stem : Path
        Voxel (i, j, k) gives ``STEM_i_j_k.ply``, ``.vtu`` and ``.surf.gii``.
    """
    for voxel in voxels:
        mesh = fit.interface(voxel)
        if len(mesh.triangles) == 0:
            logger.warning("Voxel %s has no walls; no mesh is written for it.", voxel)
            continue
        name = "_".join([stem.name, *map(str, voxel)])
        for suffix in MESH_SUFFIXES:
            mesh.save(stem.with_name(name + suffix))


def save_settings(path: Path, inputs: dict, settings: dict, fit, seconds: float) -> None:
    """Write what was run on what, with which versions, and what the codes mean, as JSON.

    Parameters
    ----------
    path : Path
    inputs : dict
        Input files by the names of the command line's arguments.
    settings : dict
        All other arguments of the command line.
    fit : SpinverseFit
    seconds : float
        Wall time of the fit.
    """
    from dipy_spinverse.spinverse import Status

    found, counts = np.unique(fit.status, return_counts=True)
    voxels = dict(zip(found.tolist(), counts.tolist(), strict=True))
    report = {
        "inputs": {name: str(value) for name, value in inputs.items()},
        "settings": settings,
        "map_units": MAP_UNITS,
        "status": {
            status.name.lower(): {"code": int(status), "voxels": voxels.get(int(status), 0)}
            for status in Status
        },
        "seconds": round(seconds, 3),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
