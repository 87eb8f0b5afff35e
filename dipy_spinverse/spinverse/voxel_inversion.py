"""What `SpinverseModel` asks of an engine that estimates the walls of voxels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.inversion import WallProblem
from dipy_spinverse.inversion.unknowns import wall_faces
from dipy_spinverse.spinverse.fit import SpinverseFit
from dipy_spinverse.spinverse.wall_corrections import LARGEST_LINK_PHASE
from dipy_spinverse.voxels.chunks import Engine
from dipy_spinverse.voxels.image import Image
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.walls.interface import InterfaceMesh, interface_mesh


class VoxelInversion(Protocol):
    """An engine that estimates the walls of voxels: a frozen dataclass of its options.

    Options are numbers, texts, stages and priors, so that a fit can be saved.
    """

    def fit(
        self,
        problem: WallProblem,
        image: Image,
        walls: np.ndarray,
        compute: Engine,
        model: VoxelModel,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Status (...) and values of a :class:`SpinverseFit`.

        Permeability fields are wanted of the voxels in `walls` (...); a journal is identified by
        the settings of `model`.
        """

    def signals_of_fit(
        self, problem: WallProblem, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of the values of a fit, relative to those without diffusion."""

    def mesh(self, voxel: SpinverseFit, threshold: float, field: int | None) -> InterfaceMesh:
        """Mesh of the walls of one voxel; arguments as :meth:`SpinverseFit.interface`."""
        grid, permeability, walls = voxel.model.grid, voxel.permeability, None
        scale, frame = voxel.field_scale[field or 0], voxel.field_frame[field or 0]
        if field is not None:
            permeability = np.vstack([permeability, voxel.permeability_fields])[field]
            # Permeability over diffusivity is an inverse length.
            walls = wall_faces(grid, permeability, voxel.field_diffusivity[field] / scale)
        mesh = interface_mesh(
            grid, permeability, voxel.wall_probability,
            threshold=threshold, walls=walls,
        )  # fmt: skip
        return replace(
            mesh, vertices_um=scale * mesh.vertices_um @ frame, normals=mesh.normals @ frame
        )


def wall_layout(problem: WallProblem, n_stages: int) -> dict[str, object]:
    """Type and shape of what a fit stores of a voxel with permeability fields."""
    n_faces, n_fields = problem.grid.n_faces, problem.n_fields
    return {
        "permeability": ("f4", (n_faces,)),
        "permeability_fields": ("f4", (n_fields, n_faces)),
        "packing_permeability": ("f4", (n_faces,)),
        "wall_probability": ("f4", (n_faces,)),
        "pattern_agreement": float,
        "field_free_water": float,
        "field_scale": (float, (n_fields + 1,)),
        "field_frame": (float, (n_fields + 1, 3, 3)),
        "field_diffusivity": (float, (n_fields + 1,)),
        "field_share": (float, (n_fields + 1,)),
        "history_iterations": (int, (n_stages,)),
        "history_misfit": (float, (n_stages,)),
    }


def check_directions(problem: WallProblem) -> None:
    """Refuse averages over directions."""
    if problem.acquisition.isotropic.any():
        raise ValueError(
            "walls is True, but the acquisition has averages over directions (isotropic), which "
            "permeability fields cannot predict. Set walls=False for the maps of packed cells, or "
            "use PackedCellsModel."
        )


def warn_if_coarse(problem: WallProblem, stacklevel: int) -> None:
    """Warn of encodings that the grid does not resolve."""
    phase = np.abs(problem.grid.displacements @ problem.acquisition.q_vectors.T).max(axis=0)
    coarse = phase > LARGEST_LINK_PHASE
    if coarse.any():
        warnings.warn(
            f"The grid is too coarse for {coarse.sum()} of {len(coarse)} measurements: the "
            f"phase between neighbouring tetrahedra reaches {phase.max():.1f} rad. Use "
            f"lattice cubes smaller by a factor of {phase.max() / LARGEST_LINK_PHASE:.1f}, "
            "or leave these measurements out.",
            stacklevel=stacklevel,
        )
