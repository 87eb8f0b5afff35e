"""Grids and surfaces that the tests of finite elements and of their grids share."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from dipy_spinverse.grid import TetrahedralGrid


def box(cells, size, boundary="reflecting"):
    """Cubes of six tetrahedra each along their diagonals."""
    n = np.broadcast_to(cells, 3)
    h = np.broadcast_to(size, 3) / n
    index = np.arange(np.prod(n + 1)).reshape(n + 1)
    corner = np.stack(np.meshgrid(*(np.arange(k) for k in n), indexing="ij"), -1).reshape(-1, 3)
    tetrahedra = []
    for first, second in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
        path = np.zeros((4, 3), int)
        path[1:, first] = 1
        path[2:, second] = 1
        path[3] = 1
        tetrahedra.append(index[tuple(np.moveaxis(corner[:, None] + path, -1, 0))])
    points = np.stack(np.meshgrid(*(np.arange(k + 1) for k in n), indexing="ij"), -1)
    return TetrahedralGrid.from_tetrahedra(
        points.reshape(-1, 3) * h, np.concatenate(tetrahedra), boundary
    )


def sphere_surface(radius, edge):
    """Points spread evenly on a sphere and their hull, of the volume of the sphere."""
    n = int(4 * np.pi * radius**2 / edge**2 / 0.866)
    height = 1 - 2 * (np.arange(n) + 0.5) / n
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(n)
    across = np.sqrt(1 - height**2)
    points = np.stack([np.cos(angle) * across, np.sin(angle) * across, height], axis=1)
    hull = ConvexHull(points)
    return points * radius * (4 / 3 * np.pi / hull.volume) ** (1 / 3), hull.simplices


def needs_gmsh():
    """Skip where Gmsh is missing, or the graphics libraries that it loads."""
    try:
        import gmsh  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"Gmsh cannot be loaded: {error}")
