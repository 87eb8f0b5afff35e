"""``dipy_fit_spinverse``: maps of tissue and meshes of walls."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dipy_spinverse.report.meshes import save_meshes
from dipy_spinverse.workflows.diffusion import DiffusionCommand
from dipy_spinverse.workflows.fit_command import Images, voxels_of
from dipy_spinverse.workflows.model_options import map_names


class SpinverseFlow(DiffusionCommand):
    """Find the tissue and the walls (membranes) that explain diffusion-weighted signals.

    Fits packed permeable cylinders and spheres to each voxel, and writes maps with standard
    deviations and 95 % intervals, and predicted signals. With --walls, or in the voxels of
    --mesh_voxels, solves the inverse problem of the Bloch-Torrey equation too: the permeability
    of every face of a periodic tetrahedral grid. The pulse timings are needed: give --big_delta
    and --small_delta.
    """

    maps = map_names("spinverse.fit.SpinverseFit")
    others = ("wall_orientation", "wall_orientation_angle", "packed_cells", "pattern_agreement")
    more_outputs: ClassVar[dict[str, tuple[str, str]]] = {
        "interface": (
            "interface",
            "Stem of the mesh files; voxel i,j,k gives STEM_i_j_k.ply, .vtu (um) and .surf.gii "
            "(mm, enlarged to fill its voxel, for dipy_horizon), or STEM_i_j_k_one_of_many.ply "
            "and so on where the pattern of its walls is not determined; STEM.vtu has all, in mm.",
        )
    }

    def make_model(
        self,
        acquired: Any,
        *,
        diffusivity: float | None = None,
        free_diffusivity: float = 3e-3,
        cells: int = 4,
        cell_size: float = 5.0,
        seed: int = 0,
        device: str = "cpu",
    ) -> Any:
        """The model.

        Parameters
        ----------
        diffusivity : float, optional
            Diffusivity of the water in tissue, mm^2/s, if it is known. Without it, packed cells
            find it, and between walls it is 2e-3.
        free_diffusivity : float, optional
            Diffusivity of free water, mm^2/s.
        cells : int, optional
            Lattice cubes of the grid along each axis (12 tetrahedra in each).
        cell_size : float, optional
            Edge of a lattice cube, um. Walls closer to each other than this are not resolved.
        seed : int, optional
            Seed of the random start.
        device : string, optional
            Torch device that computes walls, for instance 'cpu' or 'cuda' (UNTESTED on a GPU).
        """
        from dipy_spinverse.grid import bcc_grid
        from dipy_spinverse.spinverse import SpinverseModel

        return SpinverseModel(
            acquired, grid=bcc_grid(cells=cells, cell_size_um=cell_size), diffusivity=diffusivity,
            free_diffusivity=free_diffusivity, device=device, seed=seed,
        )  # fmt: skip

    def fit_options(
        self,
        images: Images,
        *,
        walls: bool = False,
        mesh_voxels: list[str] | None = None,
        free_water: bool = False,
        n_fields: int = 4,
    ) -> dict[str, Any]:
        """Options of walls.

        Parameters
        ----------
        walls : bool, optional
            Reconstruct walls in all voxels, which takes some seconds for each. Without it, only in
            those of --mesh_voxels.
        mesh_voxels : variable string, optional
            Voxels whose walls are saved as meshes, each as three indices with commas between
            them and no spaces, for instance 0,0,0 2,1,0.
        free_water : bool, optional
            Also fit a fraction of free water of walls; packed cells always have one.
        n_fields : int, optional
            Number of further posterior samples of the walls per voxel; 0 for a quick look.
        """
        has_walls = np.full(images.data.shape[:3], walls)
        for voxel in voxels_of(mesh_voxels, has_walls.shape):
            has_walls[voxel] = True
        return {"walls": has_walls, "free_water": free_water, "n_fields": n_fields}

    def write(self, fit: Any, images: Images, settings: dict, paths: dict[str, Path]) -> None:
        """Write maps and the requested meshes."""
        super().write(fit, images, settings, paths)
        voxels = voxels_of(settings["settings"]["mesh_voxels"], fit.shape)
        save_meshes(fit, voxels, paths["interface"], images.affine)
