"""Figures of fits by matplotlib, for papers and notebooks: maps, signals, walls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from dipy.utils.optpkg import optional_package

from dipy_spinverse.report.descriptions import map_description
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.status import FITTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dipy_spinverse.spinverse import SpinverseFit

# Layout only: size of a panel (inches), lines in a panel, and b (ms/um^2) from which the axis of
# b is logarithmic.
_PANEL_SIZE = 2.6
_MAX_LINES = 8
_LARGE_B = 10.0
INTERVAL = {"_low": "2.5 % quantile", "": "posterior median", "_high": "97.5 % quantile"}


def plot_maps(fit: VoxelFit, names: Iterable[str] | None = None) -> Figure:
    """Maps of a slice, between the lower and upper limits of their 95 % intervals.

    Parameters
    ----------
    fit : VoxelFit
        Of any model: a slice such as ``fit[:, :, k]``, a three-dimensional image, of which the
        middle slice is shown, or a list of voxels, shown as a row.
    names : iterable of str, optional
        Some of `fit.MAPS`; all by default.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        Unknown maps.
    ImportError
        Without matplotlib: ``pip install dipy_spinverse[viz]``.

    Examples
    --------
    >>> plot_maps(fit, ["pore_diameter", "exchange_time"])  # doctest: +SKIP
    """
    pyplot = _pyplot()
    names = list(fit.MAPS if names is None else names)
    unknown = sorted(set(names) - set(fit.MAPS))
    if unknown:
        raise ValueError(f"names: there is no map {unknown}; choose from {list(fit.MAPS)}.")
    fit = fit[(None,) * max(0, 2 - len(fit.shape))]
    if len(fit.shape) == 3:
        fit = fit[:, :, fit.shape[2] // 2]
    suffixes = list(INTERVAL) if hasattr(fit, f"{names[0]}_low") else [""]
    outside = ~np.isin(fit.status, FITTED)
    n_rows, n_columns = len(suffixes), len(names)
    figure, axes = pyplot.subplots(
        n_rows, n_columns, figsize=(_PANEL_SIZE * n_columns, _PANEL_SIZE * n_rows),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, name in zip(axes.T, names, strict=True):
        unit = map_description(name, fit).unit
        images = [np.ma.array(getattr(fit, name + s), mask=outside).T for s in suffixes]
        medians = images[n_rows // 2].compressed()
        maximum = np.quantile(medians, 0.99) if medians.size else 1.0
        for axis, image in zip(column, images, strict=True):
            shown = axis.imshow(image, origin="lower", vmin=min(0, image.min() or 0), vmax=maximum)
            axis.set(xticks=[], yticks=[])
        figure.colorbar(shown, ax=list(column), location="bottom", shrink=0.85, extend="max")
        column[0].set_title(name.replace("_", " ") + ("" if unit == "1" else f" ({unit})"))
    for axis, suffix in zip(axes[:, 0], suffixes, strict=True):
        axis.set_ylabel(INTERVAL[suffix])
    return figure


def plot_signals(fit: VoxelFit, data: Any, voxel: tuple[int, ...] = ()) -> Figure:
    """Signals of a voxel against b, and against diffusion time, with the fit.

    Points are means over the directions of a shell of one timing, lines are those of the fit;
    error bars are one standard error. Of many shells or timings a selection is shown.

    Parameters
    ----------
    fit : VoxelFit
        Of measurements with pulsed gradients.
    data : array-like (..., M)
        The fitted signals.
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
    voxel_fit = fit[voxel]
    if voxel_fit.shape != () or voxel_fit.status not in FITTED:
        raise ValueError(f"voxel is {voxel!r}; give the index of one that was fitted.")
    acquisition = fit.model.acquisition
    measured, predicted = np.asarray(data[voxel]), voxel_fit.predict()
    S0 = voxel_fit.S0_per_te[0]
    shells = np.where(acquisition.b0_mask, 0, acquisition.b.round(1))
    figure, (b_axis, time_axis) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    times = acquisition.big_delta
    for axis, abscissa, grouping, label, unit in (
        (b_axis, shells, times, "Delta", "ms"),
        (time_axis, times, shells, "b", "ms/um^2"),
    ):
        for k, group in enumerate(_line_groups(grouping, abscissa)):
            x = np.unique(abscissa[grouping == group])
            rows = [(abscissa == value) & (grouping == group) for value in x]
            mean, fitted = (
                np.array([signals[row].mean() for row in rows]) / S0
                for signals in (measured, predicted)
            )
            error = [voxel_fit.sigma / np.sqrt(row.sum()) / S0 for row in rows]
            color = f"C{k}"
            axis.errorbar(x, mean, error, fmt="o", color=color, markersize=4, capsize=2)
            axis.plot(x, fitted, color=color, label=f"{label} {group:.3g} {unit}")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, frameon=False)
    if shells.max() > _LARGE_B:
        b_axis.set_xscale("symlog", linthresh=1.0)
        b_axis.set_xlim(left=-0.1)
    b_axis.set(xlabel="b (ms/um^2)", ylabel="mean signal / S0")
    time_axis.set(xlabel="Delta (ms)")
    return figure


def _line_groups(grouping, abscissa):
    """Up to `_MAX_LINES` values of `grouping`, those with several values of `abscissa` first."""
    values = np.unique(grouping)
    n_points = np.array([len(np.unique(abscissa[grouping == value])) for value in values])
    if n_points.max() > 1:
        values = values[n_points > 1]
    index = np.linspace(0, len(values) - 1, min(len(values), _MAX_LINES)).round().astype(int)
    return values[index]


def plot_walls(fit: SpinverseFit, voxel: tuple[int, ...] = (), n_slices: int = 4) -> Figure:
    """Walls in slices through the grid of a voxel, coloured by their probability.

    Parameters
    ----------
    fit : SpinverseFit
    voxel : tuple of int, optional
        One with walls; its index is not needed in the fit of a single voxel.
    n_slices : int, optional
        Along z, from the lowest to the highest walls.

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

    voxel_fit = fit[voxel]
    if voxel_fit.shape != () or not voxel_fit.has_walls:
        raise ValueError(f"voxel is {voxel!r}; give the index of one with walls.")
    grid, probability = fit.model.grid, voxel_fit.wall_probability
    corners = grid.face_points.reshape(-1, 3)
    low, high = corners.min(axis=0), corners.max(axis=0)
    # A little above the middle of each slab, where a lattice may have walls in the very plane.
    z_of_walls = grid.face_points[probability >= 0.5 * probability.max(), :, 2]
    z_low, z_high = z_of_walls.min(), z_of_walls.max()
    heights = z_low + (np.arange(n_slices) + 0.52) / n_slices * (z_high - z_low)
    figure, axes = pyplot.subplots(
        1, n_slices, figsize=(2.8 * n_slices, 3), squeeze=False, layout="constrained"
    )
    order = np.argsort(probability)  # the most probable are drawn last
    for axis, z in zip(axes[0], heights, strict=True):
        segments, is_cut = plane_intersection(grid.face_points[order], z)
        lines = LineCollection(list(segments), cmap="viridis_r", linewidths=2)
        lines.set(array=probability[order][is_cut], clim=(0, 1), alpha=probability[order][is_cut])
        axis.add_collection(lines)
        axis.set(
            title=f"z = {z:.1f} um", xlabel="x (um)", aspect="equal", xlim=(low[0], high[0]),
            ylim=(low[1], high[1]),
        )  # fmt: skip
    axes[0, 0].set_ylabel("y (um)")
    scale = ScalarMappable(Normalize(0, 1), "viridis_r")
    figure.colorbar(scale, ax=list(axes[0]), label="wall probability")
    return figure


def plane_intersection(triangles: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Segments (S, 2, 2) of triangles (F, 3, 3) in a plane of height z; which ones it cuts."""
    height = triangles[:, :, 2] - z
    is_cut = (height.min(axis=1) < 0) & (height.max(axis=1) > 0)
    corners, height = triangles[is_cut], height[is_cut]
    # The corner that is alone on its side; its two edges cross the plane.
    is_above = height > 0
    lone = np.where(is_above.sum(axis=1) == 1, is_above.argmax(axis=1), is_above.argmin(axis=1))
    rows, points = np.arange(len(lone)), []
    for step in (1, 2):
        neighbour = (lone + step) % 3
        share = height[rows, lone] / (height[rows, lone] - height[rows, neighbour])
        edge = corners[rows, neighbour] - corners[rows, lone]
        points.append((corners[rows, lone] + share[:, None] * edge)[:, :2])
    return np.stack(points, axis=1), is_cut


def _pyplot():
    pyplot, have_matplotlib, _ = optional_package("matplotlib.pyplot")
    if not have_matplotlib:
        raise ImportError("Figures need matplotlib: pip install dipy_spinverse[viz].")
    return pyplot
