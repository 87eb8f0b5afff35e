"""Scenes of walls over the image, by PyVista: on a screen, in a notebook, or as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from dipy.utils.optpkg import optional_package
from numpy.typing import ArrayLike

from dipy_spinverse.report.files import placed_meshes

if TYPE_CHECKING:
    from dipy_spinverse.spinverse import SpinverseFit

# What colours walls: the name of the bar, and its range where it has one.
_COLOURS = {
    "wall_probability": ("wall probability", (0.0, 1.0)),
    "permeability": ("permeability (um/ms)", None),
}


def plot_scene(
    fit: SpinverseFit,
    voxels: list[tuple[int, ...]],
    *,
    image: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    colour: str = "wall_probability",
    off_screen: bool = False,
) -> Any:
    """Walls of voxels in their places, enlarged to fill their voxels, over a slice of an image.

    Parameters
    ----------
    fit : SpinverseFit
    voxels : list of tuple of int
        Those whose walls are not trusted are left out; the log says so.
    image : array-like (X, Y, Z), optional
        The slice of the first voxel is shown, below the walls.
    affine : array-like (4, 4), optional
        Of the image; voxels of 1 mm where not given.
    colour : {"wall_probability", "permeability"}, optional
    off_screen : bool, optional
        For ``plotter.screenshot(path)`` without a screen.

    Returns
    -------
    pyvista.Plotter
        For its methods ``show()`` and ``screenshot(path)``.

    Raises
    ------
    ValueError
        An unknown colour; no voxel with walls to be trusted.
    ImportError
        Without PyVista.

    Examples
    --------
    >>> plot_scene(fit, [(1, 0, 0)], image=data[..., 0]).show()  # doctest: +SKIP
    """
    pyvista, have_pyvista, _ = optional_package("pyvista")
    if not have_pyvista:
        raise ImportError("Scenes need PyVista: pip install dipy_spinverse[scenes].")
    if colour not in _COLOURS:
        raise ValueError(f"colour is {colour!r}; use one of {', '.join(map(repr, _COLOURS))}.")
    affine = np.eye(4) if affine is None else np.asarray(affine, dtype=float)
    placed = placed_meshes(fit, voxels, affine)
    if not placed:
        raise ValueError(
            f"voxels is {voxels!r}, of which none has walls to be trusted; see fit.status, and "
            "fit with walls=True."
        )
    label, limits = _COLOURS[colour]
    if limits is None:
        limits = 0.0, max(float(getattr(each.mesh, colour).max()) for each in placed)
    plotter = pyvista.Plotter(off_screen=off_screen, window_size=(1000, 700))
    plotter.set_background("lightsteelblue", top="white")
    for each in placed:
        surface = pyvista.PolyData.from_regular_faces(each.vertices_mm, each.mesh.triangles)
        surface.cell_data[label] = getattr(each.mesh, colour)
        bar = {
            "color": "black", "title": f"{label}\n", "n_labels": 3, "fmt": "%.3g", "width": 0.4,
            "position_x": 0.55,
        }  # fmt: skip
        plotter.add_mesh(
            surface, scalars=label, clim=limits, cmap="viridis_r", scalar_bar_args=bar,
            ambient=0.5,
        )  # fmt: skip
    if image is not None:
        below = _slice(pyvista, np.asarray(image), affine, placed[0])
        plotter.add_mesh(
            below, scalars="image", cmap="gray", show_scalar_bar=False, lighting=False
        )
    plotter.add_axes(color="black")
    plotter.camera_position = "iso"
    plotter.camera.zoom(1.15)
    return plotter


def _slice(pyvista, image, affine, placed):
    """The slice of an image in which a mesh is, at its lower end."""
    k = (*placed.voxel, 0, 0)[2]
    back = np.linalg.inv(affine)
    height = placed.vertices_mm @ back[2, :3] + back[2, 3]
    i, j = np.meshgrid(*(np.arange(n + 1) - 0.5 for n in image.shape[:2]), indexing="ij")
    corners = np.stack([i, j, np.full_like(i, height.min())], axis=-1)
    points = corners @ affine[:3, :3].T + affine[:3, 3]
    grid = pyvista.StructuredGrid(*(points[..., axis, None] for axis in range(3)))
    grid.cell_data["image"] = image[:, :, k].ravel(order="F")
    return grid
