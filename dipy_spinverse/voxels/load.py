"""Reading of saved fits."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import numpy as np

from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.model import VoxelModel

# Exceptions that settings and arrays of other models cause.
_WRONG = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)


def load_fit(path: str | Path, model: VoxelModel | None = None) -> VoxelFit:
    """Read a fit that its :meth:`save` wrote.

    Parameters
    ----------
    path : str or Path
    model : VoxelModel, optional
        The fitted model. Needed for models with user-defined functions (`compose`), which are not
        saved; checked by its name and acquisition.

    Returns
    -------
    VoxelFit
        Its model computes on the CPU, whatever device the fit was made on.

    Raises
    ------
    ValueError
        The file was not written by `save`, was changed, or belongs to another model.
    """
    header, arrays = storage.read(path, "a fit")
    groups: dict[str, dict] = {"model": {}, "acquisition": {}, "value": {}, "of": {}}
    for key, value in arrays.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    name = str(header.get("model"))
    if model is None:
        package = import_module("dipy_spinverse")  # models are found by their public names
        kind = getattr(package, name, None) if name in package.__all__ else None
        if not (isinstance(kind, type) and issubclass(kind, VoxelModel)):
            raise ValueError(
                f"path: {path} is a fit of a {name}, which cannot be saved; give model=, the one "
                "that was fitted."
            )
        try:
            acquisition = kind.acquisition_from(groups["acquisition"])
            model = kind.from_settings(acquisition, header["settings"], groups["model"])
        except _WRONG as error:
            raise ValueError(f"path: {path} does not describe a {name}: {error}") from error
    elif not (
        name == type(model).__name__
        and header["settings"] == storage.as_read(model.settings()[0])
        and _same(groups["acquisition"], model.acquisition.arrays())
    ):
        raise ValueError(
            f"model is not the one of {path}, a {name} with settings {header['settings']} and its "
            "own acquisition; give that model."
        )
    try:
        fit = model.Fit(model, groups["of"]["status"], groups["value"])
        fit.check()
    except _WRONG as error:
        raise ValueError(f"path: {path} does not contain a fit of {name}: {error}") from error
    return fit


def _same(stored: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> bool:
    return stored.keys() == expected.keys() and all(
        stored[name].shape == np.shape(expected[name])
        and np.allclose(stored[name], expected[name])
        for name in stored
    )
