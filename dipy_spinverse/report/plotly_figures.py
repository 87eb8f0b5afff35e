"""Figures of a report in plotly: maps, status, residuals, signals, walls."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from nibabel.orientations import aff2axcodes
from plotly.subplots import make_subplots

from dipy_spinverse.report.descriptions import STATUS_DESCRIPTIONS, map_description
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.status import FITTED, Status
from dipy_spinverse.walls.interface import InterfaceMesh

STATUS_COLORS = (
    "#e5e7eb", "#2a7f62", "#d9a441", "#b5483a", "#6b7280", "#9ca3af", "#4b5563", "#5b8fc9",
    "#8f6bb3",
)  # fmt: skip
_TIMING_COLORS = (
    "#0d3b66", "#d1495b", "#2a9d8f", "#e09f3e", "#6d597a", "#118ab2", "#7f5539", "#588157",
)  # fmt: skip
_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13}
# Values of all maps in a page, of 5.4 characters each: beyond, slices are left out, so that pages
# stay below 15 MB.
_MOST_VALUES = 1_200_000
_HEIGHT = 330
_MOST_TICKS = 8
# Least wall probability of what is drawn, how opaque it is, and what the legend says.
_BANDS = (
    (0.8, 1.0, "nearly sure (0.8 or more)"),
    (0.5, 0.55, "likely (0.5 to 0.8)"),
    (0.0, 0.25, "unsure (below 0.5)"),
)


def _styled(figure, height=_HEIGHT, **more):
    figure.update_layout(
        template="plotly_white", font=_FONT, height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 50}, **more,
    )  # fmt: skip
    return figure


class Slices:
    """The slices of an image that a page shows, cropped to the voxels that were asked for.

    Parameters
    ----------
    fit : VoxelFit
    affine : ndarray (4, 4)
    """

    def __init__(self, fit: VoxelFit, affine: np.ndarray):
        self.shape = (*fit.shape, *(1,) * (3 - len(fit.shape)))
        status = fit.status.reshape(self.shape)
        there = np.argwhere(status > 0)
        first, last = (
            (there.min(axis=0), there.max(axis=0)) if len(there) else (np.zeros(3, int),) * 2
        )
        self.box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        self.fitted = np.isin(status, FITTED)
        depth = np.arange(first[2], last[2] + 1)
        area = np.prod(last[:2] - first[:2] + 1)
        values = 3 * max(len(fit.MAPS), 1) * len(depth) * area
        step = int(np.ceil(values / _MOST_VALUES))
        self.shown = depth[:: max(step, 1)]
        self.size = np.linalg.norm(affine[:3, :3], axis=0)
        self.axes = [
            f"{name} (to {code})" for name, code in zip("ijk", aff2axcodes(affine), strict=True)
        ]

    def of(self, values: np.ndarray, fitted_only: bool = True) -> list[np.ndarray]:
        """Values of each slice, (Y, X) float32, NaN where nothing was fitted."""
        values = np.asarray(values, dtype=np.float32).reshape(self.shape)
        values = np.where(self.fitted, values, np.nan) if fitted_only else values
        return [values[self.box[0], self.box[1], k].T for k in self.shown]

    def figure(self, columns: dict[str, list[np.ndarray]], hover: str, **style: Any) -> go.Figure:
        """A slider over slices, one panel for each column."""
        figure = make_subplots(
            1, len(columns), subplot_titles=list(columns), shared_yaxes=True,
            horizontal_spacing=0.03,
        )  # fmt: skip
        x = np.arange(self.box[0].start, self.box[0].stop)
        y = np.arange(self.box[1].start, self.box[1].stop)
        middle = len(self.shown) // 2
        for n in range(len(self.shown)):
            for place, images in enumerate(columns.values(), start=1):
                figure.add_heatmap(
                    z=images[n], x=x, y=y, coloraxis="coloraxis", visible=n == middle,
                    hovertemplate=f"({self.axes[0][0]}, {self.axes[1][0]}) = (%{{x}}, %{{y}})<br>"
                    f"{hover}<extra></extra>", row=1, col=place,
                )  # fmt: skip
        for place in range(1, len(columns) + 1):
            anchor = "x" if place == 1 else f"x{place}"
            figure.update_xaxes(title=self.axes[0], constrain="domain", row=1, col=place)
            figure.update_yaxes(
                scaleanchor=anchor, scaleratio=self.size[1] / self.size[0], constrain="domain",
                row=1, col=place,
            )  # fmt: skip
        figure.update_yaxes(title=self.axes[1], row=1, col=1)
        # Few ticks, at voxels.
        for update, along in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
            step = max(1, -(-len(along) // _MOST_TICKS))
            update(showgrid=False, zeroline=False, tick0=int(along[0]), dtick=step)
        _styled(figure, **style)
        if len(self.shown) > 1:
            steps = [
                {
                    "label": str(k), "method": "update",
                    "args": [{"visible": list(np.repeat(self.shown == k, len(columns)))}],
                }
                for k in self.shown.tolist()
            ]  # fmt: skip
            figure.update_layout(
                height=_HEIGHT + 80, margin_b=40,
                sliders=[{
                    "active": middle, "steps": steps, "pad": {"t": 45},
                    "currentvalue": {"prefix": f"slice {self.axes[2]}: "},
                }],
            )  # fmt: skip
        return figure


def map_figure(fit: VoxelFit, name: str, slices: Slices) -> go.Figure:
    """A map, and the ends of its 95 % interval beside it."""
    unit = map_description(name, fit).unit
    unit = "" if unit == "1" else unit
    middle = slices.of(getattr(fit, name))
    columns = {"posterior median": middle}
    if hasattr(fit, f"{name}_low"):
        low, high = (slices.of(getattr(fit, name + end)) for end in ("_low", "_high"))
        columns = {"low end (2.5 %)": low, "median": middle, "high end (97.5 %)": high}
    least, most = _range(middle, 0.01, 0.99)
    if len(columns) > 1:  # room for the high end, but not for what is nearly unbounded
        most = min(max(most, _range(high, 0.5, 0.9)[1]), 2 * most if unit else 1.0)
    low_end = min(least, 0)
    coloraxis = {
        "colorscale": "Viridis", "cmin": low_end, "cmax": most if most > low_end else low_end + 1,
        "colorbar": {"title": unit, "thickness": 12},
    }  # fmt: skip
    return slices.figure(columns, f"%{{z:.4g}} {unit}", coloraxis=coloraxis)


def _range(images, low, high):
    values = np.concatenate([image.ravel() for image in images])
    values = values[np.isfinite(values)]
    return np.quantile(values, [low, high]) if values.size else (0.0, 1.0)


def status_figure(fit: VoxelFit, slices: Slices) -> go.Figure:
    """What came of each voxel."""
    n = len(Status)
    colors = [(k + end) / n for k in range(n) for end in (0, 1)]
    scale = [[at, STATUS_COLORS[k // 2]] for k, at in enumerate(colors)]
    coloraxis = {"colorscale": scale, "cmin": -0.5, "cmax": n - 0.5, "showscale": False}
    columns = {"": slices.of(fit.status, fitted_only=False)}
    return slices.figure(columns, "status %{z}", coloraxis=coloraxis)


def status_rows(fit: VoxelFit) -> list[dict[str, Any]]:
    """How many voxels came to what, in words."""
    found, counts = np.unique(fit.status, return_counts=True)
    return [
        {
            "name": Status(code).name, "color": STATUS_COLORS[code], "voxels": int(count),
            "words": STATUS_DESCRIPTIONS[Status(code).name],
        }
        for code, count in zip(found.tolist(), counts.tolist(), strict=True)
    ]  # fmt: skip


def groups_of(acquisition: Any) -> list[tuple[str, str, np.ndarray]]:
    """Shells and timings: words for b, words for the timing, and the measurements."""
    if not hasattr(acquisition, "timings"):
        return [(f"{k + 1}", "measurement", np.array([k])) for k in range(len(acquisition))]
    groups = []
    for k, (small, big, te) in enumerate(acquisition.timings):
        timing = f"delta {small:.3g}, Delta {big:.3g}, TE {te:.3g} ms"
        rows = np.flatnonzero(acquisition.timing_index == k)
        shell = np.where(acquisition.b0_mask[rows], 0, acquisition.b[rows].round(1))
        groups += [(f"{1e3 * b:.0f}", timing, rows[shell == b]) for b in np.unique(shell)]
    return groups


def residual_figure(
    acquisition: Any, data: np.ndarray, predicted: np.ndarray, sigma: np.ndarray
) -> go.Figure:
    """Residual over the noise by shell and timing; 1 is what noise leaves."""
    figure, colors = go.Figure(), dict[str, str]()
    over = (data - predicted) / sigma[:, None]
    for b, timing, rows in groups_of(acquisition):
        rms = np.sqrt((over[:, rows] ** 2).mean(axis=1))
        low, middle, high = np.quantile(rms, [0.1, 0.5, 0.9])
        color = colors.setdefault(timing, _TIMING_COLORS[len(colors) % len(_TIMING_COLORS)])
        figure.add_bar(
            x=[b], y=[middle], name=timing, legendgroup=timing, marker_color=color,
            showlegend=timing not in {t.name for t in figure.data}, offsetgroup=timing,
            error_y={"array": [high - middle], "arrayminus": [middle - low], "thickness": 1.2,
                     "color": "#222"}, opacity=0.75,
            hovertemplate=f"b {b} s/mm^2, {timing}<br>{len(rows)} volumes<br>"
            "%{y:.2f} of the noise<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=1, line={"dash": "dot", "color": "#555"}, annotation_text="noise")
    timed = hasattr(acquisition, "timings")
    figure.update_xaxes(title="b (s/mm^2)" if timed else "measurement", type="category")
    figure.update_yaxes(title="residual / noise", rangemode="tozero")
    return _styled(figure, barmode="group", legend={"orientation": "h", "y": 1.18})


def signal_figure(
    acquisition: Any, names: list[str], data: np.ndarray, predicted: np.ndarray, S0: np.ndarray
) -> go.Figure:
    """Measured and predicted signals of some voxels over b, one colour for each timing.

    Directions of one shell stand side by side in the order of the fit.
    """
    figure, groups = go.Figure(), groups_of(acquisition)
    timings = list(dict.fromkeys(timing for _, timing, _ in groups))
    at = np.array([float(b) for b, _, _ in groups])
    apart = np.diff(np.unique(at)).min(initial=at.max() or 1.0)
    width = 0.8 * apart / len(timings)
    for v in range(len(names)):
        for k, timing in enumerate(timings):
            color = _TIMING_COLORS[k % len(_TIMING_COLORS)]
            x, measured, fitted = [], [], []
            for b, (_, own, rows) in zip(at, groups, strict=True):
                if own != timing:
                    continue
                order = rows[np.argsort(-predicted[v, rows])]
                first = b + (k - len(timings) / 2 + 0.1) * width
                x += [*(first + 0.8 * width * np.linspace(0, 1, len(order))), None]
                measured += [*(data[v, order] / S0[v]), None]
                fitted += [*(predicted[v, order] / S0[v]), None]
            common = {"x": x, "visible": v == 0, "legendgroup": timing}
            figure.add_scatter(
                y=measured, name=timing, mode="markers", **common,
                marker={"color": color, "size": 5, "opacity": 0.55},
                hovertemplate="measured %{y:.3f}<extra></extra>",
            )  # fmt: skip
            figure.add_scatter(
                y=fitted, name="fit", showlegend=False, mode="lines", **common,
                line={"color": color, "width": 2}, hovertemplate="fit %{y:.3f}<extra></extra>",
            )  # fmt: skip
    buttons = [
        {
            "label": name, "method": "update",
            "args": [{"visible": list(np.repeat(np.arange(len(names)) == v, 2 * len(timings)))}],
        }
        for v, name in enumerate(names)
    ]  # fmt: skip
    figure.update_layout(updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.2}])
    timed = hasattr(acquisition, "timings")
    figure.update_xaxes(title="b (s/mm^2)" if timed else "measurement", tickvals=np.unique(at))
    figure.update_yaxes(title="signal / S0", rangemode="tozero")
    return _styled(figure, 420, legend={"orientation": "h", "y": -0.2})


def mesh_figure(mesh: InterfaceMesh) -> go.Figure:
    """Walls in 3-D, coloured by probability or permeability; what is unsure is faded."""
    figure = go.Figure()
    permeability = np.log10(np.clip(mesh.permeability, 1e-4, None))
    most = 1.0
    values = []
    for least, opacity, words in _BANDS:
        part = (mesh.wall_probability >= least) & (mesh.wall_probability <= most)
        part &= mesh.wall_probability < most if most < 1 else True
        most = least
        if not part.any():
            continue
        a, b, c = mesh.triangles[part].T
        x, y, z = mesh.vertices_um.astype(np.float32).T
        values.append((mesh.wall_probability[part], permeability[part]))
        figure.add_mesh3d(
            x=x, y=y, z=z, i=a, j=b, k=c, intensity=values[-1][0], intensitymode="cell",
            coloraxis="coloraxis", opacity=opacity, name=words, showlegend=True,
            flatshading=True, hoverinfo="skip",
        )  # fmt: skip
    limits = float(permeability.min()), float(max(permeability.max(), permeability.min() + 0.1))
    by = (
        ("by wall probability", [v[0] for v in values], 0, 1, "probability"),
        ("by permeability", [v[1] for v in values], *limits, "log10 um/ms"),
    )
    buttons = [
        {
            "label": label, "method": "update",
            "args": [{"intensity": shown},
                     {"coloraxis.cmin": low, "coloraxis.cmax": high,
                      "coloraxis.colorbar.title.text": title}],
        }
        for label, shown, low, high, title in by
    ]  # fmt: skip
    axis = {"backgroundcolor": "white", "gridcolor": "#ddd", "nticks": 5}
    _styled(
        figure, 520,
        coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1,
                   "colorbar": {"title": {"text": "probability"}, "thickness": 12}},
        scene={
            "xaxis": axis | {"title": "x (um)"}, "yaxis": axis | {"title": "y (um)"},
            "zaxis": axis | {"title": "z (um)"}, "aspectmode": "data",
            "camera": {"eye": {"x": 1.9, "y": 1.7, "z": 1.0}},
        },
        legend={"orientation": "h", "y": -0.05},
        updatemenus=[{"buttons": buttons, "type": "buttons", "direction": "right", "x": 0,
                      "xanchor": "left", "y": 1.08}],
    )  # fmt: skip
    return figure
