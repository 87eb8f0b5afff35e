"""Fits from files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import numpy as np

from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.model import VoxelModel

# What settings and arrays raise that are not those of a model.
_WRONG = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)


def load_fit(path: str | Path, model: VoxelModel | None = None) -> VoxelFit:
    """Read a fit that its :meth:`save` wrote.

    Parameters
    ----------
    path : str or Path
    model : VoxelModel, optional
        The one that was fitted. Needed for models with functions of one's own (`compose`), which
        no file holds; checked by its name and acquisition.

    Returns
    -------
    VoxelFit
        Of the class of the fit that was saved. Its model computes on the CPU, whatever device
        the fit was made on.

    Raises
    ------
    ValueError
        The file was not written by `save`, or changed since, or is of another model.
    """
    header, arrays = storage.read(path, "a fit")
    groups: dict[str, dict] = {"model": {}, "acquisition": {}, "value": {}, "of": {}}
    for key, value in arrays.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    name = str(header.get("model"))
    if model is None:
        package = import_module("dipy_spinverse")  # models go by their public names
        kind = getattr(package, name, None) if name in package.__all__ else None
        if not (isinstance(kind, type) and issubclass(kind, VoxelModel)):
            raise ValueError(
                f"path: {path} is a fit of a {name}, which no file holds; give model=, the one "
                "that was fitted."
            )
        try:
            acquisition = kind.acquisition_from(groups["acquisition"])
            model = kind.from_settings(acquisition, header["settings"], groups["model"])
        except _WRONG as error:
            raise ValueError(f"path: {path} makes no {name}: {error}") from error
    elif not (
        name == type(model).__name__
        and header["settings"] == storage.as_read(model.settings()[0])
        and _same(groups["acquisition"], model.acquisition.arrays())
    ):
        raise ValueError(
            f"model is not the one of {path}, a {name} of {header['settings']} and other "
            "measurements; give that."
        )
    try:
        fit = model.Fit(model, groups["of"]["status"], groups["value"])
        fit.check()
    except _WRONG as error:
        raise ValueError(f"path: {path} holds no {name}'s fit: {error}") from error
    return fit


def _same(stored: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> bool:
    return stored.keys() == expected.keys() and all(
        stored[name].shape == np.shape(expected[name])
        and np.allclose(stored[name], expected[name])
        for name in stored
    )
