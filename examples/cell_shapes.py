"""The shape of a cell from its diffusion signals.

Simulates the signals of a bent and twisted axon, with noise, and finds its shape from the signals
alone: pose and size are unknown. Run it as ``python
examples/cell_shapes.py [folder]``; it writes ``cell_shapes.png`` and ``cell.ply``. ``--quick``
takes fewer measurements, of less noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import cm, colors
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dipy_spinverse import Acquisition
from dipy_spinverse.bloch_torrey.finite_elements.matrix_formalism import (
    laplace_modes,
    simulate_modes,
)
from dipy_spinverse.cell_shapes import CellShapeModel
from dipy_spinverse.cell_shapes.synthetic_axons import Axon
from dipy_spinverse.cell_shapes.templates import Template, cylinder_mesh
from dipy_spinverse.grid import TetrahedralGrid

AXON = Axon(curvature=0.11, torsion=0.08, rotation=(0.9, -0.4, 1.3))


def protocol(n_b, n_directions):
    """b-values to 10 ms/um^2 at three diffusion times."""
    # a spiral from pole to pole
    z = 1 - (2 * np.arange(n_directions) + 1) / n_directions
    angle = np.pi * (1 + 5**0.5) * np.arange(n_directions)
    across = np.sqrt(1 - z**2)
    directions = np.column_stack([across * np.cos(angle), across * np.sin(angle), z])
    b, big_delta, k = (
        each.ravel()
        for each in np.meshgrid(np.linspace(0, 10, n_b), [10, 25, 50], range(n_directions))
    )
    return Acquisition(
        b=b, directions=directions[k] * (b > 0)[:, None], small_delta=5, big_delta=big_delta
    )


def scan(acquisition, template, sigma):
    """Magnitudes (M,) of water inside a template, with noise."""
    grid = TetrahedralGrid.from_tetrahedra(template.points, template.tetrahedra, "reflecting")
    modes = laplace_modes(grid, np.full(grid.n_faces, np.inf), length_scale_um=1.8)
    clean, _ = simulate_modes(acquisition, modes)
    noise = np.random.default_rng(0).normal(scale=sigma, size=(2, len(clean)))
    return np.hypot(clean + noise[0], noise[1])


def centre_of(points, triangles):
    """Centre (3,) of the volume inside a surface."""
    a, b, c = np.moveaxis(points[triangles], 1, 0)
    volumes = (np.cross(a, b) * c).sum(axis=1)
    return volumes @ (a + b + c) / 4 / volumes.sum()


class Truth:
    """The true surface, and how far points are from it."""

    def __init__(self, template):
        points = template.points[template.surface]
        self.triangles = np.searchsorted(template.surface, template.triangles)
        self.points = points - centre_of(points, self.triangles)
        a, b, c = np.moveaxis(self.points[self.triangles], 1, 0)
        normals = np.zeros_like(points)
        for corner in self.triangles.T:
            np.add.at(normals, corner, np.cross(b - a, c - a))
        self.normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)

    def apart(self, points):
        """Distances of points, um, along the normal of the nearest place."""
        _, nearest = cKDTree(self.points).query(points)
        return np.abs(((points - self.points[nearest]) * self.normals[nearest]).sum(axis=1))

    def aligned(self, mesh):
        """Vertices of a mesh, turned into the point reflection that is nearer."""
        points = mesh.vertices_um - centre_of(mesh.vertices_um, mesh.triangles)
        return min((points, -points), key=lambda each: self.apart(each).mean())


def draw(path, panels):
    """Surfaces seen across their bend, coloured by values of their vertices."""
    unturned = Rotation.from_rotvec(AXON.rotation).inv()
    figure = plt.figure(figsize=(12, 3.6), layout="constrained")
    for k, (title, points, triangles, values, top) in enumerate(panels):
        axis = figure.add_subplot(1, len(panels), k + 1, projection="3d")
        corners = unturned.apply(points)[triangles]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        light = 0.55 + 0.45 * np.abs(normals @ [0.5, -0.7, 0.5]) / np.linalg.norm(normals, axis=1)
        colour = np.full((len(triangles), 4), colors.to_rgba("lightsteelblue"))
        if values is not None:
            scale = cm.ScalarMappable(colors.Normalize(0, top), "viridis")
            colour = scale.to_rgba(values[triangles].mean(axis=1))
            figure.colorbar(scale, ax=axis, orientation="horizontal", shrink=0.7, label="um")
        colour[:, :3] *= light[:, None]
        axis.add_collection3d(Poly3DCollection(corners, facecolors=colour))
        axis.set(xlim=(-5, 5), ylim=(-5, 5), zlim=(-6, 6))
        axis.set_box_aspect((10, 10, 12), zoom=1.35)
        axis.view_init(elev=8, azim=-90)
        axis.set_axis_off()
        axis.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=80)


def main():
    """Simulate, fit, say how right it is, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default=".", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer measurements, less noise")
    arguments = parser.parse_args()

    sigma = 1 / 500 if arguments.quick else 1 / 50
    acquisition = protocol(6, 10) if arguments.quick else protocol(21, 30)
    finer = cylinder_mesh(n_rings=5, n_layers=16) if arguments.quick else cylinder_mesh(7, 22)
    body = Template(AXON.positions(finer.points), finer.tetrahedra)
    truth = Truth(body)
    signals = scan(acquisition, body, sigma)

    model = CellShapeModel(acquisition)
    fit = model.fit(signals, sigma=sigma, n_draws=4 if arguments.quick else 40)

    panels = [("truth", truth.points, truth.triangles, None, 1)]
    for stage in ("start", "coarse", "likeliest"):
        mesh = fit.mesh(stage=stage)
        points = truth.aligned(mesh)
        apart = truth.apart(points)
        print(f"{stage}: vertices {apart.mean():.2f} um from the true surface on average")
        panels.append((f"{stage}: distance", points, mesh.triangles, apart, 0.6))
    panels.append(
        ("likeliest: standard deviation", points, mesh.triangles, mesh.vertex_std_um, 0.6)
    )
    edges = body.points[body.tetrahedra[:, 1:]] - body.points[body.tetrahedra[:, :1]]
    print(
        f"volume: {fit.volume:.0f} um^3, 95 % interval {fit.volume_low:.0f} to "
        f"{fit.volume_high:.0f}, truth {np.linalg.det(edges).sum() / 6:.0f}"
    )
    arguments.folder.mkdir(parents=True, exist_ok=True)
    draw(arguments.folder / "cell_shapes.png", panels)
    fit.mesh().save(arguments.folder / "cell.ply")


if __name__ == "__main__":
    main()
