"""A fit as one HTML page: status, maps with intervals, residuals, signals, walls, methods."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dipy_spinverse.report import check_packages
from dipy_spinverse.report.descriptions import STATUS_DESCRIPTIONS
from dipy_spinverse.report.meshes import drawn_as_cells
from dipy_spinverse.report.summary import map_rows
from dipy_spinverse.spinverse.fit import AGREEMENT_THRESHOLD
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.outliers import volumes_with_outliers
from dipy_spinverse.voxels.rician import rician_mean
from dipy_spinverse.voxels.status import FITTED, USABLE, Status

_MAX_RESIDUAL_VOXELS = 2000  # a random sample of the image; limits the time
_MAX_MESHES, _MAX_SAMPLES = 4, 3  # limit the size of the page
# Voxels of which a shared residual is computed, standard errors that make that of a shell
# significant among a hundred, and shells that are listed; chosen by hand.
_LEAST_SHARING, _SIGNIFICANT, _MAX_SHARING = 8, 4.0, 8
_MOSTLY = 0.9  # share of explained voxels from which the headline is green; by hand
_PATTERN_UNKNOWN = (
    "One posterior sample of the walls, on its periodic grid. The pattern is not determined "
    "(samples agree by {:.2f}): this is one of many that explain the signals."
)
_SAMPLES = (
    "Cells with the parameters of posterior samples: their sizes, density and permeability "
    "explain the signals; their positions are drawn at random, as signals hardly determine them."
)
_PATTERN_KNOWN = (
    "One posterior sample of the walls, on its periodic grid. Transparent parts are uncertain: "
    "other samples that explain the signals as well have no wall there. Samples agree by {:.2f}."
)


def save_page(
    fit: VoxelFit,
    path: str | Path,
    data: Any,
    *,
    affine: np.ndarray | None = None,
    settings: dict[str, Any] | None = None,
    mesh_voxels: Sequence[tuple[int, ...]] = (),
    background: np.ndarray | None = None,
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
    background : ndarray (...), optional
        Image below the maps, by default the mean signal without diffusion weighting.
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
    from plotly.colors import sequential
    from plotly.offline import get_plotlyjs

    from dipy_spinverse.report import plotly_figures
    from dipy_spinverse.report.methods import methods_paragraph
    from dipy_spinverse.report.viewer import viewer_volumes

    about, volumes = viewer_volumes(fit, data, np.eye(4) if affine is None else affine, background)
    about |= {
        "colours": sequential.Viridis, "status_colours": plotly_figures.STATUS_COLORS,
        "status_names": [status.name for status in Status],
    }  # fmt: skip
    environment = Environment(
        loader=PackageLoader("dipy_spinverse.report", "."), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("page.html").render(
        title=title or f"{type(fit.model).__name__} fit",
        version=version("dipy_spinverse"),
        plotly=_packed(get_plotlyjs().encode()),
        verdict=_verdict(fit),
        timings=plotly_figures.shells_by_timing(fit.model.acquisition),
        status=plotly_figures.status_rows(fit),
        outliers=volumes_with_outliers(fit._values.get("outliers", np.zeros((0, 0), dtype=bool))),
        maps=map_rows(fit),
        prior=_prior_dominated_percent(fit),
        about=_json(about),
        volumes=_packed(volumes),
        slices_skipped=about["slices_skipped"],
        meshes=_meshes(fit, mesh_voxels),
        methods=methods_paragraph(fit),
        settings=settings or {},
        **_signal_figures(fit, data),
    )
    Path(path).write_text(html, encoding="utf-8", errors="backslashreplace")  # names of files


def _packed(content):
    """Bytes as text, compressed."""
    return base64.b64encode(gzip.compress(content)).decode()


def _json(content):
    """JSON, or a text of it, that does not end a script."""
    text = content if isinstance(content, str) else json.dumps(content)
    return text.replace("</", "<\\/")


def _html(figure):
    """A place for a figure, which page.js draws, and the figure."""
    text = _json(figure.to_json())
    return f'<div class="figure"></div><script type="application/json">{text}</script>'


def _verdict(fit):
    """What the model explains, in sentences, and "good", "partly" or "bad" by all statuses."""
    n_voxels = np.count_nonzero(fit.status != Status.NOT_FITTED)
    if n_voxels == 0:
        return "No voxel was selected.", "bad"
    explained = np.count_nonzero(np.isin(fit.status, USABLE))
    percent = math.floor(1000 * explained / n_voxels) / 10  # 100 only if all are
    text = f"The model explains {explained} of {n_voxels} voxels ({percent:g} %)."
    misfit, usable = fit.status == Status.MISFIT, explained
    of_scan = misfit & fit.usable
    missed = misfit & ~of_scan
    if of_scan.any():
        usable += of_scan.sum()
        text += (
            f" In {of_scan.sum()} more, the scan or its noise causes the misfit: the model "
            "predicts measurements that are left out as well as a model-free description does. "
            "Their intervals include the systematic error and can be used."
        )
    if missed.any():
        size = ""
        if "misfit_percent" in fit._values:
            size = f", which it misses by {np.median(fit.misfit_percent[missed]):.2g} % of S0"
        text += (
            f" It does not explain the signals of {missed.sum()}{size}: their maps may be biased "
            "by more than their intervals."
        )
    for status in Status:
        count = np.count_nonzero(fit.status == status)
        if status not in (*USABLE, Status.NOT_FITTED, Status.MISFIT) and count:
            text += f" {count}: {STATUS_DESCRIPTIONS[status.name]} ({status.name})."
    usable += np.count_nonzero(fit.status == Status.TISSUES_NOT_SEPARATED)
    if explained >= _MOSTLY * n_voxels:
        return text, "good"
    return text, "partly" if 2 * usable >= n_voxels else "bad"


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
    if getattr(fit.model, "likelihood", "rician") == "rician" and measured.min() >= 0:
        predicted = rician_mean(predicted, voxels.sigma[:, None])
    order = np.argsort(voxels.residual_rms / voxels.sigma)
    ranks = {"typical": len(order) // 2, "best explained": 0, "worst explained": -1}
    k = order[list(ranks.values())]
    names = [
        f"{name}: voxel {', '.join(map(str, rows[i]))}" for name, i in zip(ranks, k, strict=True)
    ]
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
    from dipy_spinverse.report.plotly_figures import shells

    n = len(residual)
    if n < _LEAST_SHARING:
        return 0.0, []
    mean, variance = residual.mean(axis=0), residual.var(axis=0, ddof=1)
    share = (mean**2 - variance / n).sum() / np.maximum((residual**2).mean(axis=0).sum(), 1e-300)
    rows = []
    for b, timing, members in shells(acquisition):
        of_shell = residual[:, members].mean(axis=1)
        if abs(of_shell.mean()) > _SIGNIFICANT * of_shell.std() / np.sqrt(n):
            rows.append((b, timing, float(of_shell.mean())))
    rows.sort(key=lambda row: -abs(row[2]))
    return max(float(share), 0.0), rows[:_MAX_SHARING]


def _prior_dominated_percent(fit):
    """Of each map with intervals whose prior is known, also 0."""
    judged = [n for n in fit.MAPS if n in fit.model.prior_maps and f"{n}_low" in fit._values]
    return dict.fromkeys(judged, 0.0) | fit.prior_dominated_percent()


def _meshes(fit, voxels):
    """Voxel, caption and figure of the walls, or cells, of some voxels."""
    from dipy_spinverse.report.plotly_figures import mesh_figure, samples_figure

    if hasattr(type(fit), "mesh"):
        voxels = map(tuple, np.argwhere(np.isin(fit.status, FITTED))[:_MAX_MESHES].tolist())
        return [(v, "The most probable shape.", _html(mesh_figure(fit.mesh(v)))) for v in voxels]
    if "has_walls" not in fit._values:
        return []
    voxels = list(voxels) or [tuple(v) for v in np.argwhere(fit.has_walls).tolist()]
    drawn, figures = [], []
    for voxel in voxels[:_MAX_MESHES]:
        voxel_fit = fit[voxel]
        if not voxel_fit.has_walls or voxel_fit.wall_status not in USABLE:
            continue
        if drawn_as_cells(voxel_fit):
            numbers = range(1, 1 + len(voxel_fit.permeability_fields))[:_MAX_SAMPLES] or [0]
            samples = [fit.interface(voxel, sample=k) for k in numbers]
            in_spheres = voxel_fit.field_bodies[list(numbers), 0].astype(bool)
            titles = [f"sample {k}" if k else "most probable" for k in numbers]
            for i, mesh in enumerate(samples):
                titles[i] += "" if len(mesh.triangles) else ": no cells"
            html = _html(samples_figure(samples, in_spheres, titles))
            figures.append((voxel, _SAMPLES, html))
            continue
        mesh, agreement = fit.interface(voxel, field=0), float(voxel_fit.pattern_agreement)
        if len(mesh.triangles):
            drawn.append((voxel, mesh, agreement))
    largest = max((float(mesh.permeability.max()) for _, mesh, _ in drawn), default=1.0)
    for voxel, mesh, agreement in drawn:
        known = agreement >= AGREEMENT_THRESHOLD
        caption = (_PATTERN_KNOWN if known else _PATTERN_UNKNOWN).format(agreement)
        figures.append((voxel, caption, _html(mesh_figure(mesh, None if known else largest))))
    return figures
