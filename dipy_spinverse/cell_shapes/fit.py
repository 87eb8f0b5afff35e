"""CellShapeFit: the shapes of cells and their uncertainty."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_shapes import chunk, geometry
from dipy_spinverse.cell_shapes.unknowns import CellShape
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.walls.interface import InterfaceMesh


class CellShapeFit(VoxelFit):
    """Result of :meth:`CellShapeModel.fit`; see :class:`VoxelFit` for its maps.

    Attributes
    ----------
    volume : ndarray (...)
        um^3.
    surface : ndarray (...)
        um^2.
    length : ndarray (...)
        Of a straight tube with the same slowest rate of diffusion, nearly that of the centre
        line, um.
    mean_radius : ndarray (...)
        Of a cylinder of the same length and volume, um.
    tortuosity : ndarray (...)
        Length over the distance of its ends.
    at_bounds : ndarray (...) of bool
        Whether a parameter of the shape is at its bound: shapes outside may fit better.
    birge_ratio : ndarray (...)
        Factor by which intervals and standard deviations are wider than those of the posterior
        samples because the signals or the prior reject the shape; 1 elsewhere.
    """

    MAPS = geometry.MAPS
    model: chunk.ShapeModel

    def theta(self, index: tuple[int, ...] | int = ()) -> np.ndarray:
        """Most probable parameters (P,) in the shape space, of one voxel."""
        return self._shape(self._one(index), -1).theta

    def mesh(self, index: tuple[int, ...] | int = (), stage: str = "likeliest") -> InterfaceMesh:
        """The surface of a cell, around the mean of its vertices.

        Its position, and which of its two point reflections it is, are not identifiable.

        Parameters
        ----------
        index : tuple of int, optional
            Of the voxel.
        stage : {"likeliest", "coarse", "start"}, optional
            The estimate, that on the first mesh, or the initial cell.

        Returns
        -------
        InterfaceMesh
            With `vertex_std_um` of the most probable shape where there are posterior samples:
            root mean square distance of their surfaces from each vertex, times `birge_ratio`.

        Raises
        ------
        ValueError
            An index of no fitted voxel, an unknown stage.
        """
        if stage not in chunk.STAGES:
            raise ValueError(f"stage is {stage!r}; give one of {chunk.STAGES}.")
        voxel, k = self._one(index), chunk.STAGES.index(stage)
        forward = self._forward(voxel, k)
        points = forward.points(self._shape(voxel, k))
        vertex_std = None
        if stage == "likeliest" and "_draws" in voxel._values:
            vertex_std = geometry.surface_std(forward.grid, points, _drawn(voxel, forward))
            vertex_std = vertex_std * voxel._values["birge_ratio"][0]
        return _surface(forward.grid, points, vertex_std)

    def draws(self, index: tuple[int, ...] | int = ()) -> np.ndarray:
        """Vertices (n_draws, N, 3) of draws of a cell, um, around their means.

        Where `birge_ratio` is above 1 their scatter is too small by that factor.

        Raises
        ------
        ValueError
            An index of no fitted voxel, a fit without draws.
        """
        voxel = self._one(index)
        if "_draws" not in voxel._values:
            raise ValueError("the fit has no draws; fit with n_draws above 0.")
        return _drawn(voxel, self._forward(voxel, -1))

    def tetrahedra(
        self, index: tuple[int, ...] | int = (), stage: str = "likeliest"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (N, 3), um, and tetrahedra (T, 4) of a cell; arguments as in :meth:`mesh`."""
        voxel, k = self._one(index), chunk.STAGES.index(stage)
        forward = self._forward(voxel, k)
        return forward.points(self._shape(voxel, k)), forward.grid.tetrahedra

    def _one(self, index):
        voxel = self[index]
        if voxel.shape or not len(voxel._rows):
            raise ValueError(
                f"index is {index!r}; give that of one voxel that was fitted, within shape "
                f"{self.shape}."
            )
        return voxel

    @staticmethod
    def _shape(voxel, stage):
        return CellShape.unpack(voxel._values["_stages"][0, stage])

    def _forward(self, voxel, stage):
        n_meshes = voxel._values["_stage_meshes"][0, stage]
        return self.model.meshed(voxel._values["_meshed"][0, :n_meshes])


def _drawn(voxel, forward):
    """Vertices (n_draws, N, 3) of the draws of a voxel."""
    packed = voxel._values["_draws"][0]
    return np.array([forward.points(CellShape.unpack(draw)) for draw in packed])


def _surface(grid, points, vertex_std):
    """The outside of a grid with its vertices at points (N, 3)."""
    triangles, areas = geometry.outward_triangles(grid, points)
    vertices, corners = np.unique(triangles, return_inverse=True)
    n = len(triangles)
    return InterfaceMesh(
        vertices_um=points[vertices],
        triangles=corners.reshape(-1, 3),
        permeability=np.zeros(n),
        wall_probability=np.ones(n),
        normals=areas / np.linalg.norm(areas, axis=1, keepdims=True),
        components=np.zeros(n, dtype=int),
        vertex_std_um=None if vertex_std is None else vertex_std[vertices],
    )
