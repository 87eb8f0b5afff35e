"""Scenes of walls: where meshes lie, and what is said where there is nothing to show."""

from __future__ import annotations

import meshio
import numpy as np
import pytest

from dipy_spinverse.report import meshes, scenes
from dipy_spinverse.report.meshes import VoxelMesh, voxel_affine
from dipy_spinverse.walls.interface import InterfaceMesh

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])
VOXELS = [(1, 2, 0), (3, 0, 0)]


@pytest.fixture
def placed(monkeypatch):
    """An octahedron of 8 um in a box of 20 um, in each voxel, instead of those of a fit."""
    corners = 4.0 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    triangles = np.array([[a, b, c] for a in (0, 1) for b in (2, 3) for c in (4, 5)])
    values = np.linspace(0, 1, len(triangles))
    mesh = InterfaceMesh(corners, triangles, values, values, np.zeros((8, 3)), np.zeros(8, int))
    placed_meshes = [VoxelMesh(v, mesh, False, voxel_affine(AFFINE, v, 20.0)) for v in VOXELS]
    monkeypatch.setattr(scenes, "voxel_meshes", lambda fit, voxels, affine: placed_meshes)
    return placed_meshes


def test_meshes_lie_in_their_voxels_on_a_slice_of_the_image(placed):
    pytest.importorskip("pyvista")
    image = np.arange(24.0).reshape(4, 3, 2)
    plotter = scenes.plot_scene(None, VOXELS, image=image, affine=AFFINE, off_screen=True)
    drawn = plotter.renderer.actors.values()
    mappers = [getattr(each, "mapper", None) for each in drawn]
    *shown, below = [each.dataset for each in mappers if hasattr(each, "dataset")]
    for mesh, voxel in zip(shown, VOXELS, strict=True):
        centre = AFFINE[:3, :3] @ voxel + AFFINE[:3, 3]
        np.testing.assert_allclose(mesh.center, centre, atol=1e-6)
        assert (np.abs(np.asarray(mesh.points) - centre).max(axis=0) <= [1.0, 1.0, 1.5]).all()
    # the cell below the first mesh has the value of its voxel
    assert below.n_cells == 12
    cell = below.find_closest_cell(np.array([*shown[0].center[:2], below.center[2]]))
    assert below.cell_data["image"][cell] == image[VOXELS[0]]
    assert below.bounds[4] == pytest.approx(shown[0].bounds[4])
    plotter.close()


def test_an_unknown_colour_is_named(placed):
    pytest.importorskip("pyvista")
    with pytest.raises(ValueError, match="colour is 'red'"):
        scenes.plot_scene(None, VOXELS, colour="red")


def test_without_trusted_walls_there_is_no_scene(monkeypatch):
    pytest.importorskip("pyvista")
    monkeypatch.setattr(scenes, "voxel_meshes", lambda *_: [])
    with pytest.raises(ValueError, match="none of which has trusted walls"):
        scenes.plot_scene(None, VOXELS)


def test_without_pyvista_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(scenes, "optional_package", lambda name: (None, False, None))
    with pytest.raises(ImportError, match=r"dipy_spinverse\[scenes\]"):
        scenes.plot_scene(None, VOXELS)


def test_the_file_of_all_meshes_has_their_voxels_positions_and_walls(placed, tmp_path):
    meshes._save_together(placed, tmp_path / "all.vtu")
    saved = meshio.read(tmp_path / "all.vtu")
    (cells,), values = saved.cells, {name: each[0] for name, each in saved.cell_data.items()}
    n = len(placed[0].mesh.triangles)
    np.testing.assert_array_equal(values["voxel"], np.repeat(VOXELS, n, axis=0))
    for k, one in enumerate(placed):
        rows = slice(k * n, (k + 1) * n)
        np.testing.assert_allclose(
            saved.points[cells.data[rows]], one.vertices_mm[one.mesh.triangles]
        )
        np.testing.assert_array_equal(values["wall_probability"][rows], one.mesh.wall_probability)
