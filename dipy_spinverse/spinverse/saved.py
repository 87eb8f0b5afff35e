"""Engines, stages and priors as JSON."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from dipy_spinverse.inversion import Binarisation, Continuity, Manifoldness, Stage, WallArea
from dipy_spinverse.spinverse.permeability_fields import ClosedCellInversion, FaceInversion
from dipy_spinverse.spinverse.tissue_walls import TissueWallInversion

_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        *(TissueWallInversion, FaceInversion, ClosedCellInversion, Stage),
        *(Binarisation, Continuity, Manifoldness, WallArea),
    )
}


def to_json(value: Any) -> Any:
    """Lists, numbers and texts that stand for a value of one of these classes."""
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if type(value) in _CLASSES.values():
        options = {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__, **options}
    if value is None or isinstance(value, (str, int, float, np.generic)):
        return value
    raise ValueError(f"inversion has {value!r}, which cannot be saved; use {[*_CLASSES]}.")


def from_json(value: Any) -> Any:
    """The value of :func:`to_json`, with tuples for lists."""
    if isinstance(value, list):
        return tuple(map(from_json, value))
    if not isinstance(value, dict):
        return value
    options = {name: from_json(option) for name, option in value.items() if name != "class"}
    return _CLASSES[value["class"]](**options)
