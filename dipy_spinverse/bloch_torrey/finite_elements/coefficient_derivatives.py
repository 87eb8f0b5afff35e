"""Derivatives of the coefficients of linear finite elements by vertex positions, as matrices.

With s_a the slope of the linear function that is 1 at vertex a of a tetrahedron of volume V, 0 at
the others::

    dV = V sum_c s_c . dx_c
    d(s_a . s_b) = -sum_c ((s_c . s_b) s_a + (s_c . s_a) s_b) . dx_c

Few vertices move a coefficient, so that matrices are sparse and serve any number of directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix

from dipy_spinverse.bloch_torrey.finite_elements.operator import EDGES, FiniteElements
from dipy_spinverse.bloch_torrey.finite_elements.sweep import LumpedNetwork


@dataclass(frozen=True, eq=False)
class CoefficientDerivatives:
    """By the coordinates x, y, z of P points in turn.

    Attributes
    ----------
    of_conductance : csr_matrix (L, 3P)
    of_mass : csr_matrix (n, 3P)
    of_position : csr_matrix (3n, 3P)
        Of x, y, z of nodes in turn.
    """

    of_conductance: csr_matrix
    of_mass: csr_matrix
    of_position: csr_matrix

    def along(self, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Changes of conductances (F, L), masses (F, n), positions (F, n, 3) along fields."""
        flat = fields.reshape(len(fields), -1).T
        of_conductance, of_mass, of_position = (
            np.ascontiguousarray((matrix @ flat).T)
            for matrix in (self.of_conductance, self.of_mass, self.of_position)
        )
        return of_conductance, of_mass, of_position.reshape(len(fields), -1, 3)

    def pulled_back(
        self, by_conductance: np.ndarray, by_mass: np.ndarray, by_position: np.ndarray
    ) -> np.ndarray:
        """Derivatives by points (P, 3) from those by coefficients (L,), (n,) and (n, 3)."""
        by_point = self.of_conductance.T @ by_conductance + self.of_mass.T @ by_mass
        return (by_point + self.of_position.T @ by_position.ravel()).reshape(-1, 3)


def coefficient_derivatives(
    elements: FiniteElements,
    points: np.ndarray,
    permeability: np.ndarray,
    diffusivity: np.ndarray,
    network: LumpedNetwork,
) -> CoefficientDerivatives:
    """Derivatives of `coefficients` of a grid without period.

    Parameters
    ----------
    elements : FiniteElements
    points : ndarray (P, 3)
    permeability : ndarray (F,)
    diffusivity : ndarray (T,)
    network : LumpedNetwork
        Of the coefficients there.
    """
    grid, nodes = elements.grid, elements.nodes
    corners = points[grid.tetrahedra]
    edges = corners[:, 1:] - corners[:, :1]
    volumes = np.abs(np.linalg.det(edges)) / 6
    slopes = np.linalg.inv(edges).swapaxes(1, 2)
    slopes = np.concatenate([-slopes.sum(axis=1, keepdims=True), slopes], axis=1)
    products = slopes @ slopes.swapaxes(1, 2)
    a, b = EDGES.T
    # (T, 6 edges, 4 vertices, 3)
    per_edge = products[:, b, :, None] * slopes[:, a, None] - (
        products[:, a, b][:, :, None, None] * slopes[:, None]
    )
    per_edge += products[:, a, :, None] * slopes[:, b, None]
    per_edge *= (diffusivity * volumes)[:, None, None, None]
    of_volume = volumes[:, None, None] * slopes

    n_points, n_links, n_nodes = len(points), len(elements.ends), len(elements.vertices)
    columns = 3 * grid.tetrahedra[:, :, None] + np.arange(3)
    of_conductance = _matrix(
        elements.tetrahedron_links, columns, per_edge, (n_links, 3 * n_points)
    )
    if len(elements.membranes):
        of_conductance = of_conductance + _through_membranes(
            elements, points, permeability, (n_links, 3 * n_points)
        )
    quarter = np.repeat(of_volume[:, None] / 4, 4, axis=1)
    of_mass = _matrix(nodes, columns, quarter, (n_nodes, 3 * n_points))

    # halfway to the centre of a node's mass: see `coefficients`
    to_centre = 0.4 * (corners.mean(axis=1, keepdims=True) - corners)
    offset = network.positions[nodes] - points[elements.vertices][nodes]
    drawn = (to_centre - offset)[..., None, None] * quarter[:, :, None]
    pull = 0.4 * (np.full((4, 4), 0.25) - np.eye(4))
    moved = np.einsum("t,ac,ij->taicj", volumes / 4, pull, np.eye(3))
    share = (drawn + moved) / network.masses[nodes][:, :, None, None, None]
    rows = 3 * nodes[:, :, None] + np.arange(3)
    n = len(grid.tetrahedra)
    of_position = _matrix(
        rows.reshape(n, 12), columns, share.reshape(n, 12, 4, 3), (3 * n_nodes, 3 * n_points)
    )
    own = coo_matrix(
        (np.ones(3 * n_nodes), (np.arange(3 * n_nodes),
                                (3 * elements.vertices[:, None] + np.arange(3)).ravel())),
        (3 * n_nodes, 3 * n_points),
    )  # fmt: skip
    return CoefficientDerivatives(of_conductance, of_mass, (of_position + own).tocsr())


def _through_membranes(elements, points, permeability, shape):
    """Derivatives of the conductances through membranes, which are as their areas."""
    faces = elements.grid.faces[elements.membranes]
    corners = points[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    opposite = corners[:, [2, 0, 1]] - corners[:, [1, 2, 0]]
    of_area = np.cross(normals[:, None], opposite) / 2
    through = (permeability[elements.membranes] / 3)[:, None, None] * of_area
    columns = 3 * faces[:, :, None] + np.arange(3)
    each = np.repeat(through[:, None], 3, axis=1)
    return _matrix(elements.membrane_links, columns, each, shape)


def _matrix(rows, columns, values, shape):
    """Matrix of the sum of values (T, R, C, 3) at rows (T, R) and columns (T, C, 3)."""
    rows = np.broadcast_to(rows[:, :, None, None], values.shape)
    columns = np.broadcast_to(columns[:, None], values.shape)
    return coo_matrix((values.ravel(), (rows.ravel(), columns.ravel())), shape).tocsr()
