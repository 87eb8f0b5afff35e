"""Files that a command writes about a fit: maps, meshes, settings."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from dipy.io.utils import split_filename_extension
from nibabel.openers import ImageOpener

from dipy_spinverse.report.words import TRUSTED
from dipy_spinverse.voxels.status import FITTED

if TYPE_CHECKING:
    from dipy_spinverse.spinverse import SpinverseFit
    from dipy_spinverse.voxels.fit import VoxelFit
    from dipy_spinverse.walls.interface import InterfaceMesh

logger = logging.getLogger("dipy_spinverse")

MAP_SUFFIXES = ("", "_std", "_low", "_high")
MESH_SUFFIXES = (".ply", ".vtu", ".surf.gii")
_FILL = 0.9  # of the voxel, by its enlarged grid
_PREDICTED_TOGETHER = 5000  # voxels
_DESCRIPTION = 79  # characters of a NIfTI header
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


def save_image(path: Path, values: np.ndarray, affine: np.ndarray, description: str = "") -> None:
    """Write NIfTI in mm, integers as int16 and others as float32.

    Parameters
    ----------
    path : Path
    values : ndarray (..., )
        Of up to four dimensions.
    affine : ndarray, shape (4, 4)
    description : str, optional
        For the header, which holds 79 characters.
    """
    whole = values.dtype.kind in "biu"
    nib.save(_image(values.astype(np.int16 if whole else np.float32), affine, description), path)


def _image(values, affine, description):
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description[:_DESCRIPTION]
    return image


def save_predictions(fit: VoxelFit, path: Path, affine: np.ndarray, description: str = "") -> None:
    """Write the signals that a fit predicts, volume by volume: never are all in memory at once.

    Parameters
    ----------
    fit : VoxelFit
        Of an image of three dimensions.
    path : Path
    affine : ndarray, shape (4, 4)
    description : str, optional
    """
    rows = np.flatnonzero(np.isin(fit.status, FITTED))
    signals = np.empty((len(fit.model.acquisition), len(rows)), dtype=np.float32)
    for k in range(0, len(rows), _PREDICTED_TOGETHER):
        part = rows[k : k + _PREDICTED_TOGETHER]
        signals[:, k : k + len(part)] = fit[np.unravel_index(part, fit.shape)].predict().T
    shape = (*fit.shape, len(signals))
    header = _image(np.broadcast_to(np.float32(0), shape), affine, description).header
    with ImageOpener(str(path), "wb") as file:
        header.write_to(file)
        for measurement in signals:
            volume = np.zeros(fit.status.size, dtype=np.float32)
            volume[rows] = measurement
            file.write(volume.reshape(fit.shape).tobytes(order="F"))


def save_map(
    fit: VoxelFit, name: str, path: Path, affine: np.ndarray, description: str = ""
) -> None:
    """Write a map of a fit, and where there are any, its standard deviation and interval.

    Parameters
    ----------
    fit : VoxelFit
    name : str
    path : Path
        Of the map; the others get ``_std``, ``_low`` and ``_high`` in their names.
    affine : ndarray, shape (4, 4)
    description : str, optional
    """
    for suffix, target in zip(MAP_SUFFIXES, with_suffixes(path), strict=True):
        values = getattr(fit, name + suffix, None)
        if values is not None:
            save_image(target, values, affine, description)


def with_suffixes(path: Path) -> list[Path]:
    """Paths of a map, its standard deviation and the ends of its interval."""
    stem, extension = split_filename_extension(path)
    return [path.with_name(f"{stem}{suffix}{extension}") for suffix in MAP_SUFFIXES]


def in_voxel(affine: np.ndarray, voxel: tuple[int, ...], box_um: float) -> np.ndarray:
    """Affine (4, 4) from um on a grid to mm in a voxel, enlarged so that the grid fills it.

    A grid is a hundredth of a voxel: in its true size nobody would see it beside the image. The
    axes of the grid are those of the b-vectors, which are taken along the axes of the image.

    Parameters
    ----------
    affine : ndarray (4, 4)
        Of the image.
    voxel : tuple of int
        Index of up to three axes.
    box_um : float
        Edge of the grid, um.
    """
    size = np.linalg.norm(affine[:3, :3], axis=0)
    index = np.pad(np.asarray(voxel, dtype=float), (0, 3 - len(voxel)))
    placed = np.eye(4)
    placed[:3, :3] = affine[:3, :3] / size * (_FILL * size.min() / box_um)
    placed[:3, 3] = affine[:3, :3] @ index + affine[:3, 3]
    return placed


def save_meshes(
    fit: SpinverseFit, voxels: list[tuple[int, ...]], stem: Path, affine: np.ndarray
) -> None:
    """Write the interface meshes of voxels.

    Parameters
    ----------
    fit : SpinverseFit
    voxels : list of tuple of int
    stem : Path
        Voxel (i, j, k) gives ``STEM_i_j_k.ply`` and ``.vtu`` (um), and ``.surf.gii`` (mm, enlarged
        to fill its voxel, see :func:`in_voxel`). Where the pattern of the walls is not determined,
        one wall field is drawn instead, in ``STEM_i_j_k_one_of_many.ply`` and so on. All together
        are in ``STEM.vtu`` (mm), with the index of the voxel of each triangle. Voxels that were
        not fitted, and those whose walls do not explain their signals, are left out; the log says
        so.
    affine : ndarray, shape (4, 4)
        Of the image.
    """
    placed = placed_meshes(fit, voxels, affine)
    for each in placed:
        name = "_".join([stem.name, *map(str, each.voxel)])
        if each.one_of_many:
            name += "_one_of_many"
            logger.warning(
                "The pattern of the walls of voxel %s is not determined; %s shows one of many "
                "that explain its signals.", each.voxel, name,
            )  # fmt: skip
        for suffix in MESH_SUFFIXES:
            each.mesh.save(stem.with_name(name + suffix), each.to_mm)
    if placed:
        _save_together(placed, stem.with_name(f"{stem.name}.vtu"))


@dataclass(frozen=True, eq=False)
class PlacedMesh:
    """The walls of a voxel, and where they are.

    Attributes
    ----------
    voxel : tuple of int
    mesh : InterfaceMesh
    one_of_many : bool
        Whether many others explain the signals as well.
    to_mm : ndarray (4, 4)
        See :func:`in_voxel`.
    """

    voxel: tuple[int, ...]
    mesh: InterfaceMesh
    one_of_many: bool
    to_mm: np.ndarray

    @property
    def vertices_mm(self) -> np.ndarray:
        """Vertices (N, 3) in the space of the image."""
        return self.mesh.vertices_um @ self.to_mm[:3, :3].T + self.to_mm[:3, 3]


def placed_meshes(
    fit: SpinverseFit, voxels: list[tuple[int, ...]], affine: np.ndarray
) -> list[PlacedMesh]:
    """Meshes of those voxels whose walls can be trusted; the log says which cannot.

    Parameters
    ----------
    fit : SpinverseFit
    voxels : list of tuple of int
    affine : ndarray (4, 4)
        Of the image.
    """
    box = float(np.ptp(fit.model.grid.points_um, axis=0).max())
    return [
        PlacedMesh(voxel, found[0], found[1], in_voxel(affine, voxel, box))
        for voxel in voxels
        if (found := _mesh_of(fit, voxel)) is not None
    ]


def _mesh_of(fit, voxel):
    """Mesh of a voxel, and whether it is one of many; None, and a word, where there is none."""
    from dipy_spinverse.spinverse.fit import AGREEMENT_THRESHOLD
    from dipy_spinverse.voxels import Status

    one = fit[voxel]
    status = Status(int(one.wall_status if one.has_walls else one.status))
    if status.name not in TRUSTED:
        logger.warning("Voxel %s is %s; no mesh is written for it.", voxel, status.name)
        return None
    one_of_many = bool(one.has_walls and one.pattern_agreement < AGREEMENT_THRESHOLD)
    mesh = fit.interface(voxel, field=0 if one_of_many else None) if one.has_walls else None
    if mesh is None or len(mesh.triangles) == 0:
        logger.warning("Voxel %s has no walls; no mesh is written for it.", voxel)
        return None
    return mesh, one_of_many


def _save_together(placed, path):
    """One file for ParaView of the meshes of all voxels, in mm."""
    import meshio

    points = [each.vertices_mm for each in placed]
    first = np.cumsum([0, *map(len, points)])
    meshes = [each.mesh for each in placed]
    triangles = [mesh.triangles + start for mesh, start in zip(meshes, first, strict=False)]
    index = [np.tile(each.voxel, (len(each.mesh.triangles), 1)) for each in placed]
    values = {
        "permeability_um_per_ms": np.concatenate([mesh.permeability for mesh in meshes]),
        "wall_probability": np.concatenate([mesh.wall_probability for mesh in meshes]),
        "voxel": np.concatenate(index).astype(np.int32),
    }
    cells = [("triangle", np.concatenate(triangles).astype(np.int32))]
    data = {name: [value] for name, value in values.items()}
    meshio.Mesh(np.concatenate(points), cells, cell_data=data).write(path)


def settings_of(
    inputs: dict, settings: dict, fit: VoxelFit, seconds: float, units: dict[str, str]
) -> dict:
    """What was run on what, with which versions, and what the codes mean, for JSON.

    Parameters
    ----------
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
    return {
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


def save_settings(path: Path, report: dict) -> None:
    """Write :func:`settings_of` as JSON."""
    path.write_text(json.dumps(report, indent=2, default=str) + "\n")
