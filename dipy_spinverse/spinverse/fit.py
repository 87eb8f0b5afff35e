"""SpinverseFit: the walls found in voxels, what follows from them, and how sure it is."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar
from zipfile import BadZipFile

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.grid.tetrahedral_grid import build_grid
from dipy_spinverse.inversion import Binarisation, Continuity, Manifoldness, Stage, WallArea
from dipy_spinverse.inversion.unknowns import free_water_signals, wall_faces
from dipy_spinverse.voxels.status import Status
from dipy_spinverse.walls.interface import InterfaceMesh, interface_mesh

# Mean F1 between the walls of fields below which their pattern does not count as determined.
SAME_PATTERN = 0.8


FITTED = (
    Status.CONVERGED,
    Status.NOT_CONVERGED,
    Status.MISFIT,
    Status.PATTERN_NOT_DETERMINED,
)


class SpinverseFit:
    """Walls of voxels, from :meth:`SpinverseModel.fit` or :func:`load_fit`.

    ``fit[i, j, k]`` and slices give the fit of these voxels. All arrays have the leading shape
    `shape` of the data and are zero where nothing was fitted.

    Each map named in `MAPS` is an attribute, a posterior mean, with its standard deviation
    ``NAME_std`` and the ends ``NAME_low`` and ``NAME_high`` of its 95 % interval. Where packed
    cylinders and spheres explain the signals (`packed_cells`), the maps are those of their
    posterior, see :class:`dipy_spinverse.PackedCellsModel`. Elsewhere they are read off the
    ensemble of wall fields; the intervals then contain the scatter between fields, from starts and
    noise of their own, and the errors `WALL_ERRORS` that all fields share.

    Attributes
    ----------
    surface_to_volume : ndarray (...)
        Area of the membranes over volume, 1/um.
    wall_permeability : ndarray (...)
        Mean permeability of the membranes, um/ms.
    exchange_time : ndarray (...)
        Mean time in which restricted spins cross a wall, ms.
    restricted_fraction : ndarray (...)
        Fraction of spins that do not get far in at least one direction.
    pore_diameter : ndarray (...)
        Mean chord length of the restricted space, um.
    wall_anisotropy : ndarray (...)
        How well the walls determine their axis, 0 to 1.
    free_water_fraction : ndarray (...)
        Zero unless it was fitted.
    wall_orientation : ndarray (..., 3)
        Unit vector along which walls are crossed least, and
    wall_orientation_angle : ndarray (...)
        the angle to it that 95 % of the draws or fields keep within, degrees.
    packed_cells : ndarray (...) of bool
        Whether the maps are those of packed cells.
    permeability : ndarray (..., F)
        Of each face, um/ms; infinite where there is no membrane at all. One wall field of many.
    field_free_water : ndarray (...)
        Fraction of free water beside this field.
    permeability_samples : ndarray (..., n, F)
        Other fields, each from a start and noise of its own; moved to where they agree most
        with `permeability` (by shifts and reflections that leave the signals unchanged).
    wall_probability : ndarray (..., F)
        Probability that a face is a wall, over all these fields.
    pattern_agreement : ndarray (...)
        Mean F1 between the walls of these fields, 0 to 1.
    sigma : ndarray (...)
        Standard deviation of the noise, given or estimated, in units of the data.
    residual_rms : ndarray (...)
        Root mean square of data minus the prediction of `permeability`.
    status : ndarray (...) of int
        See :class:`Status`.
    """

    MAPS = (
        "surface_to_volume",
        "wall_permeability",
        "exchange_time",
        "restricted_fraction",
        "pore_diameter",
        "wall_anisotropy",
        "free_water_fraction",
    )
    # Relative standard deviations of truth from estimate that hold 95 % of the substrates of
    # benchmarks/wall_fields.py, on the default grid.
    WALL_ERRORS: ClassVar[dict[str, float]] = {
        "surface_to_volume": 1.8,
        "restricted_fraction": 0.5,
        "wall_permeability": 0.7,
        "exchange_time": 4.0,
        "pore_diameter": 0.4,
    }

    def __init__(self, model, values: dict[str, np.ndarray]):
        self.model = model
        self._values = values

    def __getattr__(self, name: str):
        # Only what __init__ and the class do not define; `_values` itself is missing while
        # an instance is being unpickled.
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._values[name]

    def __dir__(self):
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"SpinverseFit(shape={self.shape}, {self.model.grid!r})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the voxels."""
        return self._values["status"].shape

    @property
    def history(self) -> dict[str, np.ndarray]:
        """What each stage of the inversion did: "iterations" and "misfit", (..., S) each.

        The stages are those of the curriculum, then the last one again at the true noise (0
        iterations where the search had no more); the cell search counts as one, whose iterations
        are simulations. The misfit is the mean squared residual over the noise that the stage
        went by.
        """
        return {name: self._values[f"history_{name}"] for name in ("iterations", "misfit")}

    @property
    def S0_hat(self) -> np.ndarray:
        """Initial magnetisation (...), or (..., K) of K > 1 echo times in ascending order."""
        S0 = self._values["S0"]
        return S0[..., 0] if S0.shape[-1] == 1 else S0

    def __getitem__(self, index) -> SpinverseFit:
        n = int(np.prod(self.shape))
        chosen = np.arange(n).reshape(self.shape)[index]
        values = {
            name: value.reshape(n, *value.shape[len(self.shape) :])[chosen]
            for name, value in self._values.items()
        }
        return SpinverseFit(self.model, values)

    def predict(self, gtab=None, S0=None) -> np.ndarray:
        """Signals (..., M) that the walls predict.

        Parameters
        ----------
        gtab : GradientTable or Acquisition, optional
            Of what to predict; of the fitted data where not given.
        S0 : float or array-like (...), optional
            Initial magnetisation; the fitted one (of the nearest echo time) where not given.
        """
        acquisition = self.model._acquisition_of(gtab)
        fitted = np.isin(self.status, FITTED)
        if S0 is None:
            distance = np.abs(acquisition.te[:, None] - self.model.acquisition.echo_times)
            S0 = self._values["S0"][..., distance.argmin(axis=1)]
        else:
            S0 = np.asarray(S0, dtype=float)
            if S0.shape not in ((), self.shape):
                raise ValueError(
                    f"S0 has shape {S0.shape}, the fit has voxels {self.shape}; give one value "
                    "for all, or one for each voxel."
                )
            S0 = S0[..., None]
        signals = np.zeros((*self.shape, len(acquisition)))
        if fitted.any():
            in_grid = self.model.predict(self.permeability[fitted], gtab=acquisition)
            # The field's own: the map may be that of packed cells.
            fraction = self.field_free_water[fitted][:, None]
            free = free_water_signals(acquisition, self.model.free_diffusivity_um2_per_ms)
            signals[fitted] = (1 - fraction) * in_grid + fraction * free
        return signals * S0

    def interface(
        self,
        index: tuple[int, ...] = (),
        threshold: float = 0.5,
        closed_only: bool = False,
        sample: int | None = None,
    ) -> InterfaceMesh:
        """Mesh of the walls of one voxel, with the confidence of each triangle.

        Parameters
        ----------
        index : int or tuple of int, optional
            The voxel; not needed in the fit of a single one.
        threshold : float, optional
            Least wall probability of a triangle.
        closed_only : bool, optional
            Leave out walls that are not part of a closed surface.
        sample : int, optional
            Draw all walls of one field instead, however sure they are: 0 for `permeability`,
            k for the k-th of `permeability_samples`. Where the pattern is not determined this is
            one of many that explain the signals.

        Raises
        ------
        ValueError
            An index of several voxels, a sample that there is not.
        """
        voxel = self[index]
        if voxel.shape != ():
            raise ValueError(
                f"index is {index!r}, which selects {voxel.shape} voxels; give one index for each "
                f"of the axes of {self.shape}."
            )
        grid, permeability, walls = self.model.grid, voxel.permeability, None
        if sample is not None:
            fields = np.vstack([permeability, voxel.permeability_samples])
            if sample not in range(len(fields)):
                raise ValueError(
                    f"sample is {sample!r}; the fit has fields 0 to {len(fields) - 1}."
                )
            permeability = fields[sample]
            walls = wall_faces(grid, permeability, self.model.diffusivity_um2_per_ms)
        return interface_mesh(
            grid, permeability, voxel.wall_probability,
            threshold=threshold, closed_only=closed_only, walls=walls,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the fit, its grid, acquisition and settings to one ``.npz`` file.

        Parameters
        ----------
        path : str or Path

        Raises
        ------
        ValueError
            The model has priors other than those of `dipy_spinverse.inversion.priors`.
        """
        model, grid = self.model, self.model.grid
        period = np.zeros(0) if grid.period_um is None else grid.period_um
        settings = {
            "diffusivity": model.diffusivity,
            "free_diffusivity": model.free_diffusivity,
            "optimizer": model.optimizer,
            "seed": model.seed,
            "priors": None if model.priors is None else _priors_to_json(model.priors),
            "curriculum": None
            if model.curriculum is None
            else [
                {**vars(stage), "priors": _priors_to_json(stage.priors)}
                for stage in model.curriculum
            ],
            "boundary": grid.boundary,
        }
        with open(path, "wb") as file:
            np.savez_compressed(
                file,
                settings=json.dumps(settings, default=np.generic.item),
                period_um=period,
                **{f"grid_{name}": getattr(grid, name) for name in _GRID_ARRAYS},
                **{f"acquisition_{n}": getattr(model.acquisition, n) for n in _ACQUISITION_FIELDS},
                **{f"fit_{name}": value for name, value in self._values.items()},
            )


_GRID_ARRAYS = ("points_um", "tetrahedra", "tetrahedron_points")
_PRIORS = {prior.__name__: prior for prior in (Binarisation, Continuity, Manifoldness, WallArea)}
_ACQUISITION_FIELDS = ("b", "directions", "small_delta", "big_delta", "te", "b0_threshold")


def load_fit(path: str | Path) -> SpinverseFit:
    """Read a fit that :meth:`SpinverseFit.save` wrote.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    SpinverseFit
        Its model computes on the CPU, whatever device the fit was made on.

    Raises
    ------
    ValueError
        The file was not written by `SpinverseFit.save`.
    """
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            return _fit_of(dict(arrays))
    except (BadZipFile, zlib.error, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"path: {path} is not a saved fit ({error}); give a file of SpinverseFit.save."
        ) from error


def _fit_of(stored):
    from dipy_spinverse.spinverse.model import SpinverseModel

    settings = json.loads(str(stored["settings"]))
    points, tetrahedra, tetrahedron_points = (stored[f"grid_{name}"] for name in _GRID_ARRAYS)
    period = stored["period_um"] if stored["period_um"].size else None
    boundary = settings.pop("boundary")
    grid = build_grid(points, tetrahedra, tetrahedron_points, boundary, period)
    acquisition = Acquisition(**{n: stored[f"acquisition_{n}"] for n in _ACQUISITION_FIELDS})
    if settings["priors"] is not None:
        settings["priors"] = _priors_from_json(settings["priors"])
    if settings["curriculum"] is not None:
        settings["curriculum"] = [_stage_from_json(stage) for stage in settings["curriculum"]]
    values = {n.removeprefix("fit_"): v for n, v in stored.items() if n.startswith("fit_")}
    return SpinverseFit(SpinverseModel(acquisition, grid=grid, **settings), values)


def _priors_to_json(priors):
    for prior in priors:
        if type(prior) not in _PRIORS.values():
            raise ValueError(f"priors has {prior!r}, which cannot be saved; use {list(_PRIORS)}.")
    return [[type(prior).__name__, asdict(prior)] for prior in priors]


def _priors_from_json(pairs):
    return tuple(_PRIORS[name](**parameters) for name, parameters in pairs)


def _stage_from_json(stage):
    times = stage["diffusion_times"]
    return Stage(
        **{
            **stage,
            "diffusion_times": None if times is None else tuple(times),
            "priors": _priors_from_json(stage["priors"]),
        }
    )
