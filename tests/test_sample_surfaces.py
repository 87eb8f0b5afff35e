"""Cells of posterior samples as smooth surfaces: their volume, area, and that they are closed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from dipy_spinverse.spinverse.sample_surfaces import _centres, cube_side, sample_mesh

FRAME = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]


def enclosed_volume(mesh):
    corners = mesh.vertices_um[mesh.triangles]
    return np.linalg.det(corners).sum() / 6 * np.linalg.det(FRAME)


@pytest.mark.parametrize("in_spheres", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.65])
def test_sample_has_its_volume_and_area_and_every_cell_is_closed(in_spheres, fraction):
    radius, side = 1.5, 30.0
    mesh = sample_mesh(np.array([in_spheres, radius, fraction, 0.02]), FRAME, side, seed=1)
    edges = np.concatenate([mesh.triangles[:, [k, (k + 1) % 3]] for k in range(3)])
    # Each edge belongs to two triangles that traverse it in opposite directions.
    assert {tuple(e) for e in edges} == {tuple(e[::-1]) for e in edges}
    volume = np.pi * radius**2 * side * (1 if not in_spheres else 4 * radius / 3 / side)
    assert enclosed_volume(mesh) / mesh.n_components == pytest.approx(volume, rel=1e-6)
    # The cube cuts off parts of the periodic pattern: one layer of side / spacing, at most.
    assert enclosed_volume(mesh) / side**3 == pytest.approx(fraction, rel=0.25)
    side_walls = np.abs(mesh.normals @ FRAME[2]) < (2 if in_spheres else 0.5)
    corners = mesh.vertices_um[mesh.triangles[side_walls]]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=1).sum() / 2
    # Of the polyhedra: 2 % for cylinders of 16 sides, 4 % for spheres of 80 triangles.
    assert area / enclosed_volume(mesh) == pytest.approx(
        (3 if in_spheres else 2) / radius, rel=0.05
    )


@pytest.mark.parametrize(("in_spheres", "fraction"), [(False, 0.8), (True, 0.66), (True, 0.05)])
def test_cells_do_not_overlap_and_are_not_a_lattice(in_spheres, fraction):
    centres = _centres(in_spheres, 2.0, fraction, 40.0, np.random.default_rng(0))
    nearest = cKDTree(centres).query(centres, k=2)[0][:, 1]
    assert nearest.min() >= 4.0 * (1 - 1e-9)
    # Between spheres of the densest case there is a gap of 4 % of their distance.
    assert nearest.std() > 0.005 * nearest.mean()


def test_all_samples_of_a_voxel_have_one_cube_of_four_typical_distances():
    bodies = np.array([[0, 1.0, 0.5, 0.02], [0, 1.44, 0.5, 0.02], [1, 9.0, 0.0, 0.02]])
    # Close-packed cylinders: one in sqrt(3) / 2 d^2; the geometric mean of radii is 1.2.
    distance = np.sqrt(np.pi / 0.5 / (np.sqrt(3) / 2))
    assert cube_side(bodies) == pytest.approx(4 * 1.2 * distance)
    bodies[1, 1] = 9.0  # of which the typical distance is 3 times that of the finest
    assert cube_side(bodies) == pytest.approx(6 * distance)
