"""A fit in few words: voxels of each status, maps with units; and all voxels as a table."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from dipy.utils.optpkg import optional_package

from dipy_spinverse.report.descriptions import STATUS_DESCRIPTIONS, map_description
from dipy_spinverse.report.images import MAP_SUFFIXES
from dipy_spinverse.voxels.status import FITTED, Status

if TYPE_CHECKING:
    from dipy_spinverse.voxels.fit import VoxelFit
    from dipy_spinverse.voxels.model import VoxelModel

_HEAD = ("map", "unit", "median", "95 % interval", "meaning")


def status_counts(fit: VoxelFit) -> list[tuple[str, int]]:
    """Name and number of voxels of each status that occurs in the mask."""
    counts = [(status.name, int(np.sum(fit.status == status))) for status in Status]
    return [(name, count) for name, count in counts[1:] if count]


def map_rows(fit: VoxelFit) -> list[dict[str, str]]:
    """Unit, median over usable voxels (or all fitted ones), typical interval, meaning of maps."""
    rows, voxels = [], fit.usable
    voxels = voxels if voxels.any() else np.isin(fit.status, FITTED)
    for name in fit.MAPS:
        unit, meaning = map_description(name, fit)
        row = {"name": name, "unit": unit, "median": "-", "interval": "-", "meaning": meaning}
        if voxels.any():
            maps = [getattr(fit, name + suffix, None) for suffix in ("", "_low", "_high")]
            medians = [float(np.median(values[voxels])) for values in maps if values is not None]
            row["median"], *interval = to_common_decimals(medians)
            row["interval"] = " to ".join(interval) or "-"
        rows.append(row)
    return rows


def to_common_decimals(values: list[float]) -> list[str]:
    """Numbers with the decimals that give the largest three digits: none is written as 1e-07."""
    largest = max(map(abs, values))
    decimals = max(0, 2 - math.floor(math.log10(largest))) if 0 < largest < math.inf else 0
    return [f"{value:.{decimals}f}" for value in values]


def text_of(fit: VoxelFit) -> str:
    """What a fit is, as lines of text."""
    rows = [_HEAD[:-1], *([*row.values()][:-1] for row in map_rows(fit))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{type(fit).__name__}(shape={fit.shape}, {_usable(fit)})"]
    lines += [f"{n:>8} {name}: {STATUS_DESCRIPTIONS[name]}" for name, n in status_counts(fit)]
    lines += [
        "  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows if len(rows) > 1
    ]
    return "\n".join(lines)


def html_of(fit: VoxelFit) -> str:
    """What a fit is, as HTML for a notebook."""
    counts = "".join(
        f"<li>{n} {name}: {STATUS_DESCRIPTIONS[name]}</li>" for name, n in status_counts(fit)
    )
    title = f"<b>{type(fit).__name__}</b>, shape {fit.shape}, {_usable(fit)}"
    return f"{title}<ul>{counts}</ul>{_table(_HEAD, [[*row.values()] for row in map_rows(fit)])}"


def html_of_model(model: VoxelModel) -> str:
    """What a model is, as HTML for a notebook."""
    rows = [(name, *map_description(name, model.empty_fit)) for name in model.empty_fit.MAPS]
    title = f"<b>{type(model).__name__}</b> of {escape(repr(model.acquisition))}"
    return f"{title}{_table(('map', 'unit', 'meaning'), rows)}"


def dataframe_of(fit: VoxelFit) -> Any:
    """See :meth:`VoxelFit.to_dataframe`."""
    pandas, have_pandas, _ = optional_package("pandas")
    if not have_pandas:
        raise ImportError("to_dataframe needs pandas: pip install pandas.")
    inside = fit.status != Status.NOT_FITTED
    voxels = fit[inside]
    indices = np.argwhere(inside).reshape(-1, len(fit.shape))
    columns = dict(zip("ijk", indices.T, strict=False))
    columns["status"] = np.array([status.name for status in Status])[voxels.status]
    columns["usable"] = voxels.usable
    names = (*fit.MAPS, "S0_hat", "sigma", "residual_rms")
    for name in (f"{name}{suffix}" for name in names for suffix in MAP_SUFFIXES):
        values = getattr(voxels, name, None)
        if values is not None and np.ndim(values) == 1:
            columns[name] = values
    table = pandas.DataFrame(columns)
    table.attrs["units"] = {name: map_description(name, fit).unit for name in names}
    return table


def _usable(fit):
    return f"{np.isin(fit.status, FITTED).sum()} voxels fitted, {fit.usable.sum()} usable"


def _table(head, rows):
    def line(cells, kind):
        return "".join(f"<{kind}>{escape(str(cell))}</{kind}>" for cell in cells)

    lines = [line(head, "th"), *(line(row, "td") for row in rows)]
    return f"<table>{''.join(f'<tr>{cells}</tr>' for cells in lines)}</table>"
