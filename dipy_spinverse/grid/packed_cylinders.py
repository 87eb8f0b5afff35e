"""Tetrahedral grids that follow the membranes of packed cylinders."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import Delaunay, cKDTree

from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid, build_grid

_LEAST_SIDES = 16  # of the polygon of a circle: its sides deviate by 1 % of the radius
_LAYERS = 3  # along the axis: with fewer, periodic neighbours of a vertex coincide
_RING = 0.87  # height of an equilateral triangle, sqrt(3) / 2, in edges
_SMOOTHINGS = 8  # Laplacian smoothing of points off the circles; by hand


def packed_cylinders_grid(
    side_um: ArrayLike, centres_um: ArrayLike, radii_um: ArrayLike, edge_um: float
) -> tuple[TetrahedralGrid, np.ndarray]:
    """Periodic packing of parallel cylinders along z, with faces on their membranes.

    A periodic Delaunay triangulation of the plane, extruded. Polygons of equal area replace the
    circles. Cylinders may cross the sides of the packing.

    Parameters
    ----------
    side_um : float or array-like (2,)
        Sides of the packing along x and y, um; it is centred on the origin.
    centres_um : array-like (n, 2)
    radii_um : float or array-like (n,)
    edge_um : float
        Edge length of the triangles, um; shorter around thin cylinders and in narrow gaps.

    Returns
    -------
    grid : TetrahedralGrid
        Periodic along x, y and z.
    region : ndarray (T,)
        0 between the cylinders, k + 1 inside cylinder k.

    Raises
    ------
    ValueError
        Cylinders that overlap or do not fit the packing; lengths that are not positive.

    Examples
    --------
    >>> grid, region = packed_cylinders_grid(8.0, [[0, 0]], 3.0, edge_um=0.8)
    >>> round(float(grid.volumes[region == 1].sum() / grid.volume_um3), 4)  # pi 3^2 / 8^2
    0.4418
    """
    side = np.broadcast_to(np.asarray(side_um, dtype=float), (2,)).copy()
    centres = np.atleast_2d(np.asarray(centres_um, dtype=float))
    radii = np.broadcast_to(np.asarray(radii_um, dtype=float), (len(centres),))
    lengths = np.concatenate([side, radii, [edge_um]])
    if not (np.isfinite(lengths) & (lengths > 0)).all() or centres.shape[1] != 2:
        raise ValueError(
            f"side_um is {side_um!r}, radii_um {radii_um!r}, edge_um {edge_um}; give positive "
            "lengths in um, and centres_um of shape (n, 2)."
        )
    spacing = _spacing_around(side, centres, radii, edge_um)
    points, owner, on_circle = _points(side, centres, radii, spacing, edge_um)
    for _ in range(_SMOOTHINGS):
        triangles, corners_2d = _periodic_triangles(points, side)
        points = _smoothed(points, on_circle, triangles, corners_2d)
    triangles, corners_2d = _periodic_triangles(points, side)
    region = _region_of(triangles, owner, on_circle)
    height = edge_um
    tetrahedra, corners = _extruded(triangles, corners_2d, len(points), height)
    levels = np.repeat(np.arange(_LAYERS) * height, len(points))
    vertices = np.column_stack([np.tile(points, (_LAYERS, 1)), levels])
    period = np.append(side, _LAYERS * height)
    grid = build_grid(vertices, tetrahedra, corners, "periodic", period)
    return grid, np.tile(np.repeat(region, 3), _LAYERS)


def _wrap(vectors, side):
    return vectors - side * np.round(vectors / side)


def _spacing_around(side, centres, radii, edge):
    """Spacing of points on each circle: at most the gap to its nearest neighbour."""
    images = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(-1, 2)
    offsets = centres[None, :, None] + images * side - centres[:, None, None]
    gaps = np.linalg.norm(offsets, axis=-1) - radii[:, None, None] - radii[None, :, None]
    gaps[np.arange(len(radii)), np.arange(len(radii)), 4] = np.inf
    gap = gaps.min(axis=(1, 2))
    if (gap <= 0).any():
        k = int(gap.argmin())
        raise ValueError(
            f"centres_um, radii_um: cylinder {k} overlaps another one or its own image by "
            f"{-gap[k]:.3g} um; move them apart or shrink them."
        )
    return np.minimum(np.minimum(edge, gap), 2 * np.pi * radii / _LEAST_SIDES)


def _points(side, centres, radii, spacing, edge):
    """Points (N, 2), the cylinder of each (-1: none), and whether it is on its circle."""
    points, owner, on_circle = [], [], []

    def sides(k, radius):
        return int(np.ceil(2 * np.pi * radius / spacing[k]))

    def ring(k, radius, phase, n=None):
        n = n or sides(k, radius)
        angle = 2 * np.pi * (np.arange(n) + phase) / n
        return centres[k] + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def add(added, k, on):
        points.append(_wrap(added, side))
        owner.append(np.full(len(added), k))
        on_circle.append(np.full(len(added), on))

    for k, radius in enumerate(radii):
        n = sides(k, radius)
        # the polygon has the area of the circle
        add(ring(k, radius * np.sqrt(2 * np.pi / n / np.sin(2 * np.pi / n)), 0.0, n), k, True)
        step = _RING * spacing[k]
        inner = np.arange(radius - step, 0.3 * step, -step)
        for number, r in enumerate(inner):
            add(ring(k, r, 0.5 * (number % 2 == 0)), k, False)
        if radius - step * (len(inner) + 1) > -0.3 * step or len(inner) == 0:
            add(centres[k : k + 1], k, False)
    accepted = np.concatenate(points)
    candidates = [ring(k, radius + _RING * spacing[k], 0.5) for k, radius in enumerate(radii)] + [
        _lattice(side, edge)
    ]
    room = [np.repeat(0.7 * spacing[k], len(c)) for k, c in enumerate(candidates[:-1])]
    room.append(np.full(len(candidates[-1]), 0.75 * edge))
    for added, clearance in zip(candidates, room, strict=True):
        outside = np.ones(len(added), bool)
        for k, radius in enumerate(radii):
            distance = np.linalg.norm(_wrap(added - centres[k], side), axis=1)
            outside &= distance > radius + 0.6 * np.minimum(spacing[k], clearance)
        added = _wrap(added[outside], side)
        far = (
            cKDTree(accepted % side % side, boxsize=side).query(added % side % side)[0]
            > clearance[outside]
        )
        add(added[far], -1, False)
        accepted = np.concatenate(points)
    points, on_circle = np.concatenate(points), np.concatenate(on_circle)
    # Jitter excludes cocircular points, whose periodic images could be triangulated differently.
    jitter = np.random.default_rng(0).uniform(-1, 1, points.shape) * 0.01 * spacing.min()
    return points + jitter * ~on_circle[:, None], np.concatenate(owner), on_circle


def _lattice(side, edge):
    """Triangular lattice commensurate with the packing."""
    n = np.maximum(np.round(side / edge / [1, _RING]).astype(int), 3)
    n[1] += n[1] % 2
    x, y = np.meshgrid(np.arange(n[0]), np.arange(n[1]), indexing="ij")
    lattice = np.stack([x + 0.5 * (y % 2), y], axis=-1).reshape(-1, 2)
    return (lattice + 0.25) / n * side - side / 2


def _periodic_triangles(points, side):
    """Vertex indices (n, 3), sorted, and unwrapped positions (n, 3, 2) of the triangles."""
    images = np.stack(np.meshgrid([0, -1, 1], [0, -1, 1], indexing="ij"), -1).reshape(-1, 2)
    n = len(points)
    tiled = (points[None] + images[:, None] * side).reshape(-1, 2)
    simplices = Delaunay(tiled).simplices
    order = np.argsort(simplices % n, axis=1)
    simplices = np.take_along_axis(simplices, order, axis=1)
    # Of the periodic images of a triangle, the one whose first vertex is in the packing.
    simplices = simplices[simplices[:, 0] < n]
    triangles = simplices % n
    if (np.diff(triangles, axis=1) == 0).any() or len(triangles) != 2 * n:
        raise ValueError(
            "edge_um is too large for the packing; give at most a fourth of its shorter side."
        )
    return triangles, tiled[simplices]


def _smoothed(points, fixed, triangles, corners):
    """Move points that are not fixed towards the mean of their neighbours."""
    total, count = np.zeros_like(points), np.zeros(len(points))
    for a in range(3):
        for b in range(3):
            if a != b:
                np.add.at(total, triangles[:, a], corners[:, b] - corners[:, a])
                np.add.at(count, triangles[:, a], 1)
    return points + np.where(fixed[:, None], 0, 0.7 * total / count[:, None])


def _region_of(triangles, owner, on_circle):
    """Region (n,) of the triangles; an error where a membrane would cut one."""
    owners, on = owner[triangles], on_circle[triangles]
    inner = np.where(on, -1, owners).max(axis=1)
    fits = (owners == inner[:, None]).all(axis=1)
    if ((inner >= 0) & ~fits).any():
        raise ValueError(
            "edge_um is too large for the gaps between the cylinders: triangles would cross a "
            "membrane. Give a smaller edge_um."
        )
    # Triangles with all corners on one circle are inside it, as polygons are convex.
    inscribed = on.all(axis=1) & (owners == owners[:, :1]).all(axis=1)
    return np.where(inscribed, owners[:, 0], inner) + 1


def _extruded(triangles, corners_2d, n_points, height):
    """Tetrahedra (3 per prism and layer), and the positions of their corners.

    Diagonals start at the vertex of lower index, so that adjacent prisms conform.
    """
    tetrahedra, corners = [], []
    for layer in range(_LAYERS):
        low = triangles + n_points * layer
        high = triangles + n_points * ((layer + 1) % _LAYERS)
        at = [
            np.concatenate(
                [corners_2d, np.full((len(corners_2d), 3, 1), (layer + top) * height)], axis=2
            )
            for top in (0, 1)
        ]
        index, position = np.concatenate([low, high], axis=1), np.concatenate(at, axis=1)
        prism = np.array([[0, 1, 2, 5], [0, 1, 4, 5], [0, 3, 4, 5]])
        tetrahedra.append(index[:, prism].reshape(-1, 4))
        corners.append(position[:, prism].reshape(-1, 4, 3))
    return np.concatenate(tetrahedra), np.concatenate(corners)
