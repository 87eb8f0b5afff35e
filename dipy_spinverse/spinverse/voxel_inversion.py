"""What `SpinverseModel` asks of an engine that estimates the walls of voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.inversion import WallProblem
from dipy_spinverse.inversion.unknowns import wall_faces
from dipy_spinverse.spinverse.fit import SpinverseFit
from dipy_spinverse.units import MM2_PER_S
from dipy_spinverse.voxels.chunks import Engine
from dipy_spinverse.voxels.image import Image
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.walls.interface import InterfaceMesh, interface_mesh


class VoxelInversion:
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
        raise NotImplementedError

    def signals_of_fit(
        self, problem: WallProblem, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of the values of a fit, relative to those without diffusion."""
        raise NotImplementedError

    def mesh(self, voxel: SpinverseFit, threshold: float, field: int | None) -> InterfaceMesh:
        """Mesh of the walls of one voxel; arguments as :meth:`SpinverseFit.interface`."""
        grid, permeability, walls = voxel.model.grid, voxel.permeability, None
        scale, frame = voxel.field_scale[field or 0], voxel.field_frame[field or 0]
        if field is not None:
            permeability = np.vstack([permeability, voxel.permeability_fields])[field]
            # Permeability over diffusivity is an inverse length.
            diffusivity = MM2_PER_S * voxel.field_diffusivity[field]
            walls = wall_faces(grid, permeability, diffusivity / scale)
        mesh = interface_mesh(
            grid, permeability, voxel.wall_probability,
            threshold=threshold, walls=walls,
        )  # fmt: skip
        return replace(
            mesh, vertices_um=scale * mesh.vertices_um @ frame, normals=mesh.normals @ frame
        )
