"""``dipy_fit_cell_shapes``: the shape of one closed cell in each voxel."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dipy_spinverse.report.meshes import MESH_SUFFIXES, voxel_affine
from dipy_spinverse.workflows.diffusion import DiffusionCommand
from dipy_spinverse.workflows.fit_command import Images
from dipy_spinverse.workflows.model_options import model_step


class CellShapesFlow(DiffusionCommand):
    """Find the shape of a closed cell from its diffusion signals.

    The signals must be those of water inside of one cell, as in spectroscopy of metabolites or in
    simulations; each voxel is one cell. Writes its size and tortuosity with 95 % intervals, and a
    mesh. The pulse timings are needed: give --big_delta and --small_delta.
    """

    maps = ("volume", "surface", "length", "mean_radius", "tortuosity")
    others = ("at_bounds", "birge_ratio")
    more_outputs: ClassVar[dict[str, tuple[str, str]]] = {
        "cell": (
            "cell",
            "Stem of the mesh files; voxel i,j,k gives STEM_i_j_k.ply, .vtu (um) and .surf.gii "
            "(mm, enlarged to fill its voxel, for dipy_horizon).",
        )
    }

    make_model = model_step("cell_shapes.model.CellShapeModel", "diffusivity", "seed")

    def write(self, fit: Any, images: Images, settings: dict, paths: dict[str, Path]) -> None:
        """Write maps, and a mesh of each cell."""
        from dipy_spinverse.voxels.status import FITTED

        super().write(fit, images, settings, paths)
        for voxel in map(tuple, np.argwhere(np.isin(fit.status, FITTED)).tolist()):
            mesh = fit.mesh(voxel)
            size = 2 * float(np.abs(mesh.vertices_um).max())
            name = "_".join([paths["cell"].name, *map(str, voxel)])
            for suffix in MESH_SUFFIXES:
                mesh.save(
                    paths["cell"].with_name(name + suffix),
                    voxel_affine(images.affine, voxel, size),
                )
