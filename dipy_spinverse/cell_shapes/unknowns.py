"""The unknowns of a cell, and its signals as a function of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey.finite_elements.modal_sensitivity import (
    ModalSensitivities,
    ModalSignals,
)
from dipy_spinverse.bloch_torrey.finite_elements.operator import inverted_tetrahedra
from dipy_spinverse.cell_shapes.shape_spaces.protocol import ShapeSpace
from dipy_spinverse.grid import TetrahedralGrid

# Discretisation error of signals over S0 times the number of nodes: root mean square of tubes of
# 3 um radius at b up to 10 ms/um^2 against 5642 nodes, with 370 to 1638 nodes
# (benchmarks/modal_sensitivity.py).
_MESH_ERROR = 1.1
# Volumes of tetrahedra over their mean below which a barrier rises, and below which a mesh is
# rejected; chosen by hand.
_THIN, _THINNEST = 0.05, 1e-3
_LARGEST_TURN = 1e3  # rad; beyond, steps come from singular matrices


@dataclass(frozen=True, eq=False)
class CellShape:
    """Shape and pose of a cell, and its signal without diffusion."""

    theta: np.ndarray  # (P,), in the shape space
    rotation: Rotation  # from the space to the scanner
    log_scale: float  # of the size; 0 where the space has it among its parameters
    log_S0: np.ndarray  # (K,), at each echo time

    def pack(self) -> np.ndarray:
        """Shape, rotation vector and size (P + 4,)."""
        return np.concatenate([self.theta, self.rotation.as_rotvec(), [self.log_scale]])

    @classmethod
    def unpack(cls, packed: np.ndarray) -> CellShape:
        """That of :meth:`pack`, with S0 = 1."""
        rotation = Rotation.from_rotvec(packed[-4:-1])
        return cls(packed[:-4], rotation, float(packed[-1]), np.zeros(1))


@dataclass(frozen=True, eq=False)
class SimulatedCell:
    """A cell with its vertices and signals."""

    shape: CellShape
    points: np.ndarray  # (N, 3), um, around their mean
    body: ModalSignals  # over S0
    signals: np.ndarray  # (M,)


@dataclass(frozen=True, eq=False)
class ShapeSignals:
    """Signals of the cells of a shape space."""

    space: ShapeSpace
    sensitivities: ModalSensitivities  # on the template

    @classmethod
    def of(
        cls, space: ShapeSpace, acquisition: Acquisition, diffusivity: float, length_um: float
    ) -> ShapeSignals:
        """With modes down to a length."""
        template = space.template
        try:
            grid = TetrahedralGrid.from_tetrahedra(
                template.points, template.tetrahedra, "reflecting"
            )
        except ValueError as error:
            raise ValueError(f"shape_space has an invalid template: {error}") from error
        return cls(
            space,
            ModalSensitivities(
                acquisition, grid, diffusivity=diffusivity, length_scale_um=length_um
            ),
        )

    @property
    def grid(self) -> TetrahedralGrid:
        """The template."""
        return self.sensitivities.grid

    @property
    def mesh_error(self) -> float:
        """Standard deviation of the discretisation error, over S0."""
        return _MESH_ERROR / self.grid.n_points

    def points(self, shape: CellShape) -> np.ndarray:
        """Positions (N, 3) of the vertices in the scanner, um, around their mean."""
        vertices = self.space.vertices(torch.as_tensor(shape.theta)).detach().numpy()
        rotated = shape.rotation.apply(vertices) * np.exp(shape.log_scale)
        return rotated - rotated.mean(axis=0)

    def at(self, shape: CellShape) -> SimulatedCell | None:
        """Signals of a cell; None where tetrahedra are inverted or nearly so."""
        points = self.points(shape)
        if not np.isfinite(points).all() or self.is_degenerate(points):
            return None
        body = self.sensitivities.at(points)
        S0 = np.exp(shape.log_S0)[self.sensitivities.acquisition.te_index]
        return SimulatedCell(shape, points, body, S0 * body.signals)

    def is_degenerate(self, points: np.ndarray) -> bool:
        """Whether some tetrahedron is inverted or nearly flat."""
        volumes = self._volumes(points)
        thin = volumes.min() < _THINNEST * volumes.mean()
        return bool(thin or inverted_tetrahedra(self.grid, points).any())

    def thinned(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tetrahedra (K,) that are nearly flat, and their barrier terms (K,), 0 to infinite."""
        volumes = self._volumes(points)
        flatness = _THIN * volumes.mean() / np.maximum(volumes, np.finfo(float).tiny) - 1
        (thin,) = np.nonzero(flatness > 0)
        return thin, flatness[thin]

    def _volumes(self, points):
        """6 times the volumes (T,) of tetrahedra, um^3."""
        edges = points[self.grid.tetrahedra[:, 1:]] - points[self.grid.tetrahedra[:, :1]]
        return np.abs(np.linalg.det(edges))

    def thinning(self, cell: SimulatedCell, fields: np.ndarray) -> np.ndarray:
        """Derivatives (K, F) of :meth:`thinned` by the fields, of the same tetrahedra."""
        thin, flatness = self.thinned(cell.points)
        corner, *neighbours = self.grid.tetrahedra[thin].T
        edges, moves = (
            np.stack(
                [x[..., neighbour, :] - x[..., corner, :] for neighbour in neighbours], axis=-2
            )
            for x in (cell.points, fields)
        )
        growth = np.einsum("kij,fkji->kf", np.linalg.inv(edges), moves)
        return -(flatness + 1)[:, None] * growth

    def fields(self, cell: SimulatedCell) -> np.ndarray:
        """Displacements (F, N, 3) by theta, rotations and, where it is unknown, the size."""
        shape = cell.shape
        axes = np.eye(3)[:, None]
        fields = [shape.rotation.apply(field) * np.exp(shape.log_scale)
                  for field in _by_theta(self.space, shape.theta)]  # fmt: skip
        fields += list(np.cross(axes, cell.points))
        if not self.space.has_scale:
            fields.append(cell.points)
        return np.array(fields)

    def jacobian(self, cell: SimulatedCell, fields: np.ndarray) -> np.ndarray:
        """Derivatives (M, U) of signals by the steps of :meth:`moved`."""
        te_index = self.sensitivities.acquisition.te_index
        by_shape = np.exp(cell.shape.log_S0)[te_index, None] * cell.body.jacobian(fields)
        indicator = te_index[:, None] == np.arange(len(cell.shape.log_S0))
        return np.hstack([by_shape, cell.signals[:, None] * indicator])

    def moved(self, shape: CellShape, step: np.ndarray) -> CellShape:
        """A cell after a step (U,): of theta, rotation vector, log scale if unknown, log S0.

        Shapes stay within the bounds of their space. Steps that are not finite, or turn the cell
        by more than any rotation, lead to no shape: NaN, which :meth:`at` rejects.
        """
        n = self.space.n_parameters
        n_pose = n + 3
        n_shape = n_pose + (not self.space.has_scale)
        low, high = np.asarray(self.space.bounds).T
        if not (np.isfinite(step).all() and np.abs(step[n:n_pose]).max() < _LARGEST_TURN):
            return replace(shape, theta=np.full(n, np.nan))
        return CellShape(
            np.clip(shape.theta + step[:n], low, high),
            Rotation.from_rotvec(step[n:n_pose]) * shape.rotation,
            shape.log_scale + float(step[n_pose:n_shape].sum()),
            shape.log_S0 + step[n_shape:],
        )


def _by_theta(space: ShapeSpace, theta: np.ndarray) -> np.ndarray:
    """Derivatives (P, N, 3) of vertices."""
    at = torch.tensor(theta, requires_grad=True)
    vertices = space.vertices(at)
    # pulled-back weights are linear in these: their derivative is the transpose
    weights = torch.zeros_like(vertices, requires_grad=True)
    (pulled_back,) = torch.autograd.grad(vertices, at, weights, create_graph=True)
    fields = [
        torch.autograd.grad(component, weights, retain_graph=True)[0] for component in pulled_back
    ]
    return torch.stack(fields).numpy()
