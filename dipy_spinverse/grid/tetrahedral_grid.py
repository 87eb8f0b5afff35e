"""The tetrahedral grid: tetrahedra, the faces between them, and their geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

BOUNDARIES = ("periodic", "absorbing", "reflecting")

# The three vertices of the face opposite to each vertex of a tetrahedron.
_OPPOSITE_FACE = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])


@dataclass(frozen=True, eq=False)
class TetrahedralGrid:
    """Tetrahedra and the faces between neighbours, which carry the permeabilities.

    Made by :func:`bcc_grid`, :func:`read_grid` or :meth:`TetrahedralGrid.from_tetrahedra`; the
    constructor checks nothing.

    Attributes
    ----------
    points_um : ndarray (P, 3)
        Vertex positions, um. A periodic vertex is stored once.
    tetrahedra : ndarray (T, 4)
        Vertex indices.
    boundary : {"periodic", "absorbing", "reflecting"}
        Boundary condition.
    period_um : ndarray (3,) or None
        Size of the periodic box, um.
    box_um : ndarray (3,) or None
        Size of the box that an absorbing lattice represents, um. Spins are lost at its sides,
        which contain the centroids of the omitted tetrahedra.
    tetrahedron_points : ndarray (T, 4, 3)
        Vertex positions of each tetrahedron, um, not wrapped at periodic boundaries.
    volumes : ndarray (T,)
        um^3.
    centroids : ndarray (T, 3)
        um, not wrapped.
    faces : ndarray (F, 3)
        Sorted vertex triples of the faces between two tetrahedra, including periodic neighbours
        (once per pair).
    face_tetrahedra : ndarray (F, 2)
        The two tetrahedra of each face.
    face_points : ndarray (F, 3, 3)
        Vertex positions of each face, um, at its first tetrahedron; differs from
        ``points_um[faces]`` at periodic boundaries.
    face_areas : ndarray (F,)
        um^2.
    face_normals : ndarray (F, 3)
        Unit normals from the first to the second tetrahedron.
    face_distances : ndarray (F, 2)
        Distance of either centroid to the plane of the face, um.
    displacements : ndarray (F, 3)
        From the first to the second centroid through the face, um.
    outer_faces, outer_tetrahedra, outer_areas, outer_distances : ndarray (B, 3), (B,), (B,), (B,)
        The faces on the boundary of the grid; none if it is periodic.
    edges : ndarray (E, 2)
        Sorted vertex pairs of all edges of `faces`.
    edge_faces : csr_matrix (E, F)
        1 where the edge belongs to the face.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(cells=4, cell_size_um=5.0)
    >>> grid.n_tetrahedra, grid.n_faces
    (768, 1536)
    """

    points_um: np.ndarray
    tetrahedra: np.ndarray
    boundary: str
    period_um: np.ndarray | None
    box_um: np.ndarray | None
    tetrahedron_points: np.ndarray
    volumes: np.ndarray
    centroids: np.ndarray
    faces: np.ndarray
    face_tetrahedra: np.ndarray
    face_points: np.ndarray
    face_areas: np.ndarray
    face_normals: np.ndarray
    face_distances: np.ndarray
    displacements: np.ndarray
    outer_faces: np.ndarray
    outer_tetrahedra: np.ndarray
    outer_areas: np.ndarray
    outer_distances: np.ndarray
    edges: np.ndarray
    edge_faces: csr_matrix

    def __repr__(self) -> str:
        return (
            f"TetrahedralGrid({self.n_tetrahedra} tetrahedra, {self.n_faces} faces, "
            f"{self.volume_um3:.6g} um^3, {self.boundary})"
        )

    @property
    def n_points(self) -> int:
        """Number of vertices."""
        return len(self.points_um)

    @property
    def n_tetrahedra(self) -> int:
        """Number of tetrahedra."""
        return len(self.tetrahedra)

    @property
    def n_faces(self) -> int:
        """Number of faces between two tetrahedra."""
        return len(self.faces)

    @property
    def volume_um3(self) -> float:
        """Total volume, um^3."""
        return float(self.volumes.sum())

    @property
    def box_volume_um3(self) -> float:
        """Volume within the absorbing or reflecting boundary, um^3."""
        return self.volume_um3 if self.box_um is None else float(self.box_um.prod())

    @property
    def absorption_distances_um(self) -> np.ndarray:
        """Normal distance (B,), um, from centroids of outer tetrahedra to the absorbing boundary.

        This is the outer face or, on a lattice, the side of the box beyond it.
        """
        return self.outer_distances * (1 if self.box_um is None else 2)

    @property
    def face_centroids(self) -> np.ndarray:
        """Face centroids (F, 3), um, at the first tetrahedron."""
        return self.face_points.mean(axis=1)

    def minimum_image(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (..., 3), um, replaced by their shortest periodic images."""
        if self.period_um is None:
            return np.asarray(vectors)
        return vectors - self.period_um * np.round(vectors / self.period_um)

    def nearest(
        self, targets_um: np.ndarray, points_um: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distance (K,), um, and index (K,) of the nearest target (N, 3) of each point (K, 3).

        Including periodic images.
        """
        if self.period_um is None:
            return cKDTree(targets_um).query(points_um)
        # The tree requires 0 <= x < period; rounding can give the period itself.
        wrapped = [np.mod(x, self.period_um) for x in (targets_um, points_um)]
        targets, points = (np.where(x < self.period_um, x, 0.0) for x in wrapped)
        return cKDTree(targets, boxsize=self.period_um).query(points)

    @classmethod
    def from_tetrahedra(
        cls, points_um: ArrayLike, tetrahedra: ArrayLike, boundary: str = "absorbing"
    ) -> TetrahedralGrid:
        """Grid of a given tetrahedral mesh.

        Parameters
        ----------
        points_um : array-like (P, 3)
            Vertex positions, um.
        tetrahedra : array-like (T, 4)
            Vertex indices, of either orientation.
        boundary : {"absorbing", "reflecting"}, optional
            Spins that reach the boundary are lost, or reflected.

        Raises
        ------
        ValueError
            Wrong shapes or indices, an unknown boundary, or tetrahedra that are degenerate,
            duplicate, inverted (on the same side of a face as their neighbour) or not connected
            through faces.

        Examples
        --------
        >>> points = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
        >>> grid = TetrahedralGrid.from_tetrahedra(points, [[0, 1, 2, 3], [1, 2, 3, 4]])
        >>> grid.faces
        array([[1, 2, 3]])
        """
        points = np.asarray(points_um, dtype=float)
        tetrahedra = np.asarray(tetrahedra)
        if boundary not in ("absorbing", "reflecting"):
            raise ValueError(
                f"boundary is {boundary!r}; a given mesh takes 'absorbing' or 'reflecting' "
                "(for 'periodic' use bcc_grid)."
            )
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise ValueError(
                f"points_um has shape {points.shape}; give finite coordinates of shape (P, 3), um."
            )
        if tetrahedra.ndim != 2 or tetrahedra.shape[1] != 4 or len(tetrahedra) == 0:
            raise ValueError(
                f"tetrahedra has shape {tetrahedra.shape}; give vertex indices of shape (T, 4)."
            )
        if not np.issubdtype(tetrahedra.dtype, np.integer):
            raise ValueError(f"tetrahedra has dtype {tetrahedra.dtype}; give integer indices.")
        if tetrahedra.min() < 0 or tetrahedra.max() >= len(points):
            raise ValueError(
                f"tetrahedra refers to vertices {tetrahedra.min()} to {tetrahedra.max()}, but "
                f"points_um has {len(points)}; indices run from 0 to {len(points) - 1}."
            )
        return build_grid(points, tetrahedra, points[tetrahedra], boundary, None)


def build_grid(
    points: np.ndarray,
    tetrahedra: np.ndarray,
    tetrahedron_points: np.ndarray,
    boundary: str,
    period: np.ndarray | None,
    box: np.ndarray | None = None,
) -> TetrahedralGrid:
    """Find the faces and edges of tetrahedra, compute their geometry and check both."""
    volumes = _volumes(tetrahedron_points)
    _check_tetrahedra(tetrahedra, tetrahedron_points, volumes)
    centroids = tetrahedron_points.mean(axis=1)

    corners = np.sort(tetrahedra[:, _OPPOSITE_FACE].reshape(-1, 3), axis=1)
    faces, inverse, counts = np.unique(corners, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    if counts.max() > 2:
        bad = faces[counts.argmax()]
        raise ValueError(
            f"tetrahedra: the face with vertices {bad.tolist()} belongs to {counts.max()} "
            "tetrahedra; at most two may share a face. Remove overlapping tetrahedra."
        )
    # Sides sorted by face: one or two tetrahedra per face, lower index first.
    sides = np.argsort(inverse, kind="stable")
    start = np.cumsum(counts) - counts
    interior, outer = start[counts == 2], start[counts == 1]
    side0, side1, side_out = sides[interior], sides[interior + 1], sides[outer]

    face_points = _side_points(tetrahedron_points, side0)
    normals, areas = _normals_and_areas(face_points, centroids[side0 // 4])
    face_centroids = face_points.mean(axis=1)
    pairs = np.stack([side0 // 4, side1 // 4], axis=1)
    displacements = centroids[pairs[:, 1]] - centroids[pairs[:, 0]]
    apex = tetrahedron_points[side1 // 4, side1 % 4] - face_centroids
    if period is not None:
        displacements -= period * np.round(displacements / period)
        apex -= period * np.round(apex / period)
    inverted = np.einsum("fk,fk->f", apex, normals) <= 0
    if inverted.any():
        raise ValueError(
            f"tetrahedra: {inverted.sum()} neighbours lie on the same side of their common face "
            f"(first: tetrahedra {pairs[inverted.argmax()].tolist()}): one of them is inverted "
            "or they overlap. Repair the mesh."
        )
    distance0 = np.einsum("fk,fk->f", face_centroids - centroids[pairs[:, 0]], normals)
    distance1 = np.einsum("fk,fk->f", displacements, normals) - distance0
    _check_connected(pairs, len(tetrahedra))

    outer_points = _side_points(tetrahedron_points, side_out)
    outer_normals, outer_areas = _normals_and_areas(outer_points, centroids[side_out // 4])
    outer_distances = np.einsum(
        "fk,fk->f", outer_points.mean(axis=1) - centroids[side_out // 4], outer_normals
    )
    faces_in = faces[counts == 2]
    edges, edge_faces = _edge_incidence(faces_in)
    return TetrahedralGrid(
        points_um=points,
        tetrahedra=tetrahedra,
        boundary=boundary,
        period_um=period,
        box_um=box,
        tetrahedron_points=tetrahedron_points,
        volumes=np.abs(volumes),
        centroids=centroids,
        faces=faces_in,
        face_tetrahedra=pairs,
        face_points=face_points,
        face_areas=areas,
        face_normals=normals,
        face_distances=np.stack([distance0, distance1], axis=1),
        displacements=displacements,
        outer_faces=faces[counts == 1],
        outer_tetrahedra=side_out // 4,
        outer_areas=outer_areas,
        outer_distances=outer_distances,
        edges=edges,
        edge_faces=edge_faces,
    )


def _volumes(tetrahedron_points):
    a, b, c = np.moveaxis(tetrahedron_points[:, 1:] - tetrahedron_points[:, :1], 1, 0)
    return np.einsum("tk,tk->t", np.cross(a, b), c) / 6


def _side_points(tetrahedron_points, sides):
    return tetrahedron_points[(sides // 4)[:, None], _OPPOSITE_FACE[sides % 4]]


def _normals_and_areas(face_points, inner_centroids):
    a, b, c = np.moveaxis(face_points, 1, 0)
    normals = np.cross(b - a, c - a)
    double_areas = np.linalg.norm(normals, axis=1)
    outward = np.einsum("fk,fk->f", normals, a - inner_centroids)
    return normals * (np.sign(outward) / double_areas)[:, None], double_areas / 2


def _edge_incidence(faces):
    pairs = faces[:, [[0, 1], [0, 2], [1, 2]]].reshape(-1, 2)
    edges, edge_of_pair = np.unique(pairs, axis=0, return_inverse=True)
    face_of_pair = np.repeat(np.arange(len(faces)), 3)
    ones = np.ones(len(pairs))
    incidence = coo_matrix((ones, (edge_of_pair.ravel(), face_of_pair)), (len(edges), len(faces)))
    return edges, incidence.tocsr()


def _check_tetrahedra(tetrahedra, tetrahedron_points, volumes):
    extent = np.ptp(tetrahedron_points, axis=1).max(axis=1)
    degenerate = np.abs(volumes) <= 1e-9 * extent**3
    if degenerate.any():
        raise ValueError(
            f"tetrahedra: {degenerate.sum()} are degenerate (no volume), first is number "
            f"{degenerate.argmax()} with vertices {tetrahedra[degenerate.argmax()].tolist()}. "
            "Remove them or move their vertices."
        )
    unique, counts = np.unique(np.sort(tetrahedra, axis=1), axis=0, return_counts=True)
    if counts.max() > 1:
        raise ValueError(
            f"tetrahedra: {(counts > 1).sum()} are duplicates, the first with vertices "
            f"{unique[counts.argmax()].tolist()}. Remove the duplicates."
        )


def connected_component(pairs: np.ndarray, n: int) -> np.ndarray:
    """Index (n,) of the connected component of each of n nodes, joined by pairs (p, 2)."""
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), (n, n))
    return connected_components(graph, directed=False)[1]


def vector_areas(triangles: np.ndarray) -> np.ndarray:
    """Areas (N, 3) along the normals of triangles (N, 3, 3)."""
    a, b, c = np.moveaxis(triangles, 1, 0)
    return np.cross(b - a, c - a) / 2


def _check_connected(pairs, n_tetrahedra):
    sizes = np.sort(np.bincount(connected_component(pairs, n_tetrahedra)))[::-1]
    if len(sizes) > 1:
        raise ValueError(
            f"tetrahedra form {len(sizes)} parts that share no face (of {sizes[:5].tolist()} "
            "tetrahedra, largest first). Keep one part, or merge vertices that coincide."
        )
