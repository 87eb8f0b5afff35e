"""Grids that follow membranes, and their regions."""

from __future__ import annotations

import meshio
import numpy as np
import pytest
from body_fitted_cases import box, needs_gmsh, sphere_surface

from dipy_spinverse.grid import (
    membranes_between,
    mesh_surfaces,
    packed_cylinders_grid,
    read_grid,
    read_regions,
)


def test_regions_that_touch_in_an_edge_are_refused():
    grid = box(2, 2.0)
    x, y, _ = grid.centroids.T
    with pytest.raises(ValueError, match="not a manifold"):
        membranes_between(grid, ((x > 1) ^ (y > 1)).astype(int), 0.1)


def test_cylinders_that_overlap_are_refused():
    with pytest.raises(ValueError, match="cylinder 0 overlaps"):
        packed_cylinders_grid(8.0, [[0, 0], [4, 0]], 2.5, 0.5)
    with pytest.raises(ValueError, match="edge_um -1"):
        packed_cylinders_grid(8.0, [[0, 0]], 2.5, -1.0)


def test_open_surfaces_are_refused():
    points, triangles = sphere_surface(3.0, 1.0)
    with pytest.raises(ValueError, match="not a closed manifold"):
        mesh_surfaces([(points, triangles[1:])], 1.0)


# ---------------------------------------------------------------- grids


@pytest.mark.parametrize("seed", range(3))
def test_packed_cylinders_have_their_volumes_wherever_they_lie(seed):
    rng = np.random.default_rng(seed)
    side, radii = np.array([9.0, 11.0]), np.array([2.6, 1.5, 0.8])
    shift = rng.uniform(-6, 6, 2)
    centres = np.array([[0, 0], [4.3, 1.0], [0.2, -4.2]]) + shift
    grid, region = packed_cylinders_grid(side, centres, radii, 0.7)
    height = grid.period_um[2]
    areas = np.bincount(region, grid.volumes) / height
    np.testing.assert_allclose(areas[1:], np.pi * radii**2, rtol=1e-9)
    assert areas.sum() == pytest.approx(side.prod())


def test_nested_surfaces_become_regions():
    needs_gmsh()
    outer, inner = sphere_surface(4.0, 1.5), sphere_surface(2.0, 0.9)
    grid, region = mesh_surfaces([inner, outer], 1.5)
    volumes = np.bincount(region, grid.volumes)[1:]
    np.testing.assert_allclose(volumes, 4 / 3 * np.pi * np.array([8, 64 - 8]), rtol=1e-9)


def test_regions_are_read_in_the_order_of_the_grid(tmp_path):
    grid = box(2, 2.0)
    region = (grid.centroids[:, 0] > 1).astype(int)
    path = tmp_path / "box.vtu"
    meshio.write_points_cells(
        path, grid.points_um, {"tetra": grid.tetrahedra}, cell_data={"region": [region]}
    )
    found = read_regions(path)
    np.testing.assert_array_equal(found, read_grid(path, "reflecting").centroids[:, 0] > 1)
    meshio.write_points_cells(path, grid.points_um, {"tetra": grid.tetrahedra})
    with pytest.raises(ValueError, match="no data"):
        read_regions(path)
