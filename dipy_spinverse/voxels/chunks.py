"""Fit of an image in chunks of voxels, on one of several engines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse import __version__
from dipy_spinverse.acquisition.checks import shortened
from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.engines import each_computed
from dipy_spinverse.voxels.fitted_model import FittedModel
from dipy_spinverse.voxels.image import Image, Voxels
from dipy_spinverse.voxels.journal import Journal, open_journal
from dipy_spinverse.voxels.memory import check_memory
from dipy_spinverse.voxels.noise import warn_of_unknown_averages
from dipy_spinverse.voxels.progress import Bar
from dipy_spinverse.voxels.status import Status, explains_nothing, outcome, rejected_by_worst_group

ENGINES = ("serial", "joblib", "dask", "ray")
_PACKAGES = {"dask": ("dask", "distributed"), "ray": ("ray",)}
_MAX_NUMBER = 10**9
# Larger chunks cost hardly less time per voxel.
_MIN_VOXELS = 512
# Chunks of large images, so that all processes have work.
_MIN_CHUNKS = 16
ChunkFit = Callable[[Voxels], Mapping[str, ArrayLike]]


@dataclass(frozen=True)
class Engine:
    """Arguments `engine` (the name), `n_jobs`, `verbose`, `journal` and `max_memory`, checked.

    They are described in the `fit` method of every model. ValueError for values that are not
    possible, ImportError if the packages of an engine are not installed.
    """

    name: str = "serial"
    n_jobs: int = -1
    verbose: bool = False
    journal: str | Path | None = None
    max_memory: float | None = None

    def __post_init__(self):
        if not (isinstance(self.name, str) and self.name in ENGINES):
            raise ValueError(
                f"engine is {shortened(self.name)}; use one of {', '.join(map(repr, ENGINES))}."
            )
        if not (isinstance(self.n_jobs, (int, np.integer)) and self.n_jobs == -1):
            check_number("n_jobs", self.n_jobs, 1)
        if self.max_memory is not None and not (
            isinstance(self.max_memory, (int, float)) and self.max_memory > 0
        ):
            raise ValueError(
                f"max_memory is {shortened(self.max_memory)}; give bytes, as 8e9 for 8 GB."
            )
        if not isinstance(self.journal, (str, os.PathLike, NoneType)):
            raise ValueError(f"journal is {shortened(self.journal)}; give the path of a folder.")
        missing = [
            package for package in _PACKAGES.get(self.name, ()) if find_spec(package) is None
        ]
        if missing:
            raise ImportError(
                f"engine is {self.name!r}, which needs {' and '.join(missing)}; install the extra "
                '"distributed" of dipy_spinverse, or use engine="serial".'
            )


def check_number(name: str, number: Any, minimum: int) -> None:
    """Raise ValueError unless a number is an integer of at least the minimum."""
    is_integer = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    if not (is_integer and minimum <= number <= _MAX_NUMBER):
        raise ValueError(
            f"{name} is {shortened(number)}; give a whole number of at least {minimum}."
        )


def chunk_size(n_voxels: int, max_voxels: int) -> int:
    """Voxels of a chunk of an image, at most those that the model allows."""
    return max(min(max_voxels, max(_MIN_VOXELS, -(-n_voxels // _MIN_CHUNKS))), 1)


# Results of a chunk that determine the status of each voxel.
_STATUS_VALUES = {
    "converged": bool, "sigma": float, "residual_rms": float, "n_unknowns": float,
    "reduced_chi_square": float, "worst_reduced_chi_square": float,
    "worst_degrees_of_freedom": float, "n_groups": float,
}  # fmt: skip


def fit_image(
    image: Image,
    fit_chunk: ChunkFit,
    layout: Mapping[str, object],
    engine: Engine,
    *,
    most: int,
    model: FittedModel,
    options: Mapping[str, Any],
    groups: Iterable[np.ndarray] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Fit the voxels of an image; for models that have a `fit` method of their own.

    Parameters
    ----------
    image : Image
    fit_chunk : callable
        Picklable; from :class:`Voxels`, divided by S0, to arrays (V, ...), or a number for all
        voxels, for the names in `layout` and for the status: "converged"; "sigma" (noise level
        used or estimated); "residual_rms"; "n_unknowns"; "reduced_chi_square" if residuals have
        other variances than sigma^2; "worst_reduced_chi_square", "worst_degrees_of_freedom" and
        "n_groups" if groups of measurements, such as shells, are tested. "sigma", "residual_rms"
        and names that begin with "S0" are relative to S0 and are stored in the unit of the data.
    layout : mapping
        Type, or type and shape such as ``("f4", (n_faces,))``, of each stored value of a voxel.
        Smaller arrays are padded with zeros.
    engine : Engine
    most : int
        Maximum number of voxels in a chunk.
    model : VoxelModel
    options : mapping
        Other numbers, strings and arrays that determine the result, for the journal.
    groups : iterable of ndarray of int, optional
        Rows of voxels that can share a chunk; all voxels by default.

    Returns
    -------
    status : ndarray (...)
    values : dict of ndarray (V, ...)
        "sigma", "residual_rms" and `layout` of the voxels that could be fitted, in order.
    """
    voxels, (n, n_measurements) = image.voxels, image.voxels.signals.shape
    kinds = _STATUS_VALUES | dict(layout)
    # 128: status, position and temporary numbers
    bytes_per_voxel = 128 + sum(_zeros(1, kind).nbytes for kind in kinds.values())
    needed = 2 * voxels.signals.nbytes + n * bytes_per_voxel
    check_memory(f"A fit of {n} voxels", needed, engine.max_memory)
    values = {name: _zeros(n, kind) for name, kind in kinds.items()}
    size, scatter = chunk_size(n, most), np.zeros(n)
    journal_context: AbstractContextManager[Journal | None] = nullcontext()
    if engine.journal is not None:
        journal_context = open_journal(engine.journal, _identity(model, image, options))
    with journal_context as journal, Bar(n, engine.verbose) as bar:
        chunk_rows = [rows[k : k + size] for rows in groups or [np.arange(n)]
                 for k in range(0, len(rows), size)]  # fmt: skip
        fit_with_progress = bar.fed_by(fit_chunk)
        for rows, result in _computed(voxels, fit_with_progress, chunk_rows, engine, journal, bar):
            for name, value in (_chi_square(result, n_measurements) | dict(result)).items():
                values[name][(rows, *map(slice, np.shape(value)[1:]))] = value
            scatter[rows] = voxels.signals[rows].std(axis=1)
    for name, value in values.items():
        if name in ("sigma", "residual_rms") or name.split("_")[0] == "S0":
            value *= voxels.S0[:, 0].reshape(-1, *(1,) * (value.ndim - 1))
    status = image.status.copy()
    status.reshape(-1)[image.rows] = fit_status(image, values, scatter)
    if getattr(model, "likelihood", "rician") == "rician":
        warn_of_unknown_averages(voxels.signals, values["sigma"], model.acquisition)
    for name in _STATUS_VALUES.keys() - {"sigma", "residual_rms"}:
        del values[name]
    return status, values


def _computed(voxels, fit_chunk, chunk_rows, engine, journal: Journal | None, bar: Bar):
    """Rows and results of the chunks: first those in the journal, then those to be computed."""
    missing = {}
    for k, rows in enumerate(chunk_rows):
        values = None if journal is None else journal.find(rows)
        if values is None:
            missing[k] = lambda rows=rows: voxels[rows].over_S0()
        else:
            bar.found(len(rows))
            yield rows, values
    for k, result in each_computed(fit_chunk, missing, engine.name, engine.n_jobs):
        if journal is not None:
            journal.keep(chunk_rows[k], result)
        bar.finished(len(chunk_rows[k]))
        yield chunk_rows[k], result


def _identity(model, image, options) -> str:
    """Digest of everything that determines a fit."""
    try:
        settings, arrays = model.settings()
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"journal: this model cannot be identified in files: {error}") from error
    scalars = {name: x for name, x in options.items() if np.ndim(x) == 0}
    arrays = {f"model {name}": x for name, x in arrays.items()}
    arrays |= {f"scan {name}": x for name, x in model.acquisition.arrays().items()}
    arrays |= {f"option {name}": x for name, x in options.items() if name not in scalars}
    voxels = image.voxels
    arrays |= {"signals": voxels.signals, "S0": voxels.S0, "rows": image.rows}
    header = [__version__, type(model).__name__, settings, scalars, *image.shape]
    return storage.digest(header, arrays)


def _chi_square(result, n_measurements):
    """Reduced chi-square (V,) if all variances are sigma^2."""
    freedom = np.maximum(n_measurements - result["n_unknowns"], 1)
    squares = n_measurements * (result["residual_rms"] / result["sigma"]) ** 2
    return {"reduced_chi_square": squares / freedom}


def _zeros(n, kind):
    dtype, shape = kind if isinstance(kind, tuple) else (kind, ())
    return np.zeros((n, *shape), dtype)


def fit_status(image: Image, values: Mapping[str, np.ndarray], scatter: np.ndarray) -> np.ndarray:
    """Status (V,) of a fit, by the noise level of the image, which does not depend on the model.

    `values` are those of the status in :func:`fit_image`, in the unit of the data; `scatter` (V,)
    are the standard deviations of the signals.
    """
    voxels, converged = image.voxels, values["converged"]
    n_measurements = voxels.signals.shape[1]
    ratio, positive_freedom = (values["sigma"] / image.noise) ** 2, np.maximum(image.freedom, 1)
    with_noise = outcome(
        converged, values["reduced_chi_square"] * ratio, values["n_unknowns"], positive_freedom,
        n_measurements,
    )  # fmt: skip
    rejected = rejected_by_worst_group(
        values["worst_reduced_chi_square"] * ratio, values["worst_degrees_of_freedom"],
        values["n_groups"], positive_freedom,
    )  # fmt: skip
    with_noise = np.where(rejected, Status.MISFIT, with_noise)
    nothing = explains_nothing(values["residual_rms"], scatter, voxels.S0[:, 0])
    without_noise = np.where(converged, Status.CONVERGED, Status.NOT_CONVERGED)
    without_noise = np.where(nothing, Status.MISFIT, without_noise)
    return np.where(image.freedom > 0, with_noise, without_noise)
