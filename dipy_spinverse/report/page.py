"""A fit as one page for a browser: what was measured, found and left, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dipy_spinverse.report.descriptions import TRUSTED, map_description
from dipy_spinverse.spinverse.fit import AGREEMENT_THRESHOLD
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.status import FITTED, Status

# Voxels by which residuals are judged, and whose signals are drawn.
_MOST_JUDGED = 2000
_MOST_MESHES = 4
_NEEDS = ("plotly", "jinja2")
_FADED = (
    "One wall field, on its periodic grid. Faded parts are unsure: other fields that explain the "
    "signals as well have no wall there. "
)
_PATTERN = _FADED + (
    "The pattern is not determined (fields agree by {:.2f}): this is one of many that explain the "
    "signals."
)
_DETERMINED = _FADED + "Fields agree by {:.2f}."


def check_packages() -> None:
    """Say how to install what a page needs.

    Raises
    ------
    ImportError
    """
    missing = [name for name in _NEEDS if find_spec(name) is None]
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
        What was fitted.
    affine : ndarray (4, 4), optional
        Of the image, for directions and the shape of voxels.
    settings : dict, optional
        Tables of "settings" and "versions" to show.
    mesh_voxels : sequence of tuple of int, optional
        Voxels whose walls are drawn; the first ones that have walls where not given.
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

    from dipy_spinverse.report import plotly_figures as draw
    from dipy_spinverse.report.methods import methods_paragraph

    slices = draw.Slices(fit, np.eye(4) if affine is None else affine)
    paragraph, references = methods_paragraph(fit)
    environment = Environment(
        loader=PackageLoader("dipy_spinverse.report", "."), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    several = int(np.prod(slices.shape)) > 1
    html = environment.get_template("page.html").render(
        title=title or f"{type(fit.model).__name__} fit",
        version=version("dipy_spinverse"),
        plotlyjs=get_plotlyjs(),
        verdict=_verdict(fit),
        acquisition=_acquisition_rows(fit.model.acquisition),
        status=draw.status_rows(fit),
        status_figure=_html(draw.status_figure(fit, slices)) if several else "",
        maps=_map_rows(fit),
        map_figures=[
            (name, map_description(name, fit).meaning, _html(draw.map_figure(fit, name, slices)))
            for name in fit.MAPS
        ]
        if several
        else [],
        left_out=len(slices.shown) < slices.box[2].stop - slices.box[2].start,
        meshes=_meshes(fit, mesh_voxels, draw),
        paragraph=paragraph,
        references=references,
        settings=settings or {},
        **_signals(fit, data, draw),
    )
    Path(path).write_text(html, encoding="utf-8")


def _html(figure):
    return figure.to_html(
        full_html=False, include_plotlyjs=False,
        config={"displaylogo": False, "responsive": True},
    )  # fmt: skip


def _verdict(fit):
    """Whether maps can be trusted, in one sentence; and whether that is bad news."""
    wanted = fit.status[fit.status != Status.NOT_FITTED]
    if wanted.size == 0:
        return "No voxel was asked for.", True
    good = np.isin(wanted, [Status[name] for name in TRUSTED]).sum()
    refuted = (wanted == Status.MISFIT).sum()
    text = f"The model explains {good} of {wanted.size} voxels ({100 * good / wanted.size:.0f} %)."
    if refuted > good:
        text += (
            f" It does not explain {refuted}: maps and intervals of these do not mean what they "
            "say. Compare them between voxels with care, and do not use their intervals."
        )
    return text, bool(good < wanted.size / 2)


def _acquisition_rows(acquisition):
    """Shells of each timing."""
    if not hasattr(acquisition, "timings"):
        return [{"timing": f"{len(acquisition)} images", "shells": "-"}]
    rows = []
    for k, (small, big, te) in enumerate(acquisition.timings):
        own = acquisition.timing_index == k
        b = np.where(acquisition.b0_mask, 0, acquisition.b.round(1))[own]
        shells = ", ".join(
            f"{count} at {1e3 * value:.0f}"
            for value, count in zip(*np.unique(b, return_counts=True), strict=True)
        )
        timing = f"delta {small:.3g}, Delta {big:.3g}, TE {te:.3g} ms"
        rows.append({"timing": timing, "shells": shells})
    return rows


def _map_rows(fit):
    """Each map: unit, meaning, median over voxels that the model explains, width of interval."""
    good = np.isin(fit.status, [Status[name] for name in TRUSTED])
    fitted = good if good.any() else np.isin(fit.status, FITTED)
    rows = []
    for name in fit.MAPS:
        words = map_description(name, fit)
        row = {"name": name, "unit": words.unit, "means": words.meaning, "median": "-",
               "interval": "-"}  # fmt: skip
        if fitted.any():
            ends = [end for end in ("", "_low", "_high") if hasattr(fit, name + end)]
            medians = [float(np.median(getattr(fit, name + end)[fitted])) for end in ends]
            row["median"], *interval = _as_exact_as_the_largest(medians)
            row["interval"] = " to ".join(interval) or "-"
        rows.append(row)
    return rows


def _as_exact_as_the_largest(values):
    """Numbers with the decimals that give the largest three digits: none is written as 1e-07."""
    largest = max(map(abs, values))
    decimals = max(0, 2 - math.floor(math.log10(largest))) if 0 < largest < math.inf else 0
    return [f"{value:.{decimals}f}" for value in values]


def _signals(fit, data, draw):
    """Residuals by group, and signals of voxels from the best to the worst explained."""
    rows = np.argwhere(np.isin(fit.status, FITTED))
    if len(rows) == 0:
        return {"residuals": "", "curves": ""}
    rng = np.random.default_rng(0)
    rows = rows[np.sort(rng.permutation(len(rows))[:_MOST_JUDGED])]
    index = tuple(rows.T)
    n = len(fit.model.acquisition)
    measured = np.stack([np.asarray(data[..., m])[index] for m in range(n)], axis=-1)
    chosen = fit[index]
    predicted, sigma, S0 = chosen.predict(), chosen.sigma, chosen._values["S0_per_te"][:, 0]
    excess = chosen.residual_rms / sigma
    order = np.argsort(excess)
    shown = {
        f"{words}: voxel {tuple(rows[order[place]].tolist())}": order[place]
        for words, place in (
            ("typical", len(order) // 2),
            ("best explained", 0),
            ("worst explained", len(order) - 1),
        )
    }
    at = np.array(list(shown.values()))
    acquisition = fit.model.acquisition
    return {
        "residuals": _html(draw.residual_figure(acquisition, measured, predicted, sigma)),
        "curves": _html(
            draw.signal_figure(acquisition, list(shown), measured[at], predicted[at], S0[at])
        ),
    }


def _meshes(fit, voxels, draw):
    """Figures of the walls, or cells, of some voxels, with what is to be said of each."""
    if hasattr(type(fit), "mesh"):
        shown = np.argwhere(np.isin(fit.status, FITTED))[:_MOST_MESHES].tolist()
        return [
            (tuple(v), "The likeliest shape.", _html(draw.mesh_figure(fit.mesh(tuple(v)))))
            for v in shown
        ]
    if "has_walls" not in fit._values:
        return []
    voxels = list(voxels) or [tuple(v) for v in np.argwhere(fit.has_walls).tolist()]
    found = []
    for voxel in voxels[:_MOST_MESHES]:
        one = fit[voxel]
        if not one.has_walls or Status(int(one.wall_status)).name not in TRUSTED:
            continue
        mesh = fit.interface(voxel, field=0)
        if len(mesh.triangles):
            words = _PATTERN if one.pattern_agreement < AGREEMENT_THRESHOLD else _DETERMINED
            said = words.format(float(one.pattern_agreement))
            found.append((voxel, said, _html(draw.mesh_figure(mesh))))
    return found
