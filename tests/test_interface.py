"""Interface meshes, their files, and the comparison of walls."""

import meshio
import nibabel as nib
import numpy as np
import pytest
from dipy.io.surface import load_gifti

from dipy_spinverse.grid import TetrahedralGrid, bcc_grid
from dipy_spinverse.substrates.membranes import cylinders, spheres
from dipy_spinverse.walls.interface import interface_mesh
from dipy_spinverse.walls.metrics import compare_walls, reflected_faces

GRID = bcc_grid(cells=8, cell_size_um=1.0)
SPHERE = spheres(GRID, [0.2, 0.1, 0.3], 2.5, permeability=0.02)
NO_WALL = np.zeros(GRID.n_faces, dtype=bool)


def around(*tetrahedra, grid=GRID):
    """The faces that separate the given tetrahedra from all others."""
    inside = np.isin(grid.face_tetrahedra, tetrahedra)
    return inside[:, 0] != inside[:, 1]


def mesh_of(walls, grid=GRID, **kwargs):
    return interface_mesh(grid, np.where(walls, 0.02, 100.0), walls.astype(float), **kwargs)


def shift(walls, step, grid=GRID):
    """The walls moved by a lattice vector."""
    return walls[grid.nearest(grid.face_centroids, grid.face_centroids - step)[1]]


def test_a_mesh_has_the_triangles_and_values_of_the_walls():
    walls = np.isfinite(SPHERE)
    probability = np.where(walls, 0.9, 0.1)
    mesh = interface_mesh(GRID, SPHERE, probability)
    centroids = mesh.vertices_um[mesh.triangles].mean(axis=1)
    np.testing.assert_allclose(centroids, GRID.face_centroids[walls], atol=1e-9)
    np.testing.assert_array_equal(mesh.permeability, SPHERE[walls])
    np.testing.assert_array_equal(mesh.wall_probability, probability[walls])
    assert len(np.unique(mesh.vertices_um.round(6), axis=0)) == len(mesh.vertices_um)


def test_a_closed_mesh_satisfies_eulers_formula():
    mesh = mesh_of(np.isfinite(SPHERE))
    edges = np.sort(mesh.triangles[:, [[0, 1], [1, 2], [0, 2]]].reshape(-1, 2), axis=1)
    n_edges = len(np.unique(edges, axis=0))
    assert len(mesh.vertices_um) - n_edges + len(mesh.triangles) == 2


@pytest.mark.parametrize("cells", [8, 12])
def test_the_area_is_that_of_the_smooth_surface(cells):
    grid = bcc_grid(cells, 8.0 / cells)
    # Estimated normals: up to 3 %; the staircase has 10 to 40 % too much.
    for permeability, area in [
        (spheres(grid, [0, 0.2, 0.1], 3.0), 4 * np.pi * 9),
        (cylinders(grid, [3.9, 0.2, 0.1], 2.5), 2 * np.pi * 2.5 * 8),
    ]:
        walls = np.isfinite(permeability)
        assert mesh_of(walls, grid).area_um2 == pytest.approx(area, rel=0.03)
        assert grid.face_areas[walls].sum() > 1.1 * area


def test_a_lone_triangle_has_its_own_area():
    walls = np.arange(GRID.n_faces) == 3
    assert mesh_of(walls).area_um2 == pytest.approx(GRID.face_areas[3])


def test_components_are_numbered_by_size_and_cross_the_periodic_boundary():
    permeability = spheres(GRID, [[4, 4, 4], [0, 0, 0]], [1.5, 2.5])
    mesh = mesh_of(np.isfinite(permeability))
    assert mesh.n_components == 2
    sizes = np.bincount(mesh.components)
    assert sizes[0] > sizes[1]
    small = GRID.minimum_image(mesh.vertices_um[mesh.triangles[mesh.components == 1]] - 4.0)
    assert np.linalg.norm(small, axis=2).max() < 1.5 + 1.0


def test_the_threshold_decides_what_is_a_wall():
    probability = np.linspace(0, 1, GRID.n_faces)
    mesh = interface_mesh(GRID, SPHERE, probability, threshold=0.75)
    assert len(mesh.triangles) == (probability >= 0.75).sum()


def test_an_empty_mesh_is_a_mesh():
    mesh = mesh_of(NO_WALL)
    assert (mesh.n_components, mesh.area_um2, mesh.triangles.shape) == (0, 0.0, (0, 3))
    assert "0 triangles" in repr(mesh)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"permeability": np.ones(3)}, r"permeability has shape \(3,\); give one value per face"),
        ({"wall_probability": np.ones((2, GRID.n_faces))}, "Take one voxel of a fit"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"threshold": 50}, "threshold is 50"),
    ],
)
def test_bad_input_to_a_mesh_is_refused(arguments, message):
    defaults = {"permeability": SPHERE, "wall_probability": np.isfinite(SPHERE)}
    with pytest.raises(ValueError, match=message):
        interface_mesh(GRID, **(defaults | arguments))


@pytest.mark.parametrize("suffix", [".vtu", ".vtk"])
def test_mesh_files_hold_the_triangles_and_their_values(tmp_path, suffix):
    mesh = mesh_of(np.isfinite(SPHERE))
    path = tmp_path / f"walls{suffix}"
    mesh.save(path)
    read = meshio.read(path)
    np.testing.assert_allclose(read.points, mesh.vertices_um, atol=1e-6)
    np.testing.assert_array_equal(read.cells_dict["triangle"], mesh.triangles)
    for name, values in (
        ("permeability_um_per_ms", mesh.permeability),
        ("wall_probability", mesh.wall_probability),
        ("component", mesh.components),
    ):
        np.testing.assert_allclose(read.cell_data[name][0], values, rtol=1e-6)


def test_ply_files_hold_the_mean_values_at_the_vertices(tmp_path):
    walls = np.isfinite(SPHERE)
    mesh = interface_mesh(GRID, np.full(GRID.n_faces, 0.3), np.where(walls, 0.9, 0.1))
    mesh.save(tmp_path / "walls.ply")
    read = meshio.read(tmp_path / "walls.ply")
    np.testing.assert_allclose(read.points, mesh.vertices_um, atol=1e-6)
    np.testing.assert_array_equal(read.cells_dict["triangle"], mesh.triangles)
    np.testing.assert_allclose(read.point_data["wall_probability"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(read.point_data["permeability_um_per_ms"], 0.3, rtol=1e-6)
    red, green, blue = (read.point_data[name] for name in ("red", "green", "blue"))
    assert (green > red).all() and (red > blue).all()  # 0.9 is nearly yellow


@pytest.mark.parametrize("name", ["walls.surf.gii", "walls.gii"])
def test_gifti_is_in_mm_at_the_voxel_and_opens_in_dipy(tmp_path, name):
    mesh = mesh_of(np.isfinite(SPHERE))
    origin = np.array([10.0, -20.0, 5.0])
    mesh.save(tmp_path / name, origin_mm=origin)
    vertices, triangles = load_gifti(str(tmp_path / name))
    # float32 at 20 mm: 1e-6 mm.
    np.testing.assert_allclose(vertices, mesh.vertices_um / 1000 + origin, atol=2e-6)
    np.testing.assert_array_equal(triangles, mesh.triangles)
    values = nib.load(tmp_path / "walls.shape.gii").agg_data()
    assert len(values) == 2
    np.testing.assert_allclose(values[0], 1.0)
    np.testing.assert_allclose(values[1], 0.02, rtol=1e-6)


def test_meshes_that_cannot_be_saved_say_why(tmp_path):
    mesh = mesh_of(np.isfinite(SPHERE))
    with pytest.raises(ValueError, match="its suffix must be .ply, .vtu, .vtk or .gii"):
        mesh.save(tmp_path / "walls.xyz")
    with pytest.raises(ValueError, match=r"origin_mm has shape \(2,\)"):
        mesh.save(tmp_path / "walls.gii", origin_mm=[0, 0])
    with pytest.raises(ValueError, match="walls.ply, but the mesh has no triangles"):
        mesh_of(NO_WALL).save(tmp_path / "walls.ply")


def test_the_truth_compared_with_itself_is_perfect():
    comparison = compare_walls(np.isfinite(SPHERE), np.isfinite(SPHERE), GRID)
    assert (comparison.precision, comparison.recall, comparison.f1) == (1.0, 1.0, 1.0)
    assert (comparison.chamfer_um2, comparison.centred_chamfer_um2) == (0.0, 0.0)
    assert comparison.bad_edges_percent == 0.0
    assert not comparison.reflected


def test_precision_and_recall_count_faces():
    true = np.arange(GRID.n_faces) < 40
    found = (np.arange(GRID.n_faces) >= 30) & (np.arange(GRID.n_faces) < 50)
    comparison = compare_walls(found, true, GRID)
    assert comparison.precision == pytest.approx(0.5)
    assert comparison.recall == pytest.approx(0.25)
    assert comparison.f1 == pytest.approx(1 / 3)


def test_edges_of_the_found_walls_are_counted_by_their_walls():
    one = np.arange(GRID.n_faces) == 5
    assert compare_walls(one, one, GRID).bad_edges_percent == 100.0
    assert compare_walls(around(9), around(9), GRID).bad_edges_percent == 0.0

    # Two tetrahedra that share one edge and no face: 11 edges, one of them with four walls.
    shared = (GRID.tetrahedra[:, :, None] == GRID.tetrahedra[9]).any(axis=2).sum(axis=1)
    walls = around(9, np.flatnonzero(shared == 2)[0])
    branching = compare_walls(walls, walls, GRID)
    assert branching.bad_edges_percent == pytest.approx(100 / 11)


@pytest.mark.parametrize("boundary", ["periodic", "absorbing"])
def test_the_centred_chamfer_distance_forgives_a_shift(boundary):
    grid = bcc_grid(8, 1.0, boundary)
    one = around(100, grid=grid)
    step = np.array([0.0, 1.0, 0.0])
    other = shift(one, step, grid)
    assert other.sum() == 4
    comparison = compare_walls(other, one, grid)
    centroids = grid.face_centroids[one]
    distances = np.linalg.norm(centroids[:, None] + step - centroids, axis=2) ** 2
    expected = distances.min(axis=0).mean() + distances.min(axis=1).mean()
    assert comparison.chamfer_um2 == pytest.approx(expected)
    assert comparison.centred_chamfer_um2 == pytest.approx(0.0, abs=1e-20)


def test_the_chamfer_distance_is_measured_across_the_periodic_boundary():
    walls = np.isfinite(spheres(GRID, [0, 0, 3.5], 1.5))
    moved = shift(walls, np.array([0, 0, 1.0]))
    comparison = compare_walls(moved, walls, GRID)
    assert 0 < comparison.chamfer_um2 < 1.0
    assert comparison.centred_chamfer_um2 == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("found", "true"), [(True, False), (False, True), (False, False)])
def test_empty_sets_of_walls_give_no_nan(found, true):
    comparison = compare_walls(around(1) & found, around(1) & true, GRID, point_reflection=True)
    agree = found == true
    assert comparison.f1 == comparison.precision == comparison.recall == float(agree)
    assert comparison.chamfer_um2 == (0.0 if agree else np.inf)
    assert comparison.bad_edges_percent == 0.0


@pytest.mark.parametrize("boundary", ["periodic", "absorbing", "reflecting"])
@pytest.mark.parametrize("cells", [3, 4])
def test_a_point_reflected_result_counts_as_found_on_request(boundary, cells):
    grid = bcc_grid(cells, 1.0, boundary)
    partner = reflected_faces(grid)
    np.testing.assert_array_equal(partner[partner], np.arange(grid.n_faces))
    np.testing.assert_allclose(
        grid.minimum_image(grid.face_centroids[partner] + grid.face_centroids), 0, atol=1e-9
    )
    true = around(1, 2, 7, grid=grid)
    found = true[partner]
    assert compare_walls(found, true, grid).f1 < 1
    comparison = compare_walls(found, true, grid, point_reflection=True)
    assert (comparison.f1, comparison.chamfer_um2, comparison.reflected) == (1.0, 0.0, True)


def test_grids_without_point_symmetry_and_wrong_masks_are_refused():
    points = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    grid = TetrahedralGrid.from_tetrahedra(points, [[0, 1, 2, 3], [1, 2, 3, 4]])
    wall = np.ones(1, dtype=bool)
    with pytest.raises(ValueError, match="differs from its reflection"):
        compare_walls(wall, wall, grid, point_reflection=True)
    with pytest.raises(ValueError, match="estimated has shape .* such as np.isfinite"):
        compare_walls(SPHERE, np.isfinite(SPHERE), GRID)
    with pytest.raises(ValueError, match="true has shape"):
        compare_walls(NO_WALL, NO_WALL[:5], GRID)
