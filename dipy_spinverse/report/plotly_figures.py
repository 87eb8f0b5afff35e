"""Interactive figures of a report by plotly: maps, status, residuals, signals, walls."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from nibabel.orientations import aff2axcodes
from plotly.subplots import make_subplots

from dipy_spinverse.report.descriptions import STATUS_DESCRIPTIONS, map_description
from dipy_spinverse.report.figures import INTERVAL
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
_MAX_VALUES = 1_200_000
_HEIGHT = 350
_MAX_TICKS = 8
# Lower and upper limit of wall probability, opacity, and label in the legend.
_BANDS = (
    (0.8, 1.1, 1.0, "probable (0.8 or more)"),
    (0.5, 0.8, 0.55, "possible (0.5 to 0.8)"),
    (0.0, 0.5, 0.25, "uncertain (below 0.5)"),
)


def _styled(figure, height=_HEIGHT, **layout):
    figure.update_layout(
        template="plotly_white", font=_FONT, height=height,
        margin={"l": 60, "r": 20, "t": 60, "b": 50}, **layout,
    )  # fmt: skip
    return figure


class Slices:
    """Slices of an image, cropped to the mask, and as many as keep the page small."""

    def __init__(self, fit: VoxelFit, affine: np.ndarray):
        self.shape = (*fit.shape, *(1,) * (3 - len(fit.shape)))
        status = fit.status.reshape(self.shape)
        voxels = np.argwhere(status > 0)
        voxels = voxels if len(voxels) else np.zeros((1, 3), dtype=int)
        low, high = voxels.min(axis=0), voxels.max(axis=0)
        self.box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
        self.fitted = np.isin(status, FITTED)
        n_values = 3 * max(len(fit.MAPS), 1) * np.prod(high - low + 1)
        step = int(np.ceil(n_values / _MAX_VALUES))
        self.shown = np.arange(low[2], high[2] + 1, max(step, 1))
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
        """A slider over slices, with one panel for each column."""
        figure = make_subplots(
            1, len(columns), subplot_titles=list(columns), shared_yaxes=True,
            horizontal_spacing=0.03,
        )  # fmt: skip
        x = np.arange(self.box[0].start, self.box[0].stop)
        y = np.arange(self.box[1].start, self.box[1].stop)
        middle = len(self.shown) // 2
        for n in range(len(self.shown)):
            for panel, images in enumerate(columns.values(), start=1):
                figure.add_heatmap(
                    z=images[n], x=x, y=y, coloraxis="coloraxis", visible=n == middle,
                    hovertemplate=f"({self.axes[0][0]}, {self.axes[1][0]}) = (%{{x}}, %{{y}})<br>"
                    f"{hover}<extra></extra>", row=1, col=panel,
                )  # fmt: skip
        for panel in range(1, len(columns) + 1):
            anchor = "x" if panel == 1 else f"x{panel}"
            figure.update_xaxes(title=self.axes[0], constrain="domain", row=1, col=panel)
            figure.update_yaxes(
                scaleanchor=anchor, scaleratio=self.size[1] / self.size[0], constrain="domain",
                row=1, col=panel,
            )  # fmt: skip
        figure.update_yaxes(title=self.axes[1], row=1, col=1)
        # Few ticks, at voxels.
        for update, along in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
            step = max(1, -(-len(along) // _MAX_TICKS))
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
    """A map between the lower and upper limits of its 95 % interval."""
    unit = map_description(name, fit).unit
    unit = "" if unit == "1" else unit
    columns = {
        label: slices.of(getattr(fit, name + suffix))
        for suffix, label in INTERVAL.items()
        if hasattr(fit, name + suffix)
    }
    low, high = _quantiles(columns[INTERVAL[""]], 0.01, 0.99)
    if len(columns) > 1:  # room for the upper limit, but not where it is nearly unbounded
        upper = _quantiles(columns[INTERVAL["_high"]], 0.5, 0.9)[1]
        high = min(max(high, upper), 2 * high if unit else 1.0)
    low = min(low, 0)
    coloraxis = {
        "colorscale": "Viridis", "cmin": low, "cmax": high if high > low else low + 1,
        "colorbar": {"title": unit, "thickness": 12},
    }  # fmt: skip
    return slices.figure(columns, f"%{{z:.4g}} {unit}", coloraxis=coloraxis)


def _quantiles(images, low, high):
    values = np.concatenate([image.ravel() for image in images])
    values = values[np.isfinite(values)]
    return np.quantile(values, [low, high]) if values.size else (0.0, 1.0)


def status_figure(fit: VoxelFit, slices: Slices) -> go.Figure:
    """Status of each voxel."""
    n = len(Status)
    scale = [[(k + step) / n, STATUS_COLORS[k]] for k in range(n) for step in (0, 1)]
    coloraxis = {"colorscale": scale, "cmin": -0.5, "cmax": n - 0.5, "showscale": False}
    columns = {"": slices.of(fit.status, fitted_only=False)}
    return slices.figure(columns, "status %{z}", coloraxis=coloraxis)


def status_rows(fit: VoxelFit) -> list[dict[str, Any]]:
    """Number of voxels and meaning of each status."""
    codes, counts = np.unique(fit.status, return_counts=True)
    return [
        {
            "name": Status(code).name, "color": STATUS_COLORS[code], "voxels": int(count),
            "meaning": STATUS_DESCRIPTIONS[Status(code).name],
        }
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
    ]  # fmt: skip


def shells(acquisition: Any) -> list[tuple[str, str, np.ndarray]]:
    """b (s/mm^2), timing and measurements of each shell of each timing."""
    if not hasattr(acquisition, "timings"):
        return [(f"{k + 1}", "measurement", np.array([k])) for k in range(len(acquisition))]
    groups = []
    for k, (small, big, te) in enumerate(acquisition.timings):
        timing = f"delta {small:.3g}, Delta {big:.3g}, TE {te:.3g} ms"
        rows = np.flatnonzero(acquisition.timing_index == k)
        b = np.where(acquisition.b0_mask[rows], 0, acquisition.b[rows].round(1))
        groups += [(f"{1e3 * value:.0f}", timing, rows[b == value]) for value in np.unique(b)]
    return groups


def shells_by_timing(acquisition: Any) -> dict[str, str]:
    """Numbers of measurements and their b, for each timing."""
    if not hasattr(acquisition, "timings"):
        return {f"{len(acquisition)} images": "-"}
    texts: dict[str, list[str]] = {}
    for b, timing, rows in shells(acquisition):
        texts.setdefault(timing, []).append(f"{len(rows)} at {b}")
    return {timing: ", ".join(text) for timing, text in texts.items()}


def _label_b_axis(figure, acquisition, **style):
    timed = hasattr(acquisition, "timings")
    figure.update_xaxes(title="b (s/mm^2)" if timed else "measurement", **style)


def residual_figure(
    acquisition: Any, data: np.ndarray, predicted: np.ndarray, sigma: np.ndarray
) -> go.Figure:
    """Residual over the noise by shell and timing, with an expected value of 1."""
    figure, colors = go.Figure(), dict[str, str]()
    residual = (data - predicted) / sigma[:, None] * np.sqrt(acquisition.n_averages)
    for b, timing, rows in shells(acquisition):
        rms = np.sqrt((residual[:, rows] ** 2).mean(axis=1))
        low, median, high = np.quantile(rms, [0.1, 0.5, 0.9])
        is_new = timing not in colors
        color = colors.setdefault(timing, _TIMING_COLORS[len(colors) % len(_TIMING_COLORS)])
        figure.add_bar(
            x=[b], y=[median], name=timing, legendgroup=timing, marker_color=color,
            showlegend=is_new, offsetgroup=timing, opacity=0.75,
            error_y={"array": [high - median], "arrayminus": [median - low], "thickness": 1.2,
                     "color": "#222"},
            hovertemplate=f"b {b} s/mm^2, {timing}<br>{len(rows)} volumes<br>"
            "%{y:.2f} of the noise<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=1, line={"dash": "dot", "color": "#555"}, annotation_text="noise")
    _label_b_axis(figure, acquisition, type="category")
    figure.update_yaxes(title="residual / noise", rangemode="tozero")
    return _styled(figure, barmode="group", legend={"orientation": "h", "y": 1.18})


def signal_figure(
    acquisition: Any, names: list[str], data: np.ndarray, predicted: np.ndarray, S0: np.ndarray
) -> go.Figure:
    """Measured and predicted signals over b; directions of a shell in order of the predicted."""
    figure, groups = go.Figure(), shells(acquisition)
    timings = list(dict.fromkeys(timing for _, timing, _ in groups))
    b_values = np.unique([float(b) for b, _, _ in groups])
    gap = np.diff(b_values).min(initial=b_values.max() or 1.0)
    width = 0.8 * gap / len(timings)
    for v in range(len(names)):
        for k, timing in enumerate(timings):
            color = _TIMING_COLORS[k % len(_TIMING_COLORS)]
            x, measured, fitted = [], [], []
            for b, rows in ((b, rows) for b, other, rows in groups if other == timing):
                order = rows[np.argsort(-predicted[v, rows])]
                x_start = float(b) + (k - len(timings) / 2 + 0.1) * width
                x += [*(x_start + 0.8 * width * np.linspace(0, 1, len(order))), None]
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
    figure.update_layout(updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.2}])
    _label_b_axis(figure, acquisition, tickvals=b_values)
    figure.update_yaxes(title="signal / S0", rangemode="tozero")
    return _styled(figure, 420, legend={"orientation": "h", "y": -0.2})


def mesh_figure(mesh: InterfaceMesh) -> go.Figure:
    """Walls in 3-D, coloured by their probability; uncertain parts are transparent."""
    figure = go.Figure()
    x, y, z = mesh.vertices_um.astype(np.float32).T
    for low, high, opacity, label in _BANDS:
        faces = (mesh.wall_probability >= low) & (mesh.wall_probability < high)
        if not faces.any():
            continue
        a, b, c = mesh.triangles[faces].T
        figure.add_mesh3d(
            x=x, y=y, z=z, i=a, j=b, k=c, intensity=mesh.wall_probability[faces],
            intensitymode="cell", coloraxis="coloraxis", opacity=opacity, name=label,
            showlegend=True, flatshading=True, hoverinfo="skip",
        )  # fmt: skip
    axis = {"backgroundcolor": "white", "gridcolor": "#ddd", "nticks": 5}
    return _styled(
        figure, 520,
        coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1,
                   "colorbar": {"title": {"text": "probability"}, "thickness": 12}},
        scene={
            "xaxis": axis | {"title": "x (um)"}, "yaxis": axis | {"title": "y (um)"},
            "zaxis": axis | {"title": "z (um)"}, "aspectmode": "data",
            "camera": {"eye": {"x": 1.9, "y": 1.7, "z": 1.0}},
        },
        legend={"orientation": "h", "y": -0.05},
    )  # fmt: skip
