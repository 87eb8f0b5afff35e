"""From an image to arrays of its voxels: chunk by chunk, on one of several engines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse import __version__
from dipy_spinverse.acquisition.checks import shortened
from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.engines import each_computed
from dipy_spinverse.voxels.image import Image, Voxels
from dipy_spinverse.voxels.journal import Journal, open_journal
from dipy_spinverse.voxels.memory import check_memory
from dipy_spinverse.voxels.progress import Bar
from dipy_spinverse.voxels.status import Status, explains_nothing, outcome, worst_refutes

if TYPE_CHECKING:
    from dipy_spinverse.voxels.model import VoxelModel

ENGINES = ("serial", "joblib", "dask", "ray")
# What is imported for each of the others.
_NEEDED = {
    "dask": ("dask", "distributed"), "ray": ("ray",)
}  # fmt: skip
_LARGEST_NUMBER = 10**9
# So many voxels together cost hardly more for each than all of an image.
_LEAST_VOXELS = 512
# Of larger images, so that several processes have work.
_LEAST_BLOCKS = 16
ChunkFit = Callable[[Voxels], Mapping[str, ArrayLike]]
# Of each voxel, for its status and place.
_NUMBERS_BESIDE = 16


@dataclass(frozen=True)
class Engine:
    """How a fit is computed.

    Attributes
    ----------
    name : {"serial", "joblib", "dask", "ray"}
        Where: here, in processes of this machine, or on the cluster of the present client of
        dask or ray (local processes where there is none).
    n_jobs : int
        Processes on this machine of the other engines; -1 for all but one core.
    verbose : bool
        Whether to show a progress bar.
    journal : path or None
        Folder in which finished chunks are kept. The same fit, started again after whatever ended
        it, goes on from there, and comes to the same result, with any engine. It can be deleted
        when the fit is saved.
    max_memory : float or None
        Bytes that data and results may take; half of what is free where None. The voxels that are
        computed together take more in each process, which does not grow with the image.

    Raises
    ------
    ValueError
        An unknown engine.
    ImportError
        An engine that is not installed.
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
        missing = [package for package in _NEEDED.get(self.name, ()) if find_spec(package) is None]
        if missing:
            raise ImportError(
                f"engine is {self.name!r}, which needs {' and '.join(missing)}; install the extra "
                '"distributed" of dipy_spinverse, or use engine="serial".'
            )


def check_number(name: str, number: Any, minimum: int) -> None:
    """Refuse what is no whole number of at least so much.

    Raises
    ------
    ValueError
    """
    is_integer = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    if not (is_integer and minimum <= number <= _LARGEST_NUMBER):
        raise ValueError(
            f"{name} is {shortened(number)}; give a whole number of at least {minimum}."
        )


def voxels_per_block(n_voxels: int, max_voxels: int) -> int:
    """Voxels of an image that are computed together, by a model that can have so many at most."""
    return max(min(max_voxels, max(_LEAST_VOXELS, -(-n_voxels // _LEAST_BLOCKS))), 1)


# What the function of a chunk tells of each voxel for the status, beside what is kept.
_JUDGED = {
    "converged": bool, "sigma": float, "residual_rms": float, "n_unknowns": float,
    "excess": float, "worst_excess": float, "worst_freedom": float, "n_groups": float,
}  # fmt: skip


def fit_image(
    image: Image,
    fit_chunk: ChunkFit,
    layout: Mapping[str, object],
    engine: Engine,
    *,
    most: int,
    model: VoxelModel,
    options: Mapping[str, Any],
    groups: Iterable[np.ndarray] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Fit the voxels of an image.

    Parameters
    ----------
    image : Image
    fit_chunk : callable
        From :class:`Voxels`, over their S0, to an array (V, ...) for each name in `layout`. What
        is a signal ("sigma", "residual_rms", names that begin with "S0") comes over S0, too, and
        is kept in the unit of the data. For the status it also gives "converged", "sigma" (the
        noise that it used or found), "residual_rms", "n_unknowns", and, where their variances
        are not sigma^2 alone, "excess": the sum of squared residuals over these, per degree of
        freedom. What judges groups of measurements by the worst also gives "worst_excess",
        "worst_freedom" and "n_groups". A number holds for all voxels. The function can be pickled.
    layout : mapping
        Type, or type and shape, of what is kept of a voxel, as ``("f4", (n_faces,))``. An array
        may be narrower; the rest is zero.
    engine : Engine
    most : int
        Voxels computed together at most.
    model : VoxelModel
    options : mapping
        What the result depends on beside the image and the model; numbers, texts and arrays. A
        journal is known by these.
    groups : iterable of ndarray of int, optional
        Rows of the voxels that may be fitted together; all where not given.

    Returns
    -------
    status : ndarray (...)
    values : dict of ndarray (V, ...)
        Of the voxels that could be fitted, in order: "sigma", "residual_rms" and `layout`.
    """
    voxels, n = image.voxels, len(image.voxels)
    kinds = _JUDGED | dict(layout)
    kept_of_each = 8 * _NUMBERS_BESIDE + sum(map(_n_bytes, kinds.values()))
    needed = 2 * voxels.signals.nbytes + n * kept_of_each
    check_memory(f"A fit of {n} voxels", needed, engine.max_memory)
    values = {name: _zeros(n, kind) for name, kind in kinds.items()}
    size, scatter = voxels_per_block(n, most), np.zeros(n)
    journal_context: AbstractContextManager[Journal | None] = nullcontext()
    if engine.journal is not None:
        journal_context = open_journal(engine.journal, _identity(model, image, options))
    with journal_context as journal, Bar(n, engine.verbose) as bar:
        chunk_rows = [rows[k : k + size] for rows in groups or [np.arange(n)]
                 for k in range(0, len(rows), size)]  # fmt: skip
        fit_with_progress = bar.fed_by(fit_chunk)
        for rows, result in _computed(voxels, fit_with_progress, chunk_rows, engine, journal, bar):
            for name, value in (_excess(result, voxels.signals.shape[1]) | dict(result)).items():
                values[name][(rows, *map(slice, np.shape(value)[1:]))] = value
            scatter[rows] = voxels.signals[rows].std(axis=1)
    for name, value in values.items():
        if name in ("sigma", "residual_rms") or name.split("_")[0] == "S0":
            value *= voxels.S0[:, 0].reshape(-1, *(1,) * (value.ndim - 1))
    status = image.status.copy()
    status.reshape(-1)[image.rows] = fit_status(image, values, scatter)
    for name in _JUDGED.keys() - {"sigma", "residual_rms"}:
        del values[name]
    return status, values


def _computed(voxels, fit_chunk, chunk_rows, engine, journal: Journal | None, bar: Bar):
    """Rows and results of all chunks: those in the journal, then those that are computed."""
    missing = {}
    for k, rows in enumerate(chunk_rows):
        values = None if journal is None else journal.find(rows)
        if values is None:
            missing[k] = partial(_over_S0, voxels, rows)
        else:
            bar.found(len(rows))
            yield rows, values
    for k, result in each_computed(fit_chunk, missing, engine.name, engine.n_jobs):
        if journal is not None:
            journal.keep(chunk_rows[k], result)
        bar.finished(len(chunk_rows[k]))
        yield chunk_rows[k], result


def _over_S0(voxels, rows):
    return voxels[rows].over_S0()


def _identity(model, image, options) -> str:
    """Digest of all that determines a fit."""
    try:
        settings, arrays = model.settings()
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"journal: no file can say what this model is: {error}") from error
    scalars = {name: x for name, x in options.items() if np.ndim(x) == 0}
    arrays = {f"model {name}": x for name, x in arrays.items()}
    arrays |= {f"scan {name}": x for name, x in model.acquisition.arrays().items()}
    arrays |= {f"option {name}": x for name, x in options.items() if name not in scalars}
    voxels = image.voxels
    arrays |= {"signals": voxels.signals, "S0": voxels.S0, "rows": image.rows}
    header = [__version__, type(model).__name__, settings, scalars, *image.shape]
    return storage.digest(header, arrays)


def _excess(result, n_measurements):
    freedom = np.maximum(n_measurements - result["n_unknowns"], 1)
    squares = n_measurements * (result["residual_rms"] / result["sigma"]) ** 2
    return {"excess": squares / freedom}


def _zeros(n, kind):
    dtype, shape = kind if isinstance(kind, tuple) else (kind, ())
    return np.zeros((n, *shape), dtype)


def _n_bytes(kind):
    return _zeros(1, kind).nbytes


def fit_status(image: Image, values: Mapping[str, np.ndarray], scatter: np.ndarray) -> np.ndarray:
    """Status (V,) of a fit, from a noise level that does not depend on the model.

    Parameters
    ----------
    image : Image
    values : mapping of ndarray (V,)
        What `fit_chunk` gives for the status, see :func:`fit_image`, in the unit of the data.
    scatter : ndarray (V,)
        Standard deviations of the signals of each voxel.
    """
    voxels, converged = image.voxels, values["converged"]
    freedom = np.broadcast_to(image.freedom, len(voxels))
    n_measurements = voxels.signals.shape[1]
    by_noise = (values["sigma"] / image.noise) ** 2
    excess, worst = values["excess"] * by_noise, values["worst_excess"] * by_noise
    told = np.maximum(freedom, 1)
    by_noise = outcome(converged, excess, values["n_unknowns"], told, n_measurements)
    refuted = worst_refutes(worst, values["worst_freedom"], values["n_groups"], told)
    by_noise = np.where(refuted, Status.MISFIT, by_noise)
    nothing = explains_nothing(values["residual_rms"], scatter, voxels.S0[:, 0])
    without = np.where(converged, Status.CONVERGED, Status.NOT_CONVERGED)
    without = np.where(nothing, Status.MISFIT, without)
    return np.where(freedom > 0, by_noise, without)
