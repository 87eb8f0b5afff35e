"""Mesh files of the walls of voxels, each mesh in its voxel of the image."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dipy_spinverse.voxels.status import USABLE

if TYPE_CHECKING:
    from dipy_spinverse.spinverse import SpinverseFit
    from dipy_spinverse.walls.interface import InterfaceMesh

logger = logging.getLogger("dipy_spinverse")

MESH_SUFFIXES = (".ply", ".vtu", ".surf.gii")
_FILL = 0.9  # of the edge of the voxel, by the enlarged grid; for display only


def voxel_affine(affine: np.ndarray, voxel: tuple[int, ...], box_um: float) -> np.ndarray:
    """Affine (4, 4) from um on a grid to mm in a voxel, enlarged so that the grid fills it.

    A grid is about a hundredth of a voxel wide and would be invisible at its true size. The axes
    of the grid, of edge `box_um`, are those of the b-vectors, which are taken along the axes of
    the image.
    """
    size = np.linalg.norm(affine[:3, :3], axis=0)
    index = np.pad(np.asarray(voxel, dtype=float), (0, 3 - len(voxel)))
    to_mm = np.eye(4)
    to_mm[:3, :3] = affine[:3, :3] / size * (_FILL * size.min() / box_um)
    to_mm[:3, 3] = affine[:3, :3] @ index + affine[:3, 3]
    return to_mm


def save_meshes(
    fit: SpinverseFit, voxels: list[tuple[int, ...]], stem: Path, affine: np.ndarray
) -> None:
    """Write the meshes of :func:`voxel_meshes`.

    Voxel (i, j, k) gives ``STEM_i_j_k.ply`` and ``.vtu`` (um), and ``.surf.gii`` (mm, see
    :func:`voxel_affine`). Where the pattern of the walls is not determined, one possibility is
    written instead, as ``STEM_i_j_k_one_of_many.ply`` and so on: smooth cells with the most
    probable parameters, or a permeability field where the data changed its packing. All
    together are in ``STEM.vtu`` (mm), with the index of the voxel of each triangle.
    """
    meshes = voxel_meshes(fit, voxels, affine)
    for placed in meshes:
        name = "_".join([stem.name, *map(str, placed.voxel)])
        if placed.is_sample:
            name += "_one_of_many"
            logger.warning(
                "The pattern of the walls of voxel %s is not determined; %s shows one of many "
                "that explain its signals.", placed.voxel, name,
            )  # fmt: skip
        for suffix in MESH_SUFFIXES:
            placed.mesh.save(stem.with_name(name + suffix), placed.to_mm)
    if meshes:
        _save_together(meshes, stem.with_name(f"{stem.name}.vtu"))


@dataclass(frozen=True, eq=False)
class VoxelMesh:
    """The walls of a voxel, and their position in the image."""

    voxel: tuple[int, ...]
    mesh: InterfaceMesh
    is_sample: bool  # one of many posterior samples, which differ in their pattern
    to_mm: np.ndarray  # (4, 4), see voxel_affine

    @property
    def vertices_mm(self) -> np.ndarray:
        """Vertices (N, 3) in the space of the image."""
        return self.mesh.vertices_um @ self.to_mm[:3, :3].T + self.to_mm[:3, 3]


def voxel_meshes(
    fit: SpinverseFit, voxels: list[tuple[int, ...]], affine: np.ndarray
) -> list[VoxelMesh]:
    """Meshes of those voxels whose walls explain the signals; the log names the others."""
    from dipy_spinverse.spinverse.fit import AGREEMENT_THRESHOLD
    from dipy_spinverse.voxels import Status

    meshes = []
    for voxel in voxels:
        voxel_fit = fit[voxel]
        has_walls = voxel_fit.has_walls
        status = Status(int(voxel_fit.wall_status if has_walls else voxel_fit.status))
        if status not in USABLE:
            logger.warning("Voxel %s is %s; no mesh is written for it.", voxel, status.name)
            continue
        is_sample = bool(has_walls and voxel_fit.pattern_agreement < AGREEMENT_THRESHOLD)
        if is_sample and drawn_as_cells(voxel_fit):
            mesh = fit.interface(voxel, sample=0)
            box_um = 2 * float(np.abs(mesh.vertices_um).max(initial=0))
        elif has_walls:
            mesh = fit.interface(voxel, field=0 if is_sample else None)
            box_um = float(np.ptp(fit.model.grid.points_um, axis=0).max())
        if not has_walls or len(mesh.triangles) == 0:
            logger.warning("Voxel %s has no walls; no mesh is written for it.", voxel)
            continue
        meshes.append(VoxelMesh(voxel, mesh, is_sample, voxel_affine(affine, voxel, box_um)))
    return meshes


def drawn_as_cells(voxel_fit: SpinverseFit) -> bool:
    """Whether the walls of a voxel are packed cells whose faces the data did not change."""
    unchanged = np.array_equal(voxel_fit.permeability, voxel_fit.packing_permeability)
    return bool(unchanged and voxel_fit.field_bodies.any())


def _save_together(placed, path):
    """One file for ParaView of the meshes of all voxels, in mm."""
    import meshio

    points = [item.vertices_mm for item in placed]
    offsets = np.cumsum([0, *map(len, points)])
    meshes = [item.mesh for item in placed]
    triangles = [mesh.triangles + offset for mesh, offset in zip(meshes, offsets, strict=False)]
    index = [np.tile(item.voxel, (len(item.mesh.triangles), 1)) for item in placed]
    values = {
        "permeability_um_per_ms": np.concatenate([mesh.permeability for mesh in meshes]),
        "wall_probability": np.concatenate([mesh.wall_probability for mesh in meshes]),
        "voxel": np.concatenate(index).astype(np.int32),
    }
    cells = [("triangle", np.concatenate(triangles).astype(np.int32))]
    data = {name: [value] for name, value in values.items()}
    meshio.Mesh(np.concatenate(points), cells, cell_data=data).write(path)
