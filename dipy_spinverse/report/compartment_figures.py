"""Pictures of compartment fits: posteriors, and glyphs of voxels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dipy_spinverse.compartments.fit import CompartmentFit
from dipy_spinverse.report.glyphs import superquadrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VIEWS = {"z": [0, 1, 2], "y": [0, 2, 1], "x": [1, 2, 0]}  # right, up, towards the eye
_LIGHT = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])


def plot_posterior(
    draws: Mapping[str, np.ndarray] | Mapping[str, Mapping[str, np.ndarray]],
    names: Iterable[str] | None = None,
    truth: Mapping[str, float] | None = None,
) -> Figure:
    """Marginal distributions of one voxel, and how each pair of parameters goes together.

    Parameters
    ----------
    draws : mapping of ndarray (n,), or mapping of such mappings
        From :func:`posterior_draws` or :meth:`LearnedModel.draws`; several by name are laid over
        each other.
    names : iterable of str, optional
        All but S0 where not given.
    truth : mapping of float, optional
        Marked where known.

    Returns
    -------
    matplotlib.figure.Figure
    """
    plt = _matplotlib()
    several = isinstance(next(iter(draws.values())), Mapping)
    sets: Mapping[str, Any] = draws if several else {"posterior": draws}
    names = list(names or (n for n in next(iter(sets.values())) if n != "S0"))
    n = len(names)
    figure, axes = plt.subplots(
        n, n, figsize=(2.4 * n, 2.4 * n), layout="constrained", squeeze=False
    )
    for (i, row), (j, column) in product(enumerate(names), repeat=2):
        axis = axes[i, j]
        axis.set_visible(j <= i)
        for (label, drawn), colour in zip(sets.items(), ("C0", "C1", "C2", "C3"), strict=False):
            if i == j:
                axis.hist(drawn[row], 40, density=True, alpha=0.5, color=colour, label=label)
                for end in np.quantile(drawn[row], [0.025, 0.975]):
                    axis.axvline(end, color=colour, linestyle=":")
            elif j < i:
                axis.plot(drawn[column], drawn[row], ".", ms=2, alpha=0.3, color=colour)
        if truth is not None and j <= i:
            axis.axvline(truth[column], color="k", linewidth=1)
            if j < i:
                axis.axhline(truth[row], color="k", linewidth=1)
        axis.set(xlabel=column if i == n - 1 else "", yticks=[] if i == j else axis.get_yticks())
        if j == 0 and i > 0:
            axis.set_ylabel(row)
    if several:
        axes[0, 0].legend(fontsize=7)
    return figure


def save_glyphs(
    fit: CompartmentFit,
    path: Path | str,
    *,
    colour: str | None = None,
    slice_index: int | None = None,
    view: str = "z",
    size: tuple[int, int] = (900, 900),
) -> None:
    """Write a picture of superquadric glyphs; see :func:`superquadrics`.

    Parameters
    ----------
    fit : CompartmentFit
    path : path
        PNG.
    colour : str, optional
        Map that colours the glyphs; where not given, red, green and blue are x, y and z of the
        axis, or white where the model has none.
    slice_index : int, optional
        Slice of a three-dimensional image, along its last axis; all voxels where not given.
    view : {"z", "y", "x"}, optional
        Axis along which one looks.
    size : tuple of int, optional
        Pixels.

    Notes
    -----
    Drawn by FURY where it is installed (before version 2), else by matplotlib.

    Raises
    ------
    ValueError
        Nothing was fitted, or an unknown map or view.
    """
    if view not in _VIEWS:
        raise ValueError(f"view is {view!r}; use one of {', '.join(_VIEWS)}.")
    if slice_index is not None and len(fit.shape) == 3:
        fit = fit[:, :, slice_index]
    if colour is not None and colour not in fit.MAPS:
        raise ValueError(f"colour is {colour!r}; the fit has the maps {list(fit.MAPS)}.")
    glyphs = superquadrics(fit)
    if not len(glyphs.centres):
        raise ValueError("No voxel of the fit was fitted; there is nothing to draw.")
    colours = _colours(fit, glyphs, colour)
    vertices, triangles = glyphs.mesh()
    vertices = vertices[:, _VIEWS[view]]
    n = glyphs.vertices.shape[1]
    if _has_fury():
        _by_fury(vertices, triangles, np.repeat(colours, n, axis=0), path, size)
    else:
        _by_matplotlib(vertices, triangles, np.repeat(colours, n, axis=0), path, size)


def _colours(fit, glyphs, name):
    """(G, 3) in 0 to 1."""
    index = tuple(glyphs.centres.astype(int).T[: len(fit.shape)])
    if name is None:
        axis = np.abs(fit.axis[index]).reshape(-1, 3)
        return np.where(axis.any(axis=1, keepdims=True), axis, 0.9)
    from matplotlib import colormaps

    values = np.reshape(getattr(fit, name)[index], -1)
    span = np.ptp(values)
    return colormaps["viridis"]((values - values.min()) / (span if span > 0 else 1))[:, :3]


def _has_fury():
    if find_spec("fury") is None:
        return False
    import fury

    return int(fury.__version__.split(".")[0]) < 2


def _by_fury(vertices, triangles, colours, path, size):
    from fury import utils, window

    scene = window.Scene()
    scene.background((1, 1, 1))
    surface = utils.get_actor_from_primitive(
        vertices, triangles, colors=255 * colours, backface_culling=False
    )
    scene.add(surface)
    middle = 0.5 * (vertices.max(axis=0) + vertices.min(axis=0))
    scene.set_camera(position=middle + [0, 0, 100], focal_point=middle, view_up=(0, 1, 0))
    scene.projection("parallel")
    scene.reset_clipping_range()
    width, height = np.ptp(vertices, axis=0)[:2]
    scene.camera().SetParallelScale(0.52 * max(height, width * size[1] / size[0]))
    window.record(scene=scene, out_path=str(path), size=size, reset_camera=False)


def _by_matplotlib(vertices, triangles, colours, path, size):
    plt = _matplotlib()
    from matplotlib.collections import PolyCollection

    faces = vertices[triangles]
    normals = np.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    light = 0.45 + 0.55 * np.abs(normals @ _LIGHT)
    of_face = (colours[triangles[:, 0]] * light[:, None]).clip(0, 1)
    order = np.argsort(faces[:, :, 2].mean(axis=1))  # the nearest is drawn last
    figure = plt.figure(figsize=(size[0] / 100, size[1] / 100))
    axis = figure.add_axes([0, 0, 1, 1])
    drawn = PolyCollection(
        faces[order, :, :2], facecolors=of_face[order], edgecolors=of_face[order], linewidths=0.3
    )
    axis.add_collection(drawn)
    axis.autoscale_view()
    axis.set_aspect("equal")
    axis.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _matplotlib():
    if find_spec("matplotlib") is None:
        raise ValueError("Pictures need matplotlib (pip install matplotlib).")
    import matplotlib.pyplot as plt

    return plt
