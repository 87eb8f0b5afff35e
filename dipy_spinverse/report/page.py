"""A fit as one HTML page: status, maps with intervals, residuals, signals, walls, methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dipy_spinverse.report.descriptions import map_description
from dipy_spinverse.spinverse.fit import AGREEMENT_THRESHOLD
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.outliers import volumes_with_outliers
from dipy_spinverse.voxels.status import FITTED, USABLE, Status

_MAX_RESIDUAL_VOXELS = 2000  # a random sample of the image; limits the time
_MAX_MESHES = 4  # limit the size of the page
# Voxels of which a shared residual is computed, standard errors that make that of a shell
# significant among a hundred, and shells that are listed; chosen by hand.
_LEAST_SHARING, _SIGNIFICANT, _MAX_SHARING = 8, 4.0, 8
_SAMPLE = (
    "One posterior sample of the walls, on its periodic grid. Transparent parts are uncertain: "
    "other samples that explain the signals as well have no wall there. "
)
_PATTERN_UNKNOWN = _SAMPLE + (
    "The pattern is not determined (samples agree by {:.2f}): this is one of many that explain "
    "the signals."
)
_PATTERN_KNOWN = _SAMPLE + "Samples agree by {:.2f}."


def check_packages() -> None:
    """ImportError that says how to install what a page needs, where it is missing."""
    missing = [name for name in ("plotly", "jinja2") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"report needs {' and '.join(missing)}: pip install dipy_spinverse[report]."
        )


def save_page(
    fit: VoxelFit,
    path: str | Path,
    data: Any,
    *,
    affine: np.ndarray | None = None,
    settings: dict[str, Any] | None = None,
    mesh_voxels: Sequence[tuple[int, ...]] = (),
    title: str | None = None,
) -> None:
    """Write a page about a fit, which needs no network and no other file.

    Parameters
    ----------
    fit : VoxelFit
    path : path
        Of the ``.html`` file.
    data : array-like (..., M)
        The fitted signals.
    affine : ndarray (4, 4), optional
        Of the image, for directions and the shape of voxels.
    settings : dict, optional
        Tables of "settings" and "versions" to show.
    mesh_voxels : sequence of tuple of int, optional
        Voxels whose walls are drawn; by default the first ones that have walls.
    title : str, optional

    Raises
    ------
    ImportError
        Without plotly and jinja2: ``pip install dipy_spinverse[report]``.

    Examples
    --------
    >>> save_page(fit, "report.html", data)  # doctest: +SKIP
    """
    check_packages()
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    from dipy_spinverse.report import plotly_figures
    from dipy_spinverse.report.methods import methods_paragraph

    slices = plotly_figures.Slices(fit, np.eye(4) if affine is None else affine)
    environment = Environment(
        loader=PackageLoader("dipy_spinverse.report", "."), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    is_image = int(np.prod(slices.shape)) > 1
    shown_maps = fit.MAPS if is_image else ()
    html = environment.get_template("page.html").render(
        title=title or f"{type(fit.model).__name__} fit",
        version=version("dipy_spinverse"),
        plotlyjs=get_plotlyjs(),
        verdict=_verdict(fit),
        timings=plotly_figures.shells_by_timing(fit.model.acquisition),
        status=plotly_figures.status_rows(fit),
        volumes=volumes_with_outliers(fit._values.get("outliers", np.zeros((0, 0), dtype=bool))),
        status_figure=_html(plotly_figures.status_figure(fit, slices)) if is_image else "",
        maps=_map_rows(fit),
        map_figures=[
            (name, _html(plotly_figures.map_figure(fit, name, slices))) for name in shown_maps
        ],
        slices_skipped=len(slices.shown) < slices.box[2].stop - slices.box[2].start,
        meshes=_meshes(fit, mesh_voxels),
        methods=methods_paragraph(fit),
        settings=settings or {},
        **_signal_figures(fit, data),
    )
    Path(path).write_text(html, encoding="utf-8", errors="backslashreplace")  # names of files


def _html(figure):
    return figure.to_html(
        full_html=False, include_plotlyjs=False,
        config={"displaylogo": False, "responsive": True},
    )  # fmt: skip


def _verdict(fit):
    """How many voxels the model explains, in a sentence; and whether it is less than half."""
    n_voxels = np.count_nonzero(fit.status != Status.NOT_FITTED)
    if n_voxels == 0:
        return "No voxel was selected.", True
    misfits = fit.status == Status.MISFIT
    n_explained, n_usable = (fit.usable & ~misfits).sum(), fit.usable.sum()
    share = 100 * n_explained / n_voxels
    text = f"The model explains {n_explained} of {n_voxels} voxels ({share:.0f} %)."
    if n_usable > n_explained:
        text += (
            f" In {n_usable - n_explained} more, the scan or its noise causes the misfit: the "
            "model predicts measurements that are left out as well as a model-free description "
            "does. Their intervals include the systematic error and can be used."
        )
    missed = misfits & ~fit.usable
    if missed.any():
        size = ""
        if "misfit_percent" in fit._values:
            size = f" by {np.median(fit.misfit_percent[missed]):.2g} % of S0 (median)"
        text += (
            f" It misses the signals of {missed.sum()} voxels{size}: their maps may be biased by "
            "more than their intervals. Compare them between voxels with care."
        )
    return text, bool(n_usable < n_voxels / 2)


def _map_rows(fit):
    """Unit, meaning, median over voxels that the model explains, typical interval of maps, and
    percent of voxels in which they are prior-dominated."""
    rows, voxels, prior = [], fit.usable, fit.prior_dominated_percent()
    voxels = voxels if voxels.any() else np.isin(fit.status, FITTED)
    for name in fit.MAPS:
        unit, meaning = map_description(name, fit)
        row = {"name": name, "unit": unit, "meaning": meaning, "median": "-", "interval": "-"}
        if voxels.any():
            maps = [getattr(fit, name + suffix, None) for suffix in ("", "_low", "_high")]
            medians = [float(np.median(values[voxels])) for values in maps if values is not None]
            row["median"], *interval = _to_common_decimals(medians)
            row["interval"] = " to ".join(interval) or "-"
        row["prior"] = f"{prior[name]:.0f} %" if name in prior else ""
        rows.append(row)
    return rows


def _to_common_decimals(values):
    """Numbers with the decimals that give the largest three digits: none is written as 1e-07."""
    largest = max(map(abs, values))
    decimals = max(0, 2 - math.floor(math.log10(largest))) if 0 < largest < math.inf else 0
    return [f"{value:.{decimals}f}" for value in values]


def _signal_figures(fit, data):
    """Residuals by shell, and signals of the voxels of median, least and largest residual."""
    from dipy_spinverse.report.plotly_figures import residual_figure, signal_figure

    rows = np.argwhere(np.isin(fit.status, FITTED))
    if len(rows) == 0:
        return {"residuals": "", "signals": "", "shared": 0.0, "shared_shells": []}
    rng = np.random.default_rng(0)
    rows = rows[np.sort(rng.permutation(len(rows))[:_MAX_RESIDUAL_VOXELS])]
    index, acquisition = tuple(rows.T), fit.model.acquisition
    measured = np.stack(
        [np.asarray(data[..., m])[index] for m in range(len(acquisition))], axis=-1
    )
    voxels = fit[index]
    predicted, S0 = voxels.predict(), voxels._values["S0_per_te"][:, 0]
    order = np.argsort(voxels.residual_rms / voxels.sigma)
    ranks = {"typical": len(order) // 2, "best explained": 0, "worst explained": -1}
    k = order[list(ranks.values())]
    names = [f"{name}: voxel {tuple(rows[i].tolist())}" for name, i in zip(ranks, k, strict=True)]
    curves = signal_figure(acquisition, names, measured[k], predicted[k], S0[k])
    residuals = residual_figure(acquisition, measured, predicted, voxels.sigma)
    shared, shells = shared_residual(acquisition, (measured - predicted) / S0[:, None])
    return {
        "residuals": _html(residuals), "signals": _html(curves), "shared": shared,
        "shared_shells": shells,
    }  # fmt: skip


def shared_residual(
    acquisition: Any, residual: np.ndarray
) -> tuple[float, list[tuple[str, str, float]]]:
    """Share of the square of residuals (V, M) that all voxels have in common.

    And the b, timing and mean residual of the shells where the mean over voxels is significant,
    the largest first. What tissue leaves differs between voxels; what they share is of the scan.
    """
    n = len(residual)
    if n < _LEAST_SHARING:
        return 0.0, []
    mean, variance = residual.mean(axis=0), residual.var(axis=0, ddof=1)
    share = (mean**2 - variance / n).sum() / np.maximum((residual**2).mean(axis=0).sum(), 1e-300)
    from dipy_spinverse.report.plotly_figures import shells

    rows = []
    for b, timing, members in shells(acquisition):
        of_shell = residual[:, members].mean(axis=1)
        if abs(of_shell.mean()) > _SIGNIFICANT * of_shell.std() / np.sqrt(n):
            rows.append((b, timing, float(of_shell.mean())))
    rows.sort(key=lambda row: -abs(row[2]))
    return max(float(share), 0.0), rows[:_MAX_SHARING]


def _meshes(fit, voxels):
    """Voxel, caption and figure of the walls, or cells, of some voxels."""
    from dipy_spinverse.report.plotly_figures import mesh_figure

    if hasattr(type(fit), "mesh"):
        voxels = map(tuple, np.argwhere(np.isin(fit.status, FITTED))[:_MAX_MESHES].tolist())
        return [(v, "The most probable shape.", _html(mesh_figure(fit.mesh(v)))) for v in voxels]
    if "has_walls" not in fit._values:
        return []
    voxels = list(voxels) or [tuple(v) for v in np.argwhere(fit.has_walls).tolist()]
    figures = []
    for voxel in voxels[:_MAX_MESHES]:
        voxel_fit = fit[voxel]
        if not voxel_fit.has_walls or voxel_fit.wall_status not in USABLE:
            continue
        mesh, agreement = fit.interface(voxel, field=0), float(voxel_fit.pattern_agreement)
        if len(mesh.triangles):
            caption = _PATTERN_UNKNOWN if agreement < AGREEMENT_THRESHOLD else _PATTERN_KNOWN
            figures.append((voxel, caption.format(agreement), _html(mesh_figure(mesh))))
    return figures
