"""Interface meshes: the walls of a grid as triangles, and their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import meshio
import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import connected_components
from scipy.stats import rankdata

from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid, vector_areas
from dipy_spinverse.walls.normals import wall_normals

_MM_PER_UM = 1e-3
_STD = "vertex_std_um"
# um/ms, of the first and the last colour: from tight membranes to those of leaky cells.
PERMEABILITY_SCALE = 1e-3, 1e-1
# Colours of wall probabilities 0, 1/4, ... 1.
_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


@dataclass(frozen=True, eq=False)
class InterfaceMesh:
    """Triangles of the walls in one voxel.

    Build one with :func:`interface_mesh` or ``SpinverseFit.interface``.

    Attributes
    ----------
    vertices_um : ndarray (Nv, 3)
        um. On a periodic grid, walls that cross the boundary of the box are cut there.
    triangles : ndarray (Nt, 3)
        Vertex indices.
    permeability : ndarray (Nt,)
        um/ms.
    wall_probability : ndarray (Nt,)
        In [0, 1]; NaN of cells that are drawn from a posterior sample.
    normals : ndarray (Nt, 3)
        Unit normals of the smooth surface that the triangles approximate, of arbitrary sign.
    components : ndarray (Nt,) of int
        Index of the connected component, 0 for the largest; triangles are connected through
        edges, also across periodic boundaries.
    vertex_std_um : ndarray (Nv,) or None
        Standard deviation of the position of each vertex, um, of surfaces that are not on a grid.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> from dipy_spinverse.substrates.membranes import spheres
    >>> grid = bcc_grid(cells=8, cell_size_um=1.0)
    >>> permeability = spheres(grid, [0, 0, 0], 3.0, permeability=0.02)
    >>> mesh = interface_mesh(grid, permeability, np.isfinite(permeability))
    >>> bool(abs(mesh.area_um2 / (4 * np.pi * 3.0**2) - 1) < 0.03)
    True
    >>> mesh.n_components
    1
    """

    vertices_um: np.ndarray
    triangles: np.ndarray
    permeability: np.ndarray
    wall_probability: np.ndarray
    normals: np.ndarray
    components: np.ndarray
    vertex_std_um: np.ndarray | None = None

    def __repr__(self) -> str:
        return (
            f"InterfaceMesh({len(self.vertices_um)} vertices, {len(self.triangles)} triangles, "
            f"{self.n_components} components, {self.area_um2:.4g} um^2)"
        )

    @property
    def n_components(self) -> int:
        """Number of connected components."""
        return int(self.components.max(initial=-1)) + 1

    @property
    def area_um2(self) -> float:
        """Area of the smooth surface, um^2.

        The sum of the areas of triangles projected along the normals of the surface: the triangles
        themselves have up to 1.8 times that area.
        """
        areas = vector_areas(self.vertices_um[self.triangles])
        return float(np.abs(np.einsum("tk,tk->t", areas, self.normals)).sum())

    def save(self, path: str | Path, origin_mm: ArrayLike = (0.0, 0.0, 0.0)) -> None:
        """Write the mesh in the format of the file suffix.

        ``.vtu`` and ``.vtk`` (ParaView) are in um, with permeability, wall probability and
        component of each triangle; ``.ply`` is in um, with permeability and wall probability of
        each vertex, the mean over its triangles. ``.gii`` (dipy_horizon, Connectome Workbench) is
        in mm, and the values of vertices are written to a second file: ``name.shape.gii`` for
        ``name.surf.gii`` or ``name.gii``. All include `vertex_std_um` if it exists.

        Parameters
        ----------
        path : str or Path
            The file.
        origin_mm : array-like (3,) or (4, 4), optional
            Only for ``.gii``: position of the centre of the grid, mm, or an affine from um to mm,
            as that of :func:`dipy_spinverse.report.meshes.voxel_affine`.

        Raises
        ------
        ValueError
            An unknown suffix, an origin of the wrong shape, a mesh without triangles.

        Examples
        --------
        >>> import tempfile, os
        >>> from dipy_spinverse.grid import bcc_grid
        >>> grid = bcc_grid(cells=4, cell_size_um=5.0)
        >>> walls = np.arange(grid.n_faces) < 10
        >>> mesh = interface_mesh(grid, np.full(grid.n_faces, 0.01), walls)
        >>> mesh.save(os.path.join(tempfile.mkdtemp(), "walls.vtu"))
        """
        path = Path(path)
        if len(self.triangles) == 0:
            raise ValueError(
                f"path is {path.name}, but the mesh has no triangles; use a lower threshold of "
                "interface_mesh."
            )
        if path.suffix.lower() == ".gii":
            _save_gifti(self, path, origin_mm)
            return
        if path.suffix.lower() not in (".ply", ".vtu", ".vtk"):
            raise ValueError(f"path is {path.name}; its suffix must be .ply, .vtu, .vtk or .gii.")
        cells = [("triangle", self.triangles.astype(np.int32))]
        if path.suffix.lower() == ".ply":
            values = _per_vertex(self)
            values |= _colours(_share_of_scale(values))
            mesh = meshio.Mesh(self.vertices_um, cells, point_data=values)
        else:
            values = {name: [value.astype(np.float32)] for name, value in _per_triangle(self)}
            values["component"] = [self.components.astype(np.int32)]
            vertex_values = {} if self.vertex_std_um is None else {_STD: self.vertex_std_um}
            mesh = meshio.Mesh(self.vertices_um, cells, cell_data=values, point_data=vertex_values)
        mesh.write(path)


def interface_mesh(
    grid: TetrahedralGrid,
    permeability: ArrayLike,
    wall_probability: ArrayLike,
    threshold: float = 0.5,
    walls: ArrayLike | None = None,
) -> InterfaceMesh:
    """Triangles of the faces that are walls.

    Parameters
    ----------
    grid : TetrahedralGrid
    permeability, wall_probability : array-like (F,)
        Permeability (um/ms) and probability of being a wall of each face.
    threshold : float, optional
        Minimal probability of a wall.
    walls : array-like (F,) of bool, optional
        The walls, instead of those with a probability above the threshold.

    Returns
    -------
    InterfaceMesh

    Raises
    ------
    ValueError
        Wrong shapes, a threshold outside (0, 1].

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(cells=4, cell_size_um=5.0)
    >>> walls = np.zeros(grid.n_faces)
    >>> walls[(grid.face_tetrahedra == 7).any(axis=1)] = 1.0  # all around one tetrahedron
    >>> interface_mesh(grid, np.full(grid.n_faces, 0.01), walls).triangles.shape
    (4, 3)
    """
    permeability, wall_probability = (
        np.asarray(values, dtype=float) for values in (permeability, wall_probability)
    )
    for name, values in (("permeability", permeability), ("wall_probability", wall_probability)):
        if values.shape != (grid.n_faces,):
            raise ValueError(
                f"{name} has shape {values.shape}; give one value per face, ({grid.n_faces},). "
                "Take one voxel of a fit."
            )
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give a probability above 0, at most 1.")
    walls = wall_probability >= threshold if walls is None else np.asarray(walls, dtype=bool)
    # Identical vertices are merged, but not periodic images.
    points = grid.face_points[walls].reshape(-1, 3)
    step = np.cbrt(grid.volumes.min()) * 1e-6 if len(points) else 1.0
    _, point_index, triangles = np.unique(
        np.round(points / step).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    return InterfaceMesh(
        vertices_um=points[point_index],
        triangles=triangles.reshape(-1, 3),
        permeability=permeability[walls],
        wall_probability=wall_probability[walls],
        normals=wall_normals(grid, walls),
        components=_components(grid, walls),
    )


def _components(grid, walls):
    """Index (W,) of the connected component of each wall, 0 for the largest."""
    incidence = grid.edge_faces[:, walls]
    _, labels = connected_components(incidence.T @ incidence, directed=False)
    return ranked_by_size(labels)


def ranked_by_size(labels: np.ndarray) -> np.ndarray:
    """Labels (N,) renumbered by how many elements have them, 0 the most."""
    return rankdata(-np.bincount(labels), method="ordinal")[labels] - 1


def _save_gifti(mesh, path, origin_mm):
    origin = np.asarray(origin_mm, dtype=float)
    if origin.shape not in ((3,), (4, 4)):
        raise ValueError(
            f"origin_mm has shape {origin.shape}; give a position of shape (3,), mm, or an affine "
            "of shape (4, 4)."
        )
    if origin.ndim == 1:
        vertices = mesh.vertices_um * _MM_PER_UM + origin
    else:
        vertices = mesh.vertices_um @ origin[:3, :3].T + origin[:3, 3]
    scanner = nib.nifti1.xform_codes["NIFTI_XFORM_SCANNER_ANAT"]
    frame = nib.gifti.GiftiCoordSystem(scanner, scanner, np.eye(4))
    surface = [
        nib.gifti.GiftiDataArray(
            vertices.astype(np.float32), "NIFTI_INTENT_POINTSET", coordsys=frame
        ),
        nib.gifti.GiftiDataArray(mesh.triangles.astype(np.int32), "NIFTI_INTENT_TRIANGLE"),
    ]
    nib.save(nib.gifti.GiftiImage(darrays=surface), path)

    arrays = [
        nib.gifti.GiftiDataArray(values, "NIFTI_INTENT_SHAPE", meta={"Name": name})
        for name, values in _per_vertex(mesh).items()
    ]
    stem = path.name[: -len(".gii")].removesuffix(".surf")
    nib.save(nib.gifti.GiftiImage(darrays=arrays), path.with_name(f"{stem}.shape.gii"))


def _share_of_scale(values):
    """Wall probability, or where it is NaN the permeability on a logarithmic scale from 0 to 1."""
    low, high = np.log(PERMEABILITY_SCALE)
    permeability = np.log(np.maximum(values["permeability_um_per_ms"], 1e-12))
    probability = values["wall_probability"]
    return np.where(np.isnan(probability), (permeability - low) / (high - low), probability)


def _colours(share):
    """Red, green and blue of values between 0 and 1, from violet over green to yellow."""
    stops = np.linspace(0, 1, len(_VIRIDIS))
    columns = zip(("red", "green", "blue"), np.transpose(_VIRIDIS), strict=True)
    return {name: np.interp(share, stops, c).round().astype(np.uint8) for name, c in columns}


def _per_triangle(mesh):
    yield "wall_probability", mesh.wall_probability
    yield "permeability_um_per_ms", mesh.permeability


def _per_vertex(mesh):
    corners = mesh.triangles.ravel()
    counts = np.bincount(corners)
    means = {
        name: (np.bincount(corners, np.repeat(values, 3)) / counts).astype(np.float32)
        for name, values in _per_triangle(mesh)
    }
    if mesh.vertex_std_um is not None:
        means[_STD] = mesh.vertex_std_um.astype(np.float32)
    return means
