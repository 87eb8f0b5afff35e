"""Three-dimensional scenes by PyVista: walls over the image, and glyphs of voxels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from dipy.utils.optpkg import optional_package
from numpy.typing import ArrayLike

from dipy_spinverse.report.meshes import voxel_meshes

if TYPE_CHECKING:
    from dipy_spinverse.compartments.fit import CompartmentFit
    from dipy_spinverse.spinverse import SpinverseFit

# What colours walls: the label of the colour bar, and its limits where they are fixed.
_COLOURS = {
    "wall_probability": ("wall probability", (0.0, 1.0)),
    "permeability": ("permeability (um/ms)", None),
}
_VIEWS = ("xy", "xz", "yz")


def plot_scene(
    fit: SpinverseFit,
    voxels: list[tuple[int, ...]],
    *,
    image: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    colour: str = "permeability",
    off_screen: bool = False,
) -> Any:
    """Walls of voxels at their positions, enlarged to fill their voxels, over an image slice.

    Parameters
    ----------
    fit : SpinverseFit
    voxels : list of tuple of int
        Those whose walls do not explain the signals are skipped, with a warning in the log.
    image : array-like (X, Y, Z), optional
        The slice of the first voxel is shown, below the walls.
    affine : array-like (4, 4), optional
        Of the image; voxels of 1 mm by default.
    colour : {"permeability", "wall_probability"}, optional
        Cells that are drawn from a posterior sample have no wall probability.
    off_screen : bool, optional
        For ``plotter.screenshot(path)`` without a screen.

    Returns
    -------
    pyvista.Plotter
        For its methods ``show()`` and ``screenshot(path)``.

    Raises
    ------
    ValueError
        An unknown colour; no voxel with trusted walls.
    ImportError
        Without PyVista.

    Examples
    --------
    >>> plot_scene(fit, [(1, 0, 0)], image=data[..., 0]).show()  # doctest: +SKIP
    """
    pyvista = _pyvista()
    if colour not in _COLOURS:
        raise ValueError(f"colour is {colour!r}; use one of {', '.join(map(repr, _COLOURS))}.")
    affine = np.eye(4) if affine is None else np.asarray(affine, dtype=float)
    meshes = voxel_meshes(fit, voxels, affine)
    if not meshes:
        raise ValueError(
            f"voxels is {voxels!r}, none of which has trusted walls; see fit.status, and fit with "
            "walls=True."
        )
    label, limits = _COLOURS[colour]
    if limits is None:
        limits = 0.0, max(float(getattr(placed.mesh, colour).max()) for placed in meshes)
    plotter = pyvista.Plotter(off_screen=off_screen, window_size=(1000, 700))
    plotter.set_background("lightsteelblue", top="white")
    for placed in meshes:
        surface = pyvista.PolyData.from_regular_faces(placed.vertices_mm, placed.mesh.triangles)
        surface.cell_data[label] = getattr(placed.mesh, colour)
        bar = {
            "color": "black", "title": f"{label}\n", "n_labels": 3, "fmt": "%.3g", "width": 0.4,
            "position_x": 0.55,
        }  # fmt: skip
        plotter.add_mesh(
            surface, scalars=label, clim=limits, cmap="viridis_r", scalar_bar_args=bar,
            ambient=0.5,
        )  # fmt: skip
    if image is not None:
        plotter.add_mesh(
            _image_slice(pyvista, np.asarray(image), affine, meshes[0]), scalars="image",
            cmap="gray", show_scalar_bar=False, lighting=False,
        )  # fmt: skip
    plotter.add_axes(color="black")
    plotter.camera_position = "iso"
    plotter.camera.zoom(1.15)
    return plotter


def plot_glyphs(
    fit: CompartmentFit,
    *,
    colour: str | None = None,
    view: str = "xy",
    size: tuple[int, int] = (900, 900),
    off_screen: bool = False,
) -> Any:
    """Superquadric glyphs of voxels; see :func:`dipy_spinverse.report.glyphs.superquadrics`.

    Parameters
    ----------
    fit : CompartmentFit
        Of an image, or a slice such as ``fit[:, :, k]``.
    colour : str, optional
        Map that colours the glyphs. By default red, green and blue are the x, y and z components
        of the axis, and glyphs are white where the model has none.
    view : {"xy", "xz", "yz"}, optional
        Axes to the right and up.
    size : tuple of int, optional
        Pixels.
    off_screen : bool, optional
        For ``plotter.screenshot(path)`` without a screen.

    Returns
    -------
    pyvista.Plotter
        For its methods ``show()`` and ``screenshot(path)``.

    Raises
    ------
    ValueError
        Nothing was fitted, or an unknown map or view.
    ImportError
        Without PyVista.
    """
    from dipy_spinverse.report.glyphs import superquadrics

    pyvista = _pyvista()
    if view not in _VIEWS:
        raise ValueError(f"view is {view!r}; use one of {', '.join(_VIEWS)}.")
    if colour is not None and colour not in fit.MAPS:
        raise ValueError(f"colour is {colour!r}; the fit has the maps {list(fit.MAPS)}.")
    glyphs = superquadrics(fit)
    if not len(glyphs.centres):
        raise ValueError("fit has no fitted voxel, so there are no glyphs; check mask and status.")
    index = tuple(glyphs.centres.astype(int).T[: len(fit.shape)])
    if colour is None:
        values = np.abs(fit.axis[index]).reshape(-1, 3)
        values = np.where(values.any(axis=1, keepdims=True), values, 0.9)
    else:
        values = np.reshape(getattr(fit, colour)[index], -1)
    surface = pyvista.PolyData.from_regular_faces(*glyphs.mesh())
    surface.point_data["colour"] = np.repeat(values, glyphs.vertices.shape[1], axis=0)
    plotter = pyvista.Plotter(off_screen=off_screen, window_size=size)
    plotter.add_mesh(
        surface, scalars="colour", rgb=colour is None, show_scalar_bar=False, ambient=0.4,
        smooth_shading=True,
    )  # fmt: skip
    plotter.camera_position = view
    plotter.enable_parallel_projection()
    plotter.camera.tight(padding=0.05, view=view, adjust_render_window=False)
    return plotter


def _pyvista():
    pyvista, have_pyvista, _ = optional_package("pyvista")
    if not have_pyvista:
        raise ImportError("Scenes need PyVista: pip install dipy_spinverse[scenes].")
    return pyvista


def _image_slice(pyvista, image, affine, placed):
    """The slice of an image in which a mesh is, at the lowest point of the mesh."""
    k = (*placed.voxel, 0, 0)[2]
    to_voxel = np.linalg.inv(affine)
    height = placed.vertices_mm @ to_voxel[2, :3] + to_voxel[2, 3]
    i, j = np.meshgrid(*(np.arange(n + 1) - 0.5 for n in image.shape[:2]), indexing="ij")
    corners = np.stack([i, j, np.full_like(i, height.min())], axis=-1)
    points = corners @ affine[:3, :3].T + affine[:3, 3]
    grid = pyvista.StructuredGrid(*(points[..., axis, None] for axis in range(3)))
    grid.cell_data["image"] = image[:, :, k].ravel(order="F")
    return grid
