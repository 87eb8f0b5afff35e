"""Tetrahedral grids inside closed triangulated surfaces, by Gmsh."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid


def mesh_surfaces(
    surfaces: Sequence[tuple[ArrayLike, ArrayLike]],
    edge_um: float,
    boundary: str = "reflecting",
) -> tuple[TetrahedralGrid, np.ndarray]:
    """Mesh the space inside closed surfaces, which may be nested.

    The triangles of the surfaces become faces of the grid. Needs Gmsh (``pip install
    dipy_spinverse[mesh]``).

    Parameters
    ----------
    surfaces : sequence of (vertices, triangles)
        Vertices (P, 3), um, and indices (n, 3); closed, of either orientation, not touching.
        One surface contains all others.
    edge_um : float
        Largest edge length, um; near surfaces edges are as long as those of the triangles.
    boundary : {"reflecting", "absorbing"}, optional
        At the outermost surface.

    Returns
    -------
    grid : TetrahedralGrid
    region : ndarray (T,)
        k + 1 inside surface k, but outside the surfaces that it contains.

    Raises
    ------
    ValueError
        Gmsh is missing or fails; a surface that is not closed or not a manifold.

    Examples
    --------
    >>> box = [[x, y, z] for x in (0, 9) for y in (0, 9) for z in (0, 9)]
    >>> sides = [[0, 1, 3], [0, 3, 2], [4, 7, 5], [4, 6, 7], [0, 5, 1], [0, 4, 5], [2, 3, 7],
    ...          [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
    >>> grid, region = mesh_surfaces([(box, sides)], edge_um=9.0)  # doctest: +SKIP
    >>> round(grid.volume_um3)  # doctest: +SKIP
    729
    """
    if not np.isfinite(edge_um) or edge_um <= 0:
        raise ValueError(f"edge_um is {edge_um}; give a positive length in um.")
    meshes = [_checked_surface(k, *surface) for k, surface in enumerate(surfaces)]
    parents = _parents(meshes)
    points, tetrahedra, region = _gmsh(meshes, parents, edge_um)
    vertices, tetrahedra = np.unique(tetrahedra, return_inverse=True)
    grid = TetrahedralGrid.from_tetrahedra(points[vertices], tetrahedra.reshape(-1, 4), boundary)
    return grid, region


def _checked_surface(k, vertices, triangles):
    vertices, triangles = np.asarray(vertices, dtype=float), np.asarray(triangles)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.shape[1:] != (3,):
        raise ValueError(
            f"surfaces[{k}] has vertices {vertices.shape} and triangles {triangles.shape}; give "
            "(P, 3) positions in um and (n, 3) indices."
        )
    edges = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    unique, counts = np.unique(edges, axis=0, return_counts=True)
    if (counts != 2).any():
        raise ValueError(
            f"surfaces[{k}] is not a closed manifold: {(counts != 2).sum()} edges do not belong "
            f"to two triangles (first: vertices {unique[(counts != 2).argmax()].tolist()}). Close "
            "holes and remove duplicate triangles."
        )
    return vertices, triangles


def _parents(meshes):
    """For each surface the innermost one around it, or -1 for the outermost."""
    inside = np.array([
        [j != k and _contains(mesh, points[triangles[0, 0]]) for j, mesh in enumerate(meshes)]
        for k, (points, triangles) in enumerate(meshes)
    ])  # fmt: skip
    depth = inside.sum(axis=1)
    if (depth == 0).sum() != 1:
        raise ValueError(
            f"surfaces: {np.flatnonzero(depth == 0).tolist()} lie in no other one; exactly one "
            "must contain all others. Add a box around them."
        )
    return np.where(depth > 0, np.where(inside, depth, -1).argmax(axis=1), -1)


def _contains(mesh, point):
    """Whether a ray from a point crosses a surface an odd number of times."""
    # Of no special direction, so that it meets no edge of an axis-aligned mesh.
    ray = np.array([0.36, 0.48, 0.8]) + np.array([1e-3, -2e-3, 3e-3]) * np.sqrt([2, 3, 5])
    a, b, c = np.moveaxis(mesh[0][mesh[1]] - point, 1, 0)
    sides = [np.einsum("nk,nk->n", np.cross(x, y), ray[None]) for x, y in ((a, b), (b, c), (c, a))]
    crossed = (np.sign(sides) == np.sign(sides[0])).all(axis=0)
    normal = np.cross(b - a, c - a)
    ahead = np.einsum("nk,nk->n", normal, a) * (normal @ ray) > 0
    return (crossed & ahead).sum() % 2 == 1


def _gmsh(meshes, parents, edge_um):
    """Points (P, 3), tetrahedra (T, 4) and regions (T,) of a mesh by Gmsh."""
    try:
        import gmsh
    except (ImportError, OSError) as error:
        raise ValueError(
            f"mesh_surfaces needs Gmsh, which cannot be loaded ({error}); `pip install gmsh`, or "
            "mesh with another program and use read_grid."
        ) from error
    started = not gmsh.isInitialized()
    if started:
        gmsh.initialize(interruptible=False)
    try:
        gmsh.option.setNumber("General.Terminal", 0)
        gmsh.model.add("surfaces")
        gmsh.option.setNumber("Mesh.MeshSizeMax", float(edge_um))
        first_node, first_triangle = 1, 1
        for k, (vertices, triangles) in enumerate(meshes):
            tag = gmsh.model.addDiscreteEntity(2, k + 1)
            nodes = first_node + np.arange(len(vertices))
            gmsh.model.mesh.addNodes(2, tag, nodes, vertices.ravel())
            elements = first_triangle + np.arange(len(triangles))
            gmsh.model.mesh.addElementsByType(tag, 2, elements, nodes[triangles].ravel())
            first_node, first_triangle = nodes[-1] + 1, elements[-1] + 1
        loops = [gmsh.model.geo.addSurfaceLoop([k + 1]) for k in range(len(meshes))]
        for k in range(len(meshes)):
            holes = [loops[j] for j in np.flatnonzero(parents == k)]
            gmsh.model.geo.addVolume([loops[k], *holes], k + 1)
        gmsh.model.geo.synchronize()
        gmsh.model.mesh.generate(3)
        tags, coordinates, _ = gmsh.model.mesh.getNodes()
        index = np.zeros(int(tags.max()) + 1, int)
        index[tags.astype(int)] = np.arange(len(tags))
        volumes = [gmsh.model.mesh.getElementsByType(4, k + 1)[1] for k in range(len(meshes))]
    except Exception as error:  # Gmsh raises plain exceptions
        raise ValueError(
            f"surfaces: Gmsh could not mesh them ({error}); they may intersect or touch."
        ) from error
    finally:
        gmsh.model.remove()
        if started:
            gmsh.finalize()
    region = np.repeat(np.arange(len(volumes)) + 1, [len(volume) // 4 for volume in volumes])
    tetrahedra = index[np.concatenate(volumes).astype(int)].reshape(-1, 4)
    return coordinates.reshape(-1, 3), tetrahedra, region
