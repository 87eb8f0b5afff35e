"""SpinverseModel: microscopic walls from diffusion MRI, as a DIPY model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import (
    Acquisition,
    BaseAcquisition,
    require_pulsed,
    require_single_magnitudes,
)
from dipy_spinverse.docstrings import fill_doc
from dipy_spinverse.grid import TetrahedralGrid, bcc_grid
from dipy_spinverse.grid.tetrahedral_grid import build_grid
from dipy_spinverse.inversion import WallProblem
from dipy_spinverse.packed_cells import PackedCellsModel
from dipy_spinverse.spinverse.fit import SpinverseFit
from dipy_spinverse.spinverse.permeability_fields import ClosedCellInversion, FaceInversion
from dipy_spinverse.spinverse.saved import from_json, to_json
from dipy_spinverse.spinverse.tissue_walls import TissueWallInversion, packed_cells_model
from dipy_spinverse.spinverse.voxel_inversion import VoxelInversion
from dipy_spinverse.units import diffusivity_um2_per_ms
from dipy_spinverse.voxels.chunks import Engine, check_number
from dipy_spinverse.voxels.fit import with_warning_of_prior
from dipy_spinverse.voxels.image import image_of, wanted_voxels
from dipy_spinverse.voxels.model import VoxelModel

# mm^2/s, of the water between walls where it is not known: typical of tissue at body temperature.
_DIFFUSIVITY = 2e-3
_GRID_ARRAYS = ("points_um", "tetrahedra", "tetrahedron_points")
_GRID_SIZES = ("period_um", "box_um")


def choose_inversion(problem: WallProblem) -> VoxelInversion:
    """The engine that `SpinverseModel` uses if none is given.

    The first one whose conditions are fulfilled:

    =======================  ==========================================  ==================
    engine                   conditions                                  maps from
    =======================  ==========================================  ==================
    `TissueWallInversion`    periodic grid                               packed cells
    `ClosedCellInversion`    absorbing outside, S0 known, no free water  walls of the cells
                             to be estimated, CPU
    `FaceInversion`          none: other grids, S0 estimated, free       permeability of
                             water, or a GPU                             all faces
    =======================  ==========================================  ==================

    `FaceInversion` can be requested on any grid; ``ClosedCellInversion(smooth=True)``, which
    needs an absorbing one, is never chosen.

    Parameters
    ----------
    problem : WallProblem
        Acquisition, grid and device, and what is known or to be estimated.

    Returns
    -------
    TissueWallInversion, ClosedCellInversion or FaceInversion
        With its default options.

    Examples
    --------
    >>> from dipy_spinverse import Acquisition
    >>> acquisition = Acquisition([0, 1], [[0, 0, 0], [1, 0, 0]], small_delta=10, big_delta=30)
    >>> choose_inversion(WallProblem(acquisition, bcc_grid(3, 5.0)))
    TissueWallInversion()
    >>> box = bcc_grid(3, 5.0, boundary="absorbing")
    >>> choose_inversion(WallProblem(acquisition, box, S0_known=True))
    ClosedCellInversion(smooth=False)
    """
    if problem.grid.boundary == "periodic":
        return TissueWallInversion()
    cells_possible = problem.S0_known and not problem.free_water and problem.device == "cpu"
    if problem.grid.boundary == "absorbing" and cells_possible:
        return ClosedCellInversion()
    return FaceInversion()


class SpinverseModel(VoxelModel):
    """Tissue of packed permeable cells, and their walls (membranes) in chosen voxels.

    By default maps are those of packed permeable cylinders and spheres (see
    :class:`dipy_spinverse.PackedCellsModel`). Where walls are requested, packings of such bodies
    on a tetrahedral lattice are corrected where the signals give evidence for it, as the
    Bloch-Torrey equation predicts. Other engines estimate the walls from the signals alone: the
    permeabilities of all faces of the grid [1]_, or closed cells in a box.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings (`big_delta`, `small_delta`).
    grid : TetrahedralGrid, optional
        By default a periodic lattice of 4 x 4 x 4 cubes of 5 um. Packings rescale it
        (`SpinverseFit.field_scale`).
    inversion : FaceInversion, ClosedCellInversion or TissueWallInversion, optional
        The engine, with its options. By default :func:`choose_inversion` chooses one.
    diffusivity : float, optional
        Of the water in tissue, mm^2/s, where it is known. Otherwise packed cells estimate it,
        smooth cells within some 10 % of 2e-3 mm^2/s; for other walls it is 2e-3 mm^2/s.
    free_diffusivity : float, optional
        Of free water, mm^2/s. The default is that at body temperature; give that of the medium
        for tissue ex vivo.
    te, mixing_time : float or array-like (M,), optional
        Echo times, and mixing times of stimulated echoes, s, if `gtab` is a GradientTable. Each
        pair has its own initial magnetisation.
    isotropic : bool or array-like (M,), optional
        Averages over all directions, if `gtab` is a GradientTable. They give maps, but no walls.
    n_averages : int or array-like (M,), optional
        Magnitudes of which each measurement is the mean, as in `Acquisition`, likewise.
    device : str, optional
        "cpu", or an accelerator that torch knows, as "cuda" (UNTESTED on a GPU; see
        ``benchmarks/gpu.py``).
    seed : int, optional
        Of random initial values and posterior samples. It is the same in all voxels: a fit of a
        voxel depends on others only through the noise level, if that is estimated.

    Raises
    ------
    ValueError
        Missing or inconsistent timings, only b0 measurements, an inversion that is not an engine,
        a diffusivity that is not positive.

    References
    ----------
    .. [1] "Spinverse", https://doi.org/10.48550/arXiv.2603.04638

    Examples
    --------
    >>> import numpy as np
    >>> from dipy_spinverse import Acquisition, SpinverseModel, bcc_grid
    >>> acquisition = Acquisition(
    ...     b=[0, 1, 1, 1], directions=np.vstack([np.zeros(3), np.eye(3)]),
    ...     small_delta=10, big_delta=30)
    >>> model = SpinverseModel(acquisition, grid=bcc_grid(3, 5.0))
    >>> fit = model.fit(100 * np.exp(-2 * acquisition.b), sigma=1.0, n_fields=0, n_draws=0)
    >>> bool(fit.surface_to_volume < 0.05), float(fit.S0_hat.round())
    (True, 100.0)
    """

    Fit = SpinverseFit
    acquisition: Acquisition

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        *,
        grid: TetrahedralGrid | None = None,
        inversion: VoxelInversion | None = None,
        diffusivity: float | None = None,
        free_diffusivity: float = 3e-3,
        te: ArrayLike | None = None,
        mixing_time: ArrayLike | None = None,
        isotropic: ArrayLike | None = None,
        n_averages: ArrayLike | None = None,
        device: str = "cpu",
        seed: int = 0,
    ):
        super().__init__(gtab, te, mixing_time, isotropic, n_averages)
        self.acquisition = require_pulsed(self.acquisition)
        if self.acquisition.b0_mask.all():
            raise ValueError("gtab has only b0 measurements; give diffusion-weighted ones, too.")
        if not isinstance(inversion, (VoxelInversion, NoneType)):
            raise ValueError(
                f"inversion is {inversion!r}; give an engine with its options, such as "
                "FaceInversion(), or None."
            )
        self.diffusivity_um2_per_ms = diffusivity_um2_per_ms(
            "diffusivity", _DIFFUSIVITY if diffusivity is None else diffusivity
        )
        self.free_diffusivity_um2_per_ms = diffusivity_um2_per_ms(
            "free_diffusivity", free_diffusivity
        )
        self.grid, self.inversion = bcc_grid() if grid is None else grid, inversion
        self.diffusivity = None if diffusivity is None else float(diffusivity)
        self.free_diffusivity = float(free_diffusivity)
        self.device, self.seed = device, int(seed)

    @cached_property
    def tissue_model(self) -> PackedCellsModel:
        """The model of the packed cells."""
        return packed_cells_model(self.problem())

    @property
    def prior_maps(self) -> Mapping[str, np.ndarray]:
        """Samples of maps from the prior, where they are those of packed cells."""
        is_tissue = isinstance(self.voxel_inversion(), TissueWallInversion)
        return self.tissue_model.prior_maps if is_tissue else {}

    def problem(self, **of_fit: Any) -> WallProblem:
        """What is known about voxels; `of_fit` are the fields of the problem that a fit sets."""
        return WallProblem(
            self.acquisition, self.grid, self.diffusivity_um2_per_ms,
            self.diffusivity is not None, self.free_diffusivity_um2_per_ms, seed=self.seed,
            device=self.device, **of_fit,
        )  # fmt: skip

    def voxel_inversion(self, problem: WallProblem | None = None) -> VoxelInversion:
        """The engine that solves a problem, or that predicts the signals of a fit."""
        return self.inversion or choose_inversion(problem or self.problem())

    @fill_doc
    def fit(
        self,
        data: ArrayLike,
        mask: ArrayLike | None = None,
        S0: ArrayLike | None = None,
        *,
        sigma: ArrayLike | None = None,
        walls: ArrayLike = True,
        free_water: bool = False,
        n_fields: int = 4,
        n_draws: int = 200,
        engine: str = "serial",
        n_jobs: int = -1,
        verbose: bool = False,
        journal: str | Path | None = None,
        max_memory: float | None = None,
    ) -> SpinverseFit:
        """Fit voxels.

        Parameters
        ----------
        %(data)s
        %(mask)s
        S0 : float or array-like (...), optional
            Initial magnetisation, where it is known; by default it is estimated for each echo
            time, as always of packed cells. Closed cells of tetrahedra need it.
        sigma : float or array-like (...), optional
            Standard deviation of the noise. By default it is estimated from repeated b0
            measurements if there are enough (for closed cells separately for each echo time),
            otherwise from the residual.
        walls : bool or array-like (...) of bool, optional
            Voxels of which permeability fields are estimated, some seconds for each; only these
            are stored. Maps of packed cells take a fraction of the time, and are of all voxels.
        free_water : bool, optional
            Also estimate a fraction of free water outside the grid, with a `FaceInversion`; packed
            cells always have one.
        n_fields : int, optional
            Number of further permeability fields per voxel, each of another posterior sample; of
            engines without packed cells, from other initial values and noise.
        n_draws : int, optional
            Number of posterior samples of packed cells; with 0 only the most probable values are
            computed.
        %(execution)s

        Returns
        -------
        SpinverseFit
            Voxels that cannot be fitted (NaN or infinite samples, no signal) have a `status` that
            says so, and zeros elsewhere.

        Raises
        ------
        ValueError
            Arguments of wrong shapes or range.
        """
        for name, number in (("n_fields", n_fields), ("n_draws", n_draws)):
            check_number(name, number, 0)
        compute = Engine(engine, n_jobs, verbose, journal, max_memory)
        shape = np.shape(data)[:-1]
        with_walls = wanted_voxels("walls", walls, shape).reshape(shape)
        if with_walls.any() and self.acquisition.isotropic.any():
            raise ValueError(
                "walls is True, but the acquisition has averages over directions (isotropic), "
                "which permeability fields cannot predict. Set walls=False for the maps of packed "
                "cells, or use PackedCellsModel."
            )
        if with_walls.any():
            require_single_magnitudes(self.acquisition, "walls=True")
        image = image_of(
            data, mask, sigma, self.acquisition, S0, max_memory=max_memory, verbose=verbose
        )
        problem = self.problem(
            S0_known=S0 is not None, free_water=free_water, n_fields=n_fields, n_draws=n_draws
        )
        status, values = self.voxel_inversion(problem).fit(
            problem, image, with_walls, compute, self
        )
        return with_warning_of_prior(SpinverseFit(self, status, values))

    def signals_of_fit(
        self, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of the values of a fit, relative to those without diffusion."""
        return self.voxel_inversion().signals_of_fit(self.problem(), values, acquisition)

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Settings, and the arrays of the grid."""
        settings = {
            "diffusivity": self.diffusivity,
            "free_diffusivity": self.free_diffusivity,
            "inversion": to_json(self.inversion),
            "seed": self.seed,
            "boundary": self.grid.boundary,
        }
        names = [name for name in _GRID_SIZES if getattr(self.grid, name) is not None]
        return settings, {name: getattr(self.grid, name) for name in (*_GRID_ARRAYS, *names)}

    @classmethod
    def from_settings(
        cls, acquisition: BaseAcquisition, settings: dict, arrays: Mapping[str, np.ndarray]
    ) -> SpinverseModel:
        """The model of :meth:`settings`, on the CPU."""
        points, tetrahedra, tetrahedron_points = (arrays[name] for name in _GRID_ARRAYS)
        sizes = (arrays.get(name) for name in _GRID_SIZES)
        grid = build_grid(points, tetrahedra, tetrahedron_points, settings["boundary"], *sizes)
        numbers = {name: settings[name] for name in ("diffusivity", "free_diffusivity", "seed")}
        inversion = from_json(settings["inversion"])
        return cls(acquisition, grid=grid, inversion=inversion, **numbers)
