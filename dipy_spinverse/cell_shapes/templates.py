"""Templates: tetrahedral meshes whose vertices a shape space moves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import eigh
from scipy.spatial import Delaunay

from dipy_spinverse.grid.tetrahedral_grid import vector_areas

# The faces of a tetrahedron of positive volume, seen anticlockwise from outside.
_FACES = np.array([[1, 2, 3], [0, 3, 2], [0, 1, 3], [0, 2, 1]])


@dataclass(frozen=True, eq=False)
class Template:
    """Tetrahedra of a closed cell.

    Attributes
    ----------
    points : ndarray (N, 3)
        Vertex positions, um.
    tetrahedra : ndarray (T, 4)
        Vertex indices; all volumes are positive.
    """

    points: np.ndarray
    tetrahedra: np.ndarray

    def __repr__(self) -> str:
        return f"Template({len(self.points)} vertices, {len(self.tetrahedra)} tetrahedra)"

    @cached_property
    def triangles(self) -> np.ndarray:
        """Of the surface (F, 3), seen anticlockwise from outside."""
        faces = self.tetrahedra[:, _FACES].reshape(-1, 3)
        _, index, counts = np.unique(
            np.sort(faces, axis=1), axis=0, return_index=True, return_counts=True
        )
        return faces[index[counts == 1]]

    @cached_property
    def surface(self) -> np.ndarray:
        """Vertices (S,) on the surface."""
        return np.unique(self.triangles)

    @cached_property
    def harmonic_extension(self) -> np.ndarray:
        """Weights (N, S) of the displacements of surface vertices in those of all vertices.

        Harmonic functions of the template: moved linearly at the surface, all move linearly.
        """
        inside = np.setdiff1d(np.arange(len(self.points)), self.surface)
        stiffness = _stiffness(self.points, self.tetrahedra)
        weights = np.zeros((len(self.points), len(self.surface)))
        weights[self.surface, np.arange(len(self.surface))] = 1
        weights[inside] = -np.linalg.solve(
            stiffness[np.ix_(inside, inside)], stiffness[np.ix_(inside, self.surface)]
        )
        return weights

    @cached_property
    def laplacian(self) -> tuple[np.ndarray, np.ndarray]:
        """Cotangent Laplacian (S, S) and areas (S,), um^2, of the vertices on the surface."""
        triangles = np.searchsorted(self.surface, self.triangles)
        corners = self.points[self.triangles]
        areas = 2 * np.linalg.norm(vector_areas(corners), axis=1)
        laplacian = np.zeros((len(self.surface),) * 2)
        for k in range(3):
            edge_1, edge_2 = corners[:, k - 2] - corners[:, k], corners[:, k - 1] - corners[:, k]
            half_cotangent = np.einsum("fk,fk->f", edge_1, edge_2) / areas / 2
            i, j = triangles[:, k - 2], triangles[:, k - 1]
            for row, column, sign in ((i, j, -1), (j, i, -1), (i, i, 1), (j, j, 1)):
                np.add.at(laplacian, (row, column), sign * half_cotangent)
        shares = np.bincount(triangles.ravel(), np.repeat(areas / 6, 3))
        return laplacian, shares

    def surface_modes(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The n smoothest functions (S, n) on the surface after the constant, and their rates.

        Eigenfunctions of the cotangent Laplacian, of mean square 1; rates (n,) in 1/um^2.
        """
        laplacian, areas = self.laplacian
        rates, modes = eigh(laplacian, np.diag(areas / areas.sum()), subset_by_index=(1, n))
        return rates / areas.sum(), modes


def cylinder_mesh(n_rings: int, n_layers: int) -> Template:
    """Structured tetrahedra of a cylinder of radius 1 around z, -1 <= z <= 1.

    Discs of `n_rings` rings around their centre, one above the other. The rim of a disc is a
    polygon of the area of the circle.
    """
    lattice, disc = _disc(n_rings)
    triangles = np.sort(Delaunay(lattice).simplices, axis=1)
    z = np.repeat(np.linspace(-1, 1, n_layers), len(disc))
    points = np.column_stack([np.tile(disc, (n_layers, 1)), z])
    low = len(disc) * np.arange(n_layers - 1)[:, None, None] + triangles
    high = low + len(disc)
    # reversed in every other layer, so that diagonals have no preferred direction
    alternate = (np.arange(n_layers - 1) % 2 == 1)[:, None, None]
    low, high = np.where(alternate, high, low), np.where(alternate, low, high)
    (a0, b0, c0), (a1, b1, c1) = np.moveaxis(low, 2, 0), np.moveaxis(high, 2, 0)
    prism_tetrahedra = [(a0, b0, c0, c1), (a0, b0, b1, c1), (a0, a1, b1, c1)]
    tetrahedra = np.concatenate(
        [np.stack(corners, -1).reshape(-1, 4) for corners in prism_tetrahedra]
    )
    edges = points[tetrahedra[:, 1:]] - points[tetrahedra[:, :1]]
    inverted = np.linalg.det(edges) < 0
    tetrahedra[inverted] = tetrahedra[inverted][:, [1, 0, 2, 3]]
    return Template(points, tetrahedra)


def _disc(n_rings):
    """Points of a hexagonal lattice within a hexagon, and the same mapped into a circle."""
    lattice, disc = [np.zeros((1, 2))], [np.zeros((1, 2))]
    corners = np.pi / 3 * np.arange(7)
    corners = np.column_stack([np.cos(corners), np.sin(corners)])
    for ring in range(1, n_rings + 1):
        share = np.arange(ring)[:, None] / ring
        side = [(1 - share) * a + share * b for a, b in zip(corners, corners[1:], strict=False)]
        lattice.append(ring * np.concatenate(side))
        angle = 2 * np.pi * np.arange(6 * ring) / (6 * ring)
        disc.append(ring / n_rings * np.column_stack([np.cos(angle), np.sin(angle)]))
    side = 2 * np.pi / (6 * n_rings)
    return np.concatenate(lattice), np.concatenate(disc) * np.sqrt(side / np.sin(side))


def _stiffness(points, tetrahedra):
    """Stiffness matrix (N, N) of linear elements."""
    edges = points[tetrahedra[:, 1:]] - points[tetrahedra[:, :1]]
    slopes = np.linalg.inv(edges).swapaxes(1, 2)
    slopes = np.concatenate([-slopes.sum(axis=1, keepdims=True), slopes], axis=1)
    volumes = np.linalg.det(edges) / 6
    local = np.einsum("t,tik,tjk->tij", volumes, slopes, slopes)
    matrix = np.zeros((len(points),) * 2)
    np.add.at(matrix, (tetrahedra[:, :, None], tetrahedra[:, None, :]), local)
    return matrix
