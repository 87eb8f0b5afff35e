"""Tutorials: in which order they are shown, and which are run."""

from __future__ import annotations

import re
from pathlib import Path

from dipy_spinverse.datasets import fetch_cat_cord, fetch_isbi2015

_ORDER = (
    "first_fit", "acquisition", "known_cell", "same_voxels", "cat_cord", "noddi_slice",
    "many_voxels", "tissue_fractions", "cell_shapes",
)  # fmt: skip
_MEASURED = ("same_voxels", "cat_cord")


class InOrder:
    """Sorts tutorials; new ones come last."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, file: str) -> int:
        name = Path(file).stem.removeprefix("plot_")
        return _ORDER.index(name) if name in _ORDER else len(_ORDER)

    def __repr__(self) -> str:
        return "<InOrder>"


def run_pattern() -> str:
    """Files that are run: those of measured data only where these can be had."""
    try:
        fetch_isbi2015()
        fetch_cat_cord()
    except OSError as error:
        print(f"Tutorials on measured data are shown without their results: {error}")
        return rf"{re.escape('/plot_')}(?!{'|'.join(_MEASURED)})"
    return re.escape("/plot_")
