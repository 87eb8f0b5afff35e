"""
The shape of a cell from its signals
====================================

The signals of molecules that cannot leave a cell, such as metabolites, depend on its shape.
"""

# %%
# An axon with a bead
# -------------------
#
# The signals inside a slightly bent cylinder with a bead are simulated, with noise. Pose and size
# are unknown in the fit.

import matplotlib.pyplot as plt
import numpy as np
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

axon = Axon(curvature=0.03, beads=((-0.3, 0.4, 1.5),), rotation=(0.9, -0.4, 1.3))
straight = cylinder_mesh(n_rings=5, n_layers=16)
body = Template(axon.positions(straight.points), straight.tetrahedra)

rng = np.random.default_rng(0)
directions = rng.normal(size=(12, 3))
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
b, big_delta, k = (
    each.ravel() for each in np.meshgrid(np.linspace(0, 10, 6), [10, 25, 50], np.arange(12))
)
acquisition = Acquisition(
    b=b, directions=directions[k] * (b > 0)[:, None], small_delta=5, big_delta=big_delta
)
grid = TetrahedralGrid.from_tetrahedra(body.points, body.tetrahedra, "reflecting")
modes = laplace_modes(grid, np.full(grid.n_faces, np.inf), length_scale_um=1.8)
clean, _ = simulate_modes(acquisition, modes)
noise = rng.normal(scale=0.002, size=(2, len(clean)))
signals = np.hypot(clean + noise[0], noise[1])

# %%
# The fit
# -------
#
# Several initial shapes are compared, and the most likely ones optimised.

fit = CellShapeModel(acquisition).fit(signals, sigma=0.002, n_draws=10)
edges = body.points[body.tetrahedra[:, 1:]] - body.points[body.tetrahedra[:, :1]]
volume = np.linalg.det(edges).sum() / 6
print(f"volume: {fit.volume:.0f} um^3 ({fit.volume_low:.0f} to {fit.volume_high:.0f}), "
      f"true {volume:.0f}")  # fmt: skip

# %%
# Truth and estimate
# ------------------
#
# A cell and its point reflection have the same signals: the one closer to the truth is shown.
# Colours are the standard deviation of the surface.

mesh = fit.mesh()
points = mesh.vertices_um - mesh.vertices_um.mean(axis=0)
surface = body.points[body.surface]
surface = surface - surface.mean(axis=0)
distance = [
    np.linalg.norm(surface[:, None] - sign * points, axis=2).min(axis=1).mean()
    for sign in (1, -1)
]  # fmt: skip
points *= 1 if distance[0] < distance[1] else -1

# seen across the bend
unturned = Rotation.from_rotvec(axon.rotation).inv()
figure = plt.figure(figsize=(9, 4.5), layout="constrained")
for k, (title, corners, triangles, values) in enumerate((
    ("true", surface, np.searchsorted(body.surface, body.triangles), None),
    ("estimated", points, mesh.triangles, mesh.vertex_std_um),
)):  # fmt: skip
    axis = figure.add_subplot(1, 2, k + 1, projection="3d")
    x, y, z = unturned.apply(corners).T
    drawn = axis.plot_trisurf(x, y, z, triangles=triangles, color="lightsteelblue")
    if values is not None:
        drawn.set_array(values[triangles].mean(axis=1))  # in place of the colour
        drawn.autoscale()
        figure.colorbar(drawn, ax=axis, shrink=0.6, label="standard deviation (um)")
    axis.set(xlim=(-5, 5), ylim=(-5, 5), zlim=(-6, 6), title=title)
    axis.set_box_aspect((10, 10, 12), zoom=1.5)
    axis.view_init(elev=8, azim=-90)
    axis.set_axis_off()
plt.show()
