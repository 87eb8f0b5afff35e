"""From an image to arrays of its voxels: chunk by chunk, on one of several engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from dipy.utils.multiproc import determine_num_processes
from dipy.utils.parallel import paramap
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from dipy_spinverse.voxels.image import Image, Voxels
from dipy_spinverse.voxels.status import Status, explains_nothing, outcome, worst_refutes

ENGINES = ("serial", "joblib", "dask", "ray")
# Threads would share the state of torch's forward differentiation.
_PROCESSES = {"dask": "multiprocessing"}
ChunkFit = Callable[[Voxels], Mapping[str, ArrayLike]]


@dataclass(frozen=True)
class Engine:
    """How voxels are spread over processes.

    Attributes
    ----------
    name : {"serial", "joblib", "dask", "ray"}
    n_jobs : int
        Processes of the other engines; -1 for all but one core.
    vox_per_chunk : int or None
        Voxels fitted together; the model's own number where None.
    verbose : bool
        Whether to show a progress bar.

    Raises
    ------
    ValueError
        An unknown engine, chunks of less than one voxel.
    ImportError
        An engine that is not installed.
    """

    name: str = "serial"
    n_jobs: int = -1
    vox_per_chunk: int | None = None
    verbose: bool = False

    def __post_init__(self):
        if self.name not in ENGINES:
            raise ValueError(
                f"engine is {self.name!r}; use one of {', '.join(map(repr, ENGINES))}."
            )
        if self.vox_per_chunk is not None and self.vox_per_chunk < 1:
            raise ValueError(f"vox_per_chunk is {self.vox_per_chunk}; give at least 1.")
        if self.name != "serial" and find_spec(self.name) is None:
            raise ImportError(
                f"engine is {self.name!r}, which is not installed; install the extra "
                '"distributed" of dipy_spinverse, or use engine="serial".'
            )

    def chunks(self, groups: Iterable[np.ndarray], most: int) -> list[np.ndarray]:
        """Rows of each chunk: of one group, at most so many, and some for each process."""
        if self.vox_per_chunk is not None:
            most = self.vox_per_chunk
        parts = []
        for rows in groups:
            size = most
            if self.name != "serial" and self.vox_per_chunk is None:
                size = min(most, -(-len(rows) // determine_num_processes(self.n_jobs)))
            parts += [rows[k : k + size] for k in range(0, len(rows), max(size, 1))]
        return parts

    def map(self, function: ChunkFit, chunks: list[Voxels]) -> Iterable[Mapping[str, ArrayLike]]:
        """Results of a function of each chunk, in order."""
        if self.name == "serial":
            n_voxels = sum(map(len, chunks))
            with tqdm(total=n_voxels, unit="voxel", disable=not self.verbose) as bar:
                for chunk in chunks:
                    yield function(chunk)
                    bar.update(len(chunk))
        else:
            yield from paramap(
                _in_worker, chunks, func_args=[function], engine=self.name, n_jobs=self.n_jobs,
                backend=_PROCESSES.get(self.name), verbose=self.verbose,
            )  # fmt: skip


def _in_worker(chunk, function):
    """A chunk on one thread, as other workers have the other cores."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return function(chunk)
    finally:  # a worker may be a thread of this process
        torch.set_num_threads(n_threads)


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
        Voxels fitted together at most.
    groups : iterable of ndarray of int, optional
        Rows of the voxels that may be fitted together; all where not given.

    Returns
    -------
    status : ndarray (...)
    values : dict of ndarray (V, ...)
        Of the voxels that could be fitted, in order: "sigma", "residual_rms" and `layout`.
    """
    voxels, n = image.voxels, len(image.voxels)
    values = {name: _zeros(n, kind) for name, kind in (_JUDGED | dict(layout)).items()}
    parts = engine.chunks([np.arange(n)] if groups is None else groups, most)
    results = engine.map(fit_chunk, [voxels[rows].over_S0() for rows in parts])
    for rows, result in zip(parts, results, strict=True):
        for name, value in (_excess(result, voxels.signals.shape[1]) | dict(result)).items():
            values[name][(rows, *map(slice, np.shape(value)[1:]))] = value
    for name, value in values.items():
        if name in ("sigma", "residual_rms") or name.split("_")[0] == "S0":
            value *= voxels.S0[:, 0].reshape(-1, *(1,) * (value.ndim - 1))
    status = image.status.copy()
    status.reshape(-1)[image.rows] = _judged(image, values)
    for name in _JUDGED.keys() - {"sigma", "residual_rms"}:
        del values[name]
    return status, values


def _excess(result, n_measurements):
    freedom = np.maximum(n_measurements - result["n_unknowns"], 1)
    squares = n_measurements * (result["residual_rms"] / result["sigma"]) ** 2
    return {"excess": squares / freedom}


def _zeros(n, kind):
    dtype, shape = kind if isinstance(kind, tuple) else (kind, ())
    return np.zeros((n, *shape), dtype)


def _judged(image, values):
    """Status (V,) by the one rule, with noise that does not rest on the model."""
    voxels, converged = image.voxels, values["converged"]
    freedom = np.broadcast_to(image.freedom, len(voxels))
    n_measurements = voxels.signals.shape[1]
    by_noise = (values["sigma"] / image.noise) ** 2
    excess, worst = values["excess"] * by_noise, values["worst_excess"] * by_noise
    told = np.maximum(freedom, 1)
    by_noise = outcome(converged, excess, values["n_unknowns"], told, n_measurements)
    refuted = worst_refutes(worst, values["worst_freedom"], values["n_groups"], told)
    by_noise = np.where(refuted, Status.MISFIT, by_noise)
    scatter = voxels.signals.std(axis=1)
    nothing = explains_nothing(values["residual_rms"], scatter, voxels.S0[:, 0])
    without = np.where(converged, Status.CONVERGED, Status.NOT_CONVERGED)
    without = np.where(nothing, Status.MISFIT, without)
    return np.where(freedom > 0, by_noise, without)
