"""Figures of fits for notebooks and papers: maps with intervals, signals, walls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from dipy.utils.optpkg import optional_package

from dipy_spinverse.report.words import words_of
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.status import FITTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dipy_spinverse.spinverse import SpinverseFit

_SIZE = 2.6  # inches of a panel
_MOST_LINES = 8
_WIDE = 10.0  # ms/um^2, from which b is drawn as logarithms
_ROWS = (("_low", "low end (2.5 %)"), ("", "posterior median"), ("_high", "high end (97.5 %)"))


def plot_maps(
    fit: VoxelFit, names: Iterable[str] | None = None, slice_index: int | None = None
) -> Figure:
    """Maps of a slice, with the ends of their 95 % intervals above and below.

    Parameters
    ----------
    fit : VoxelFit
        Of any model, of an image of two or three dimensions.
    names : iterable of str, optional
        Of `fit.MAPS`; all where not given.
    slice_index : int, optional
        Along the third axis; the middle one where not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        Unknown maps, or a fit that is no image.
    ImportError
        Without matplotlib: ``pip install dipy_spinverse[viz]``.

    Examples
    --------
    >>> plot_maps(fit, ["pore_diameter", "exchange_time"])  # doctest: +SKIP
    """
    pyplot = _pyplot()
    names = list(fit.MAPS if names is None else names)
    unknown = sorted(set(names) - set(fit.MAPS))
    if unknown or len(fit.shape) not in (2, 3):
        raise ValueError(
            f"There is no map {unknown} in a fit of the voxels {fit.shape}; choose from "
            f"{list(fit.MAPS)} of a two- or three-dimensional image."
        )
    if len(fit.shape) == 3:
        fit = fit[:, :, fit.shape[2] // 2 if slice_index is None else slice_index]
    rows = _ROWS if hasattr(fit, f"{names[0]}_low") else _ROWS[1:2]
    outside = ~np.isin(fit.status, FITTED)
    figure, axes = pyplot.subplots(
        len(rows), len(names), figsize=(_SIZE * len(names), _SIZE * len(rows)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for column, name in zip(axes.T, names, strict=True):
        unit = words_of(name, fit).unit
        images = [np.ma.array(getattr(fit, name + end), mask=outside).T for end, _ in rows]
        middle = images[len(rows) // 2].compressed()
        top = np.quantile(middle, 0.99) if middle.size else 1.0
        for axis, image in zip(column, images, strict=True):
            shown = axis.imshow(image, origin="lower", vmin=min(0, image.min() or 0), vmax=top)
            axis.set(xticks=[], yticks=[])
        figure.colorbar(shown, ax=list(column), location="bottom", shrink=0.85, extend="max")
        column[0].set_title(name.replace("_", " ") + ("" if unit == "1" else f" ({unit})"))
    for axis, (_, words) in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(words)
    return figure


def plot_signals(fit: VoxelFit, data: Any, voxel: tuple[int, ...] = ()) -> Figure:
    """Signals of a voxel against b, and against diffusion time, with the fit.

    Points are means over the directions of a shell of one timing, lines are those of the fit;
    bars are one standard error of the noise. Of many shells or timings some are shown.

    Parameters
    ----------
    fit : VoxelFit
        Of measurements with pulsed gradients.
    data : array-like (..., M)
        What was fitted.
    voxel : tuple of int, optional
        Its index; not needed in the fit of a single voxel.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        A voxel that was not fitted.
    ImportError
        Without matplotlib.
    """
    pyplot = _pyplot()
    one = fit[voxel]
    if one.shape != () or one.status not in FITTED:
        raise ValueError(f"voxel is {voxel!r}; give the index of one that was fitted.")
    acquisition = fit.model.acquisition
    measured, predicted = np.asarray(data[voxel]), one.predict()
    S0 = one.S0_per_te[0]
    shells = np.where(acquisition.b0_mask, 0, acquisition.b.round(1))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    times = acquisition.big_delta
    for axis, along, others, label, unit in (
        (left, shells, times, "Delta", "ms"),
        (right, times, shells, "b", "ms/um^2"),
    ):
        for k, other in enumerate(_some(others, along)):
            at = np.unique(along[others == other])
            groups = [(along == x) & (others == other) for x in at]
            mean, fitted = (
                np.array([s[rows].mean() for rows in groups]) / S0 for s in (measured, predicted)
            )
            error = [one.sigma / np.sqrt(rows.sum()) / S0 for rows in groups]
            color = f"C{k}"
            axis.errorbar(at, mean, error, fmt="o", color=color, markersize=4, capsize=2)
            axis.plot(at, fitted, color=color, label=f"{label} {other:.3g} {unit}")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, frameon=False)
    if shells.max() > _WIDE:
        left.set_xscale("symlog", linthresh=1.0)
        left.set_xlim(left=-0.1)
    left.set(xlabel="b (ms/um^2)", ylabel="mean signal / S0")
    right.set(xlabel="Delta (ms)")
    return figure


def _some(others, along):
    """As many values as a legend can hold, of those that make a line."""
    values = np.unique(others)
    often = np.array([len(np.unique(along[others == value])) for value in values])
    if often.max() > 1:
        values = values[often > 1]
    shown = np.linspace(0, len(values) - 1, min(len(values), _MOST_LINES)).round().astype(int)
    return values[shown]


def plot_walls(fit: SpinverseFit, voxel: tuple[int, ...] = (), n_slices: int = 4) -> Figure:
    """Walls in slices through the grid of a voxel, coloured by their probability.

    Parameters
    ----------
    fit : SpinverseFit
    voxel : tuple of int, optional
        One with walls; its index is not needed in the fit of a single voxel.
    n_slices : int, optional
        Along z.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        A voxel without walls.
    ImportError
        Without matplotlib.
    """
    pyplot = _pyplot()
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    one = fit[voxel]
    if one.shape != () or not one.has_walls:
        raise ValueError(f"voxel is {voxel!r}; give the index of one with walls.")
    grid, probability = fit.model.grid, one.wall_probability
    low, high = (end(grid.face_points.reshape(-1, 3), axis=0) for end in (np.min, np.max))
    # A little above the middle of each slab, where a lattice may have walls in the very plane.
    heights = low[2] + (np.arange(n_slices) + 0.52) / n_slices * (high - low)[2]
    figure, axes = pyplot.subplots(
        1, n_slices, figsize=(2.8 * n_slices, 3), squeeze=False, layout="constrained"
    )
    order = np.argsort(probability)  # the likeliest are drawn last
    for axis, z in zip(axes[0], heights, strict=True):
        segments, cut = _cut(grid.face_points[order], z)
        drawn = LineCollection(segments, cmap="viridis_r", linewidths=2)
        drawn.set(array=probability[order][cut], clim=(0, 1), alpha=probability[order][cut])
        axis.add_collection(drawn)
        axis.set(
            title=f"z = {z:.1f} um", xlabel="x (um)", aspect="equal", xlim=(low[0], high[0]),
            ylim=(low[1], high[1]),
        )  # fmt: skip
    axes[0, 0].set_ylabel("y (um)")
    scale = ScalarMappable(Normalize(0, 1), "viridis_r")
    figure.colorbar(scale, ax=list(axes[0]), label="wall probability")
    return figure


def _cut(triangles, z):
    """Segments (S, 2, 2) of triangles (F, 3, 3) in a plane of height z; which ones it cuts."""
    height = triangles[:, :, 2] - z
    cut = (height.min(axis=1) < 0) & (height.max(axis=1) > 0)
    corners, height = triangles[cut], height[cut]
    # The corner that is alone on its side; its two edges cross the plane.
    above = height > 0
    lone = np.where(above.sum(axis=1) == 1, above.argmax(axis=1), above.argmin(axis=1))
    rows, ends = np.arange(len(lone)), []
    for step in (1, 2):
        other = (lone + step) % 3
        share = height[rows, lone] / (height[rows, lone] - height[rows, other])
        way = corners[rows, other] - corners[rows, lone]
        ends.append((corners[rows, lone] + share[:, None] * way)[:, :2])
    return np.stack(ends, axis=1), cut


def _pyplot():
    pyplot, have_matplotlib, _ = optional_package("matplotlib.pyplot")
    if not have_matplotlib:
        raise ImportError("Figures need matplotlib: pip install dipy_spinverse[viz].")
    return pyplot
