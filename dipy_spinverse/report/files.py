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
    "wall_anisotropy": "1",
    "free_water_fraction": "1",
}
OTHER_UNITS = {
    "wall_orientation": "1",
    "wall_orientation_angle": "degrees",
    "packed_cells": "1",
    "pattern_agreement": "1",  # only where walls were sought
}
MAP_SUFFIXES = ("", "_std", "_low", "_high")
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


def save_maps(fit, paths: dict[str, Path], affine: np.ndarray) -> None:
    """Write the maps of a fit, their standard deviations and intervals as float32 NIfTI.

    Parameters
    ----------
    fit : SpinverseFit
    paths : dict
        Path of each output by its name, ``out_surface_to_volume`` and so on; standard
        deviations and intervals go beside them with ``_std``, ``_low`` and ``_high`` in their
        names.
    affine : ndarray, shape (4, 4)
        Affine of the input volume.
    """
    for name in MAP_UNITS:
        save_map(fit, name, paths[f"out_{name}"], affine, interval=hasattr(fit, f"{name}_std"))
    for name in (name for name in OTHER_UNITS if hasattr(fit, name)):
        save_map(fit, name, paths[f"out_{name}"], affine, interval=False)
    save_nifti(paths["out_S0"], fit.S0_hat.astype(np.float32), affine)
    save_nifti(paths["out_residual_rms"], fit.residual_rms.astype(np.float32), affine)
    save_nifti(paths["out_status"], fit.status.astype(np.int16), affine)


def save_map(fit, name: str, path: Path, affine: np.ndarray, *, interval: bool) -> None:
    """Write a map of a fit as float32 NIfTI.

    Parameters
    ----------
    fit : VoxelFit
    name : str
    path : Path
    affine : ndarray, shape (4, 4)
    interval : bool
        Whether its standard deviation and the ends of its interval go beside it, with ``_std``,
        ``_low`` and ``_high`` in their names.
    """
    for suffix in MAP_SUFFIXES if interval else ("",):
        values = getattr(fit, name + suffix).astype(np.float32)
        save_nifti(_with_suffix(path, suffix), values, affine)


def _with_suffix(path: Path, suffix: str) -> Path:
    stem, extension = split_filename_extension(path)
    return path.with_name(f"{stem}{suffix}{extension}")


def save_meshes(fit, voxels: list[tuple[int, ...]], stem: Path) -> None:
    """Write the interface mesh of each voxel as PLY, VTU (um) and GIFTI (mm).

    Parameters
    ----------
    fit : SpinverseFit
    voxels : list of tuple of int
    stem : Path
        Voxel (i, j, k) gives ``STEM_i_j_k.ply``, ``.vtu`` and ``.surf.gii``. Where the pattern of
        the walls is not determined, one wall field is drawn instead, in
        ``STEM_i_j_k_one_of_many.ply`` and so on.
    """
    from dipy_spinverse.spinverse.fit import SAME_PATTERN

    for voxel in voxels:
        one_of_many = fit[voxel].pattern_agreement < SAME_PATTERN
        field = 0 if one_of_many else None
        if not fit[voxel].has_walls or len(fit.interface(voxel, field=field).triangles) == 0:
            logger.warning("Voxel %s has no walls; no mesh is written for it.", voxel)
            continue
        mesh = fit.interface(voxel, field=field)
        name = "_".join([stem.name, *map(str, voxel)])
        if one_of_many:
            name += "_one_of_many"
            logger.warning(
                "The pattern of the walls of voxel %s is not determined; %s shows one of many "
                "that explain its signals.", voxel, name,
            )  # fmt: skip
        for suffix in MESH_SUFFIXES:
            mesh.save(stem.with_name(name + suffix))


def save_settings(
    path: Path, inputs: dict, settings: dict, fit, seconds: float, *, units: dict[str, str]
) -> None:
    """Write what was run on what, with which versions, and what the codes mean, as JSON.

    Parameters
    ----------
    path : Path
    inputs : dict
        Input files by the names of the command line's arguments.
    settings : dict
        All other arguments of the command line.
    fit : VoxelFit
    seconds : float
        Wall time of the fit.
    units : dict
        Unit of each map.
    """
    from dipy_spinverse.voxels import Status

    found, counts = np.unique(fit.status, return_counts=True)
    voxels = dict(zip(found.tolist(), counts.tolist(), strict=True))
    report = {
        "inputs": {name: str(value) for name, value in inputs.items()},
        "settings": settings,
        "map_units": units,
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
