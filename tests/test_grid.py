"""The tetrahedral grid and the lattice it is made of."""

import meshio
import numpy as np
import pytest

from dipy_spinverse.grid import TetrahedralGrid, bcc_grid, mesh_surfaces, read_grid, surfaces

TWO_POINTS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=float)
TWO_TETRAHEDRA = np.array([[0, 1, 2, 3], [1, 2, 3, 4]])
GRIDS = [
    bcc_grid(3, 2.0),
    bcc_grid((3, 4, 5), 1.5),
    bcc_grid(3, 2.0, "absorbing"),
    bcc_grid((2, 3, 4), 1.0, "reflecting"),
]


def test_the_default_grid_has_768_tetrahedra_and_1536_faces():
    grid = bcc_grid()
    assert (grid.n_tetrahedra, grid.n_faces, len(grid.outer_faces)) == (768, 1536, 0)
    assert grid.n_points == 2 * 4**3


def test_the_published_box_has_576_tetrahedra_and_1008_interior_faces():
    grid = bcc_grid(cells=4, boundary="absorbing")
    assert (grid.n_tetrahedra, grid.n_faces) == (576, 1008)
    assert 2 * grid.n_faces + len(grid.outer_faces) == 4 * grid.n_tetrahedra


@pytest.mark.parametrize("grid", GRIDS)
def test_all_tetrahedra_of_the_lattice_are_congruent(grid):
    i, j = np.triu_indices(4, 1)
    edges = np.linalg.norm(grid.tetrahedron_points[:, i] - grid.tetrahedron_points[:, j], axis=2)
    assert np.allclose(np.sort(edges, axis=1), np.sort(edges[0]))
    assert np.allclose(grid.volumes, grid.volumes[0])


@pytest.mark.parametrize("grid", GRIDS)
def test_the_circumcentre_of_each_tetrahedron_is_its_centroid(grid):
    distances = np.linalg.norm(grid.tetrahedron_points - grid.centroids[:, None], axis=2)
    assert np.allclose(distances, distances[0, 0])


def test_the_periodic_tetrahedra_fill_the_box_around_the_origin():
    grid = bcc_grid((3, 4, 5), 1.5)
    assert grid.volume_um3 == pytest.approx(3 * 4 * 5 * 1.5**3)
    assert np.allclose(grid.period_um, [4.5, 6.0, 7.5])
    assert (grid.points_um >= -grid.period_um / 2).all()
    assert (grid.points_um < grid.period_um / 2).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_every_neighbour_pair_has_one_face(grid):
    pairs = np.sort(grid.face_tetrahedra, axis=1)
    assert len(np.unique(pairs, axis=0)) == grid.n_faces
    assert (pairs[:, 0] < pairs[:, 1]).all()
    sides = np.bincount(pairs.ravel(), minlength=grid.n_tetrahedra)
    sides += np.bincount(grid.outer_tetrahedra, minlength=grid.n_tetrahedra)
    assert (sides == 4).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_faces_are_sorted_vertex_triples_of_both_tetrahedra(grid):
    assert (np.diff(grid.faces, axis=1) > 0).all()
    for side in (0, 1):
        corners = grid.tetrahedra[grid.face_tetrahedra[:, side]]
        assert (grid.faces[:, :, None] == corners[:, None]).any(axis=2).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_the_faces_of_a_tetrahedron_close(grid):
    vector_areas = grid.face_normals * grid.face_areas[:, None]
    total = np.zeros((grid.n_tetrahedra, 3))
    np.add.at(total, grid.face_tetrahedra[:, 0], vector_areas)
    np.add.at(total, grid.face_tetrahedra[:, 1], -vector_areas)
    inner = np.setdiff1d(np.arange(grid.n_tetrahedra), grid.outer_tetrahedra)
    assert np.allclose(total[inner], 0)


@pytest.mark.parametrize("grid", GRIDS)
def test_centroid_links_cross_their_faces_at_right_angles(grid):
    length = np.linalg.norm(grid.displacements, axis=1)
    assert np.allclose(grid.displacements, length[:, None] * grid.face_normals)
    assert np.allclose(grid.face_distances.sum(axis=1), length)
    assert np.allclose(grid.face_distances[:, 0], grid.face_distances[:, 1])


@pytest.mark.parametrize("grid", GRIDS)
def test_displacements_lead_to_the_neighbour_or_its_periodic_image(grid):
    gap = np.diff(grid.centroids[grid.face_tetrahedra], axis=1)[:, 0] - grid.displacements
    periods = gap / (np.inf if grid.period_um is None else grid.period_um)
    assert np.allclose(periods, np.round(periods), atol=1e-9)
    assert np.allclose(gap, 0) == (grid.period_um is None)


@pytest.mark.parametrize("grid", GRIDS)
def test_face_points_span_the_face_next_to_the_first_tetrahedron(grid):
    a, b, c = np.moveaxis(grid.face_points, 1, 0)
    cross = np.cross(b - a, c - a)
    assert np.allclose(np.linalg.norm(cross, axis=1), 2 * grid.face_areas)
    along = np.abs(np.einsum("fk,fk->f", cross, grid.face_normals))
    assert np.allclose(along, 2 * grid.face_areas)
    height = a - grid.centroids[grid.face_tetrahedra[:, 0]]
    assert np.allclose(np.einsum("fk,fk->f", height, grid.face_normals), grid.face_distances[:, 0])


@pytest.mark.parametrize("grid", GRIDS)
def test_outer_faces_enclose_the_grid(grid):
    if grid.boundary == "periodic":
        assert len(grid.outer_areas) == 0
        return
    # The volume is the sum over all tetrahedra of area times height over 3.
    of_faces = (grid.face_areas * grid.face_distances.sum(axis=1)).sum()
    of_outside = (grid.outer_areas * grid.outer_distances).sum()
    assert (of_faces + of_outside) / 3 == pytest.approx(grid.volume_um3)


@pytest.mark.parametrize("grid", GRIDS)
def test_each_face_has_its_three_edges(grid):
    assert grid.edge_faces.shape == (len(grid.edges), grid.n_faces)
    assert np.asarray(grid.edge_faces.sum(axis=0) == 3).all()
    edge, face = grid.edge_faces.nonzero()
    assert (grid.edges[edge][:, :, None] == grid.faces[face][:, None]).any(axis=2).all()
    assert (grid.edges[:, 0] < grid.edges[:, 1]).all()


def test_minimum_image_wraps_on_periodic_grids_only():
    vector = np.array([[3.9, -2.1, 0.5]])
    assert np.allclose(bcc_grid(4, 1.0).minimum_image(vector), [[-0.1, 1.9, 0.5]])
    assert np.allclose(bcc_grid(4, 1.0, "absorbing").minimum_image(vector), vector)


def test_nearest_looks_across_the_periodic_boundary():
    targets, point = np.array([[1.9, 0, 0], [0, 0, 0]]), np.array([[-1.9, 0, 0]])
    assert bcc_grid(4, 1.0).nearest(targets, point)[1] == 0
    assert bcc_grid(4, 1.0, "absorbing").nearest(targets, point)[1] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cells": 2}, "cells is 2; a periodic grid takes an integer of at least 3"),
        ({"cells": 1, "boundary": "absorbing"}, "cells is 1; .* integer of at least 2"),
        ({"cells": 3.5}, "cells is 3.5"),
        ({"cells": (3, 3, 2)}, r"cells is \(3, 3, 2\)"),
        ({"cell_size_um": 0.0}, "cell_size_um is 0.0; give a positive length"),
        ({"cell_size_um": np.nan}, "cell_size_um is nan"),
        ({"boundary": "open"}, "boundary is 'open'; use one of periodic"),
    ],
)
def test_impossible_lattices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bcc_grid(**arguments)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 2, 3]])
def test_the_order_of_vertices_in_a_given_mesh_does_not_matter(order):
    tetrahedra = np.stack([TWO_TETRAHEDRA[0][order], TWO_TETRAHEDRA[1]])
    grid = TetrahedralGrid.from_tetrahedra(TWO_POINTS, tetrahedra)
    assert grid.faces.tolist() == [[1, 2, 3]]
    assert grid.volumes == pytest.approx([1 / 6, 1 / 3])
    assert grid.face_normals[0] == pytest.approx(np.full(3, 3**-0.5))
    assert len(grid.outer_faces) == 6


def test_a_given_mesh_equals_the_lattice_it_came_from():
    lattice = bcc_grid(3, 2.0, "reflecting")
    grid = TetrahedralGrid.from_tetrahedra(lattice.points_um, lattice.tetrahedra, "reflecting")
    assert np.array_equal(grid.faces, lattice.faces)
    assert np.allclose(grid.displacements, lattice.displacements)


# Vertex 4 mirrored through the common face: it now lies on the side of vertex 0.
OVERLAPPING = np.vstack([TWO_POINTS[:4], [[-0.2, -0.2, -0.2]]])
FAR = np.vstack([TWO_POINTS[:4], TWO_POINTS[:4] + 9])


@pytest.mark.parametrize(
    ("points", "tetrahedra", "message"),
    [
        (TWO_POINTS[:, :2], TWO_TETRAHEDRA, r"points_um has shape \(5, 2\)"),
        (TWO_POINTS * np.nan, TWO_TETRAHEDRA, "points_um .* finite"),
        (TWO_POINTS, TWO_TETRAHEDRA[:, :3], r"tetrahedra has shape \(2, 3\)"),
        (TWO_POINTS, np.zeros((0, 4), int), r"tetrahedra has shape \(0, 4\)"),
        (TWO_POINTS, TWO_TETRAHEDRA * 1.0, "tetrahedra has dtype float64; give integer"),
        (TWO_POINTS, TWO_TETRAHEDRA + 1, "vertices 1 to 5, but points_um has 5"),
        (TWO_POINTS, [[0, 1, 2, 3], [1, 2, 3, 3]], "1 are degenerate"),
        (TWO_POINTS * [1, 1, 0], TWO_TETRAHEDRA, "2 are degenerate"),
        (TWO_POINTS, [[0, 1, 2, 3], [3, 2, 1, 0]], "are duplicates"),
        (OVERLAPPING, TWO_TETRAHEDRA, "same side of their common face"),
        (
            np.vstack([TWO_POINTS, [[2, 2, 2]]]),
            [[0, 1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5]],
            "belongs to 3 tetrahedra",
        ),
        (FAR, [[0, 1, 2, 3], [4, 5, 6, 7]], "form 2 parts that share no face"),
    ],
)
def test_broken_meshes_are_refused_with_the_reason(points, tetrahedra, message):
    with pytest.raises(ValueError, match=message):
        TetrahedralGrid.from_tetrahedra(points, tetrahedra)


def test_a_given_mesh_cannot_be_periodic():
    with pytest.raises(ValueError, match="boundary is 'periodic'; .* use bcc_grid"):
        TetrahedralGrid.from_tetrahedra(TWO_POINTS, TWO_TETRAHEDRA, "periodic")


@pytest.mark.parametrize("suffix", [".vtu", ".vtk", ".msh"])
def test_a_mesh_file_gives_its_grid(tmp_path, suffix):
    lattice = bcc_grid(3, 2.0, "absorbing")
    path = tmp_path / f"grid{suffix}"
    meshio.write_points_cells(path, lattice.points_um, [("tetra", lattice.tetrahedra)])
    grid = read_grid(path)
    assert (grid.boundary, grid.n_tetrahedra) == ("absorbing", lattice.n_tetrahedra)
    assert np.array_equal(grid.faces, lattice.faces)
    assert np.allclose(grid.volumes, lattice.volumes)


def test_mesh_files_may_hold_other_cells_and_unused_points_and_be_in_mm(tmp_path):
    path = tmp_path / "grid.vtu"
    points = np.vstack([[[7.0, 7, 7]], TWO_POINTS])
    cells = [("triangle", [[1, 2, 3]]), ("tetra", TWO_TETRAHEDRA + 1)]
    meshio.write_points_cells(path, points, cells)
    grid = read_grid(path, boundary="reflecting", um_per_unit=1000.0)
    assert grid.n_points == 5
    assert grid.volume_um3 == pytest.approx(0.5e9)


def test_a_file_without_tetrahedra_says_what_it_has(tmp_path):
    path = tmp_path / "surface.vtu"
    meshio.write_points_cells(path, TWO_POINTS, [("triangle", [[0, 1, 2]])])
    with pytest.raises(ValueError, match=r"surface.vtu has no tetrahedra \(it has triangle\)"):
        read_grid(path)


def test_nested_surfaces_lie_in_the_innermost_around_them():
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    sides = np.array([[0, 1, 3], [0, 3, 2], [4, 7, 5], [4, 6, 7], [0, 5, 1], [0, 4, 5], [2, 3, 7],
                      [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])  # fmt: skip

    def box(low, size):
        return low + size * corners, sides

    inner, outer, middle, other = box(3, 1), box(0, 9), box(2, 4), box(7, 1)
    assert surfaces._parents([inner, outer, middle, other]).tolist() == [2, -1, 1, 1]
    with pytest.raises(ValueError, match=r"surfaces: \[0, 1\] lie in no other one"):
        mesh_surfaces([inner, other], 1.0)
