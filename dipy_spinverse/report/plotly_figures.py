"""Interactive figures of a report by plotly: residuals, signals, walls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from dipy_spinverse.report.descriptions import STATUS_DESCRIPTIONS
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.status import Status
from dipy_spinverse.walls.interface import PERMEABILITY_SCALE, InterfaceMesh

STATUS_COLORS = (
    "#e5e7eb", "#2a7f62", "#d9a441", "#b5483a", "#6b7280", "#9ca3af", "#4b5563", "#5b8fc9",
    "#8f6bb3",
)  # fmt: skip
_TIMING_COLORS = (
    "#0d3b66", "#d1495b", "#2a9d8f", "#e09f3e", "#6d597a", "#118ab2", "#7f5539", "#588157",
)  # fmt: skip
_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13}
_HEIGHT = 350
# Shells beside each other, and timings that are shown at first, in figures of signals; by hand.
_MAX_SHELLS, _MAX_TIMINGS = 15, 8
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


def shells_by_timing(acquisition: Any) -> tuple[str, dict[str, str]]:
    """All measurements in a line; their numbers and b for each timing."""
    n = len(acquisition)
    if not hasattr(acquisition, "timings"):
        return f"{n} images.", {}
    texts: dict[str, list[str]] = {}
    groups = shells(acquisition)
    for b, timing, rows in groups:
        texts.setdefault(timing, []).append(f"{len(rows)} at {b}")
    largest = 1e3 * acquisition.b.max()
    line = f"{n} volumes, {len(groups)} shells of {len(texts)} timings, b to {largest:.0f} s/mm^2."
    return line, {timing: ", ".join(text) for timing, text in texts.items()}


def _label_b_axis(figure, acquisition, **style):
    timed = hasattr(acquisition, "timings")
    figure.update_xaxes(title="b (s/mm^2)" if timed else "measurement", **style)


def residual_figure(
    acquisition: Any, data: np.ndarray, predicted: np.ndarray, sigma: np.ndarray
) -> go.Figure:
    """Residual over the noise by shell and timing, with an expected value of 1."""
    figure, colors, groups = go.Figure(), dict[str, str](), shells(acquisition)
    many = len({b for b, _, _ in groups}) > _MAX_SHELLS  # then dots at their b
    residual = (data - predicted) / sigma[:, None] * np.sqrt(acquisition.n_averages)
    for b, timing, rows in groups:
        rms = np.sqrt((residual[:, rows] ** 2).mean(axis=1))
        low, median, high = np.quantile(rms, [0.1, 0.5, 0.9])
        is_new = timing not in colors
        color = colors.setdefault(timing, _TIMING_COLORS[len(colors) % len(_TIMING_COLORS)])
        add = figure.add_scatter if many else figure.add_bar
        add(
            x=[b], y=[median], name=timing, legendgroup=timing, marker_color=color,
            showlegend=is_new and len(colors) <= _MAX_TIMINGS, opacity=0.75,
            **({} if many else {"offsetgroup": timing}),
            error_y={"array": [high - median], "arrayminus": [median - low], "thickness": 1.2,
                     "color": "#222"},
            hovertemplate=f"b {b} s/mm^2, {timing}<br>{len(rows)} volumes<br>"
            "%{y:.2f} of the noise<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=1, line={"dash": "dot", "color": "#555"}, annotation_text="noise")
    _label_b_axis(figure, acquisition, type="linear" if many else "category")
    figure.update_yaxes(title="residual / noise", rangemode="tozero")
    return _styled(figure, barmode="group", legend={"orientation": "h", "y": -0.35})


def signal_figure(
    acquisition: Any, names: list[str], data: np.ndarray, predicted: np.ndarray, S0: np.ndarray
) -> go.Figure:
    """Measured and predicted signals over b; directions of a shell in order of the predicted."""
    figure, groups = go.Figure(), shells(acquisition)
    timings = list(dict.fromkeys(timing for _, timing, _ in groups))
    b_values = np.unique([float(b) for b, _, _ in groups])
    gap = np.diff(b_values).min(initial=b_values.max() or 1.0)
    width = 0.8 * gap / len(timings)
    many = len(b_values) > _MAX_SHELLS  # then at their b
    shown = [True if k < _MAX_TIMINGS else "legendonly" for k in range(len(timings))]
    for v in range(len(names)):
        for k, timing in enumerate(timings):
            color = _TIMING_COLORS[k % len(_TIMING_COLORS)]
            x, measured, fitted = [], [], []
            for b, rows in ((b, rows) for b, other, rows in groups if other == timing):
                order = rows[np.argsort(-predicted[v, rows])]
                x_start = float(b) + (k - len(timings) / 2 + 0.1) * width
                beside = x_start + 0.8 * width * np.linspace(0, 1, len(order))
                x += [*(np.full(len(order), float(b)) if many else beside), None]
                measured += [*(data[v, order] / S0[v]), None]
                fitted += [*(predicted[v, order] / S0[v]), None]
            common = {"x": x, "visible": shown[k] if v == 0 else False, "legendgroup": timing}
            figure.add_scatter(
                y=measured, name=timing, mode="markers", **common,
                marker={"color": color, "size": 5, "opacity": 0.55},
                hovertemplate="measured %{y:.3f}<extra></extra>",
            )  # fmt: skip
            figure.add_scatter(
                y=fitted, name="fit", showlegend=False, mode="markers" if many else "lines",
                marker={"symbol": "line-ew-open", "size": 9}, line={"color": color, "width": 2},
                marker_color=color, hovertemplate="fit %{y:.3f}<extra></extra>", **common,
            )  # fmt: skip
    buttons = [
        {
            "label": name, "method": "update",
            "args": [{"visible": [
                state if u == v else False for u in range(len(names)) for state in shown
                for _ in range(2)
            ]}],
        }
        for v, name in enumerate(names)
    ]  # fmt: skip
    figure.update_layout(updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.2}])
    _label_b_axis(figure, acquisition, **({} if many else {"tickvals": b_values}))
    figure.update_yaxes(title="signal / S0", rangemode="tozero")
    return _styled(figure, 420, legend={"orientation": "h", "y": -0.2})


def samples_figure(
    meshes: Sequence[InterfaceMesh], in_spheres: Sequence[bool], titles: Sequence[str]
) -> go.Figure:
    """Cells of posterior samples side by side at one scale, coloured by their permeability."""
    n = len(meshes)
    figure = make_subplots(
        1, n, specs=[[{"type": "scene"}] * n], subplot_titles=titles, horizontal_spacing=0.01
    )
    reach = max(float(np.abs(mesh.vertices_um).max(initial=1e-3)) for mesh in meshes)
    length = 10 ** np.floor(np.log10(reach)) * np.array([1, 2, 5])
    bar = float(length[length <= reach].max())
    low, high = (np.log10(value) for value in PERMEABILITY_SCALE)
    log_permeability = np.log10([mesh.permeability.max(initial=1e-5) for mesh in meshes])
    shares = ((log_permeability - low) / (high - low)).clip(0, 1)
    colours = sample_colorscale("YlOrRd", shares.tolist())
    for k, mesh in enumerate(meshes):
        x, y, z = mesh.vertices_um.astype(np.float32).T
        a, b, c = mesh.triangles.astype(np.uint16 if len(x) < 2**16 else np.uint32).T
        figure.add_mesh3d(
            x=x, y=y, z=z, i=a, j=b, k=c, color=colours[k], hoverinfo="skip",
            flatshading=not in_spheres[k], row=1, col=k + 1,
        )  # fmt: skip
        # The bar; its markers have the colour scale, which meshes of one colour have not.
        figure.add_scatter3d(
            x=[-bar / 2, 0, bar / 2], y=[-reach] * 3, z=[-reach] * 3,
            mode="lines+markers+text", text=["", f"{bar:g} um", ""], hoverinfo="skip",
            textposition="bottom center", line={"color": "black", "width": 6}, showlegend=False,
            marker={"color": [low, low, high], "coloraxis": "coloraxis", "size": 1},
            row=1, col=k + 1,
        )  # fmt: skip
    axis = {"visible": False, "range": [-1.15 * reach, 1.15 * reach]}
    figure.update_scenes(
        xaxis=axis, yaxis=axis, zaxis=axis, aspectmode="cube",
        camera={"eye": {"x": 0.5, "y": -1.7, "z": 0.8}},
    )  # fmt: skip
    ticks = np.arange(low, high + 0.5)
    return _styled(
        figure, 380,
        coloraxis={"colorscale": "YlOrRd", "cmin": low, "cmax": high,
                   "colorbar": {"title": {"text": "permeability (um/ms)"}, "thickness": 12,
                                "tickvals": ticks, "ticktext": [f"{10**t:g}" for t in ticks]}},
    )  # fmt: skip


def mesh_figure(mesh: InterfaceMesh, largest: float | None = None) -> go.Figure:
    """Walls in 3-D, by their probability and transparent where uncertain.

    Or by permeability from 0 to the `largest` on the scale, where the pattern is not determined
    and probabilities are low everywhere.
    """
    figure, known = go.Figure(), largest is None
    # Of a cell, whose surface is certain, the colours say nothing.
    scaled = not known or bool(mesh.wall_probability.min() < _BANDS[0][0])
    x, y, z = mesh.vertices_um.astype(np.float32).T
    value = mesh.wall_probability if known else mesh.permeability
    bands = _BANDS if known else ((0.0, np.inf, 1.0, ""),)
    for low, high, opacity, label in bands:
        faces = (mesh.wall_probability >= low) & (mesh.wall_probability < high)
        if not faces.any():
            continue
        a, b, c = mesh.triangles[faces].T
        figure.add_mesh3d(
            x=x, y=y, z=z, i=a, j=b, k=c, intensity=value[faces],
            intensitymode="cell", coloraxis="coloraxis", opacity=opacity, name=label,
            showlegend=known and scaled, flatshading=True, hoverinfo="skip",
        )  # fmt: skip
    axis = {"backgroundcolor": "white", "gridcolor": "#ddd", "nticks": 5}
    return _styled(
        figure, 520,
        coloraxis={"showscale": scaled, "colorscale": "Viridis" if known else "YlOrRd", "cmin": 0,
                   "cmax": 1 if known else largest,
                   "colorbar": {"title": {"text": "probability" if known else
                                          "permeability (um/ms)"},
                                "exponentformat": "none", "thickness": 12}},
        scene={
            "xaxis": axis | {"title": "x (um)"}, "yaxis": axis | {"title": "y (um)"},
            "zaxis": axis | {"title": "z (um)"}, "aspectmode": "data",
            "camera": {"eye": {"x": 1.5, "y": 1.35, "z": 0.8}},
        },
        legend={"orientation": "h", "y": -0.05},
    )  # fmt: skip
