"""SpinverseModel: microscopic walls from diffusion MRI, as a DIPY model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import Acquisition, BaseAcquisition, as_acquisition, require_pulsed
from dipy_spinverse.bloch_torrey import simulate
from dipy_spinverse.cell_search import CellInversion
from dipy_spinverse.cell_search.smooth import SmoothCellInversion, signals_of_cells
from dipy_spinverse.docstrings import fill_doc
from dipy_spinverse.grid import TetrahedralGrid, bcc_grid
from dipy_spinverse.grid.tetrahedral_grid import build_grid
from dipy_spinverse.inversion import FaceSolver, InversionSettings, Stage
from dipy_spinverse.inversion.curriculum import check_curriculum
from dipy_spinverse.inversion.face_solver import OPTIMIZERS
from dipy_spinverse.inversion.unknowns import free_water_signals
from dipy_spinverse.packed_cells import PackedCellsModel
from dipy_spinverse.spinverse.chunk import SMOOTH_CELLS, FitChunk, layout
from dipy_spinverse.spinverse.fit import SpinverseFit, packed_cells_values
from dipy_spinverse.spinverse.merged import tissue_with_walls, walls_alone
from dipy_spinverse.spinverse.saved import (
    priors_from_json,
    priors_to_json,
    stage_from_json,
    stage_to_json,
)
from dipy_spinverse.spinverse.tissue_walls import (
    TissueWalls,
    permeability_field_signals,
    signal_correction,
)
from dipy_spinverse.spinverse.wall_corrections import LARGEST_LINK_PHASE
from dipy_spinverse.units import diffusivity_um2_per_ms
from dipy_spinverse.voxels.chunks import Engine, check_number, fit_image
from dipy_spinverse.voxels.image import Image, image_of, wanted_voxels
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.noise import noise_from_b0
from dipy_spinverse.voxels.status import Status

_CELL_SEARCH = "cell-search"
# mm^2/s, of the water between walls where it is not given.
_DIFFUSIVITY = 2e-3
_N_FIELDS = 4
_N_DRAWS = 200
_BYTES_PER_CHUNK = 2**30
_MOST_PER_CHUNK = 64
# Each has a lattice of its own: more together would hardly cost less.
_MOST_WITH_PACKINGS = 16
_GRID_ARRAYS = ("points_um", "tetrahedra", "tetrahedron_points")
_GRID_SIZES = ("period_um", "box_um")


class SpinverseModel(VoxelModel):
    """Find what the tissue of voxels is like, and their walls (membranes), from their signals.

    The maps are those of packed permeable cylinders and spheres (see
    :class:`dipy_spinverse.PackedCellsModel`). Where walls are asked for, packings of such bodies
    are put on a tetrahedral lattice, and the permeabilities of its faces leave them where the
    signals ask for it, as the Bloch-Torrey equation predicts; the maps of voxels whose signals
    packed cells do not explain are read off these walls. On a grid with an absorbing outside, or
    with `priors`, a `curriculum` or the optimiser "adam", there are walls alone, and all faces of
    the grid are unknown [1]_.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings (`big_delta`, `small_delta`).
    grid : TetrahedralGrid, optional
        A periodic lattice of 4 x 4 x 4 cubes of 5 um where not given. Packings have a length of
        their own, by which they scale it (`SpinverseFit.field_scale`).
    diffusivity : float, optional
        Of the water in tissue, mm^2/s, where it is known. Otherwise packed cells find it, smooth
        cells within some 10 % of 2e-3 mm^2/s; for other walls alone it is 2e-3 mm^2/s.
    free_diffusivity : float, optional
        Of free water outside of the grid, mm^2/s, where :meth:`fit` is asked for it. By default at
        body temperature; give that of the medium for tissue ex vivo.
    te, mixing_time : float or array-like (M,), optional
        Echo times, and mixing times of stimulated echoes, s, where `gtab` is a GradientTable. Each
        pair has its own initial magnetisation.
    isotropic : bool or array-like (M,), optional
        Averages over all directions, where `gtab` is a GradientTable. They give maps, but no
        walls.
    priors : sequence, optional
        Priors in all stages, instead of the curriculum's own.
    curriculum : sequence of Stage, optional
        The stages of the inversion. By default `dipy_spinverse.inversion.DEFAULT_CURRICULUM`, on
        a grid with absorbing outside `CARVING_CURRICULUM`, and for "adam" `ADAM_CURRICULUM`.
    optimizer : {"cell-search", "smooth-cells", "gauss-newton", "adam"}, optional
        "cell-search" looks for separate closed cells in a box with an absorbing outside, made of
        tetrahedra of the grid; "smooth-cells" for cells in this box whose walls need not lie on
        the grid, of a known noise level (on trial: it may find another shape that fits);
        "gauss-newton" is Levenberg-Marquardt in data space over all faces, "adam" the published
        method. By default "cell-search" on an absorbing grid if S0 is known, without `priors`
        and `curriculum`, else "gauss-newton".
    device : str, optional
        "cpu", or an accelerator that torch knows, as "cuda" (UNTESTED on a GPU; see
        ``benchmarks/gpu.py``).
    seed : int, optional
        Of the random part of the start, which breaks the symmetry of a uniform one, and of the
        fields. It is the same in all voxels: a voxel's fit depends on others only through the
        noise level, where that comes from their b0 too.

    Raises
    ------
    ValueError
        Missing or inconsistent timings, an unknown optimiser, a diffusivity that is not positive.

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
        diffusivity: float | None = None,
        free_diffusivity: float = 3e-3,
        te: ArrayLike | None = None,
        mixing_time: ArrayLike | None = None,
        isotropic: ArrayLike | None = None,
        priors: Sequence | None = None,
        curriculum: Sequence[Stage] | None = None,
        optimizer: str | None = None,
        device: str = "cpu",
        seed: int = 0,
    ):
        super().__init__(gtab, te, mixing_time, isotropic)
        self.acquisition = require_pulsed(self.acquisition)
        known = (_CELL_SEARCH, SMOOTH_CELLS, *OPTIMIZERS)
        if optimizer is not None and optimizer not in known:
            raise ValueError(
                f"optimizer is {optimizer!r}; use one of {', '.join(map(repr, known))}."
            )
        self.diffusivity_um2_per_ms = diffusivity_um2_per_ms(
            "diffusivity", _DIFFUSIVITY if diffusivity is None else diffusivity
        )
        self.free_diffusivity_um2_per_ms = diffusivity_um2_per_ms(
            "free_diffusivity", free_diffusivity
        )
        if self.acquisition.b0_mask.all():
            raise ValueError("gtab has b0 measurements only; walls show in weighted ones.")
        if curriculum is not None:
            check_curriculum(curriculum)
        self.grid = bcc_grid() if grid is None else grid
        self.diffusivity = None if diffusivity is None else float(diffusivity)
        self.free_diffusivity = float(free_diffusivity)
        self.priors, self.curriculum, self.optimizer = priors, curriculum, optimizer
        self.device, self.seed = device, int(seed)

    @cached_property
    def tissue_model(self) -> PackedCellsModel:
        """The model of the packed cells."""
        return PackedCellsModel(
            self.acquisition, diffusivity=self.diffusivity,
            free_diffusivity=self.free_diffusivity, seed=self.seed,
        )  # fmt: skip

    @property
    def _has_tissue(self):
        """Whether walls are those of tissue by default, which packed cells describe too."""
        own = self.optimizer in (None, "gauss-newton") and not (self.priors or self.curriculum)
        return own and self.grid.boundary == "periodic"

    def _check_walls(self):
        if self.acquisition.isotropic.any():
            raise ValueError(
                "walls is asked for, but the acquisition has averages over directions "
                "(isotropic), which no wall field has. Give walls=False for the maps of packed "
                "cells, as PackedCellsModel gives them."
            )

    def _warn_if_coarse(self):
        phase = np.abs(self.grid.displacements @ self.acquisition.q_vectors.T).max(axis=0)
        coarse = phase > LARGEST_LINK_PHASE
        if coarse.any():
            warnings.warn(
                f"The grid is too coarse for {coarse.sum()} of {len(coarse)} measurements: the "
                f"phase between neighbouring tetrahedra reaches {phase.max():.1f} rad. Use "
                f"lattice cubes smaller by a factor of {phase.max() / LARGEST_LINK_PHASE:.1f}, "
                "or leave these measurements out.",
                stacklevel=3,
            )

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
        n_fields: int = _N_FIELDS,
        n_draws: int = _N_DRAWS,
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
            Initial magnetisation of walls alone, where it is known; otherwise it is fitted, one
            for each echo time, as it always is of packed cells. `optimizer="cell-search"` needs
            it.
        sigma : float or array-like (...), optional
            Standard deviation of the noise. Where not given, from repeated b0 measurements (if
            there are enough; of each echo time alone in a search for cells), or else from the
            residual.
        walls : bool or array-like (...) of bool, optional
            Voxels whose walls are sought, some seconds for each; only these are stored. The maps
            of packed cells come for all voxels, in a fraction of the time.
        free_water : bool, optional
            Also fit a fraction of free water outside the grid of walls alone; packed cells
            always have one.
        n_fields : int, optional
            Number of further wall fields per voxel, each from a draw of its own; of walls alone,
            from a start and noise of its own.
        n_draws : int, optional
            Draws from the posterior of packed cells; with 0 only the likeliest are sought.
        %(engine)s
        %(n_jobs)s
        %(verbose)s
        %(journal)s
        %(max_memory)s

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
        of_walls, of_tissue = (
            None if journal is None else Path(journal) / part for part in ("walls", "tissue")
        )
        how = Engine(engine, n_jobs, verbose, of_walls, max_memory)
        shape = np.shape(data)[:-1]
        asked = wanted_voxels("walls", walls, shape).reshape(shape)
        if not self._has_tissue:
            if not asked.any():
                raise ValueError(
                    "walls is False, but on an absorbing grid, or with priors, a curriculum or "
                    "another optimizer, maps are those of walls alone; leave walls=True, or use "
                    "PackedCellsModel."
                )
            wanted = wanted_voxels("mask", True if mask is None else mask, shape)
            mask = asked & wanted.reshape(shape)
        image = image_of(data, mask, sigma, self.acquisition, S0, max_memory=max_memory)
        found: tuple = image.status, {}
        if asked.any() and self._has_tissue:
            self._check_walls()
            walls_of_tissue = TissueWalls(self, n_fields)
            found = fit_image(
                image.within(asked), walls_of_tissue, layout(self, n_fields, 1), how,
                most=_MOST_WITH_PACKINGS, model=self,
                options={"sigma": sigma, "n_fields": n_fields},
            )  # fmt: skip
        if not self._has_tissue:
            self._check_walls()
            self._warn_if_coarse()
            inversion = self._inversion(S0 is None, free_water, n_fields)
            options = {"sigma": sigma, "S0": S0, "free_water": free_water, "n_fields": n_fields}
            found = self._fit_walls(image, asked, inversion, options, how)
            return SpinverseFit(self, *walls_alone(*found))
        tissue = self.tissue_model.fit(
            data, image.status == Status.CONVERGED, sigma=sigma, n_draws=n_draws, engine=engine,
            n_jobs=n_jobs, verbose=verbose, journal=of_tissue,
            max_memory=max_memory,
        )  # fmt: skip
        has_walls = asked.reshape(-1)[image.rows]
        merged = tissue_with_walls(image.status, tissue, has_walls, *found)
        return SpinverseFit(self, *merged)

    def _fit_walls(self, image: Image, asked, inversion, options, how):
        """Status (...) and values of walls in the voxels where they are asked for."""
        if options["sigma"] is None and not inversion.estimates_noise:
            noise = noise_from_b0(image.voxels.signals, self.acquisition)[0]
            image = replace(image, voxels=replace(image.voxels, sigma=noise))
        return fit_image(
            image.within(asked),
            FitChunk(self, inversion, options["sigma"] is not None),
            layout(self, options["n_fields"], inversion.n_stages),
            how,
            most=self._voxels_per_chunk(),
            model=self,
            options=options,
        )

    def predict(
        self,
        permeability: ArrayLike,
        S0: ArrayLike = 1.0,
        gtab: GradientTable | BaseAcquisition | None = None,
    ) -> np.ndarray:
        """Signals of given permeabilities.

        Parameters
        ----------
        permeability : array-like (..., F)
            um/ms.
        S0 : float or array-like (...) or (..., M), optional
            Initial magnetisation.
        gtab : GradientTable or Acquisition, optional
            The model's own where not given.

        Returns
        -------
        ndarray (..., M)
        """
        acquisition = self.acquisition if gtab is None else as_acquisition(gtab)
        permeability, S0 = np.asarray(permeability), np.asarray(S0)
        shape = permeability.shape[:-1]
        if permeability.shape[-1:] != (self.grid.n_faces,):
            raise ValueError(
                f"permeability has shape {permeability.shape}; the grid has {self.grid.n_faces} "
                "faces, which the last axis must hold."
            )
        if S0.shape not in ((), shape, (*shape, len(acquisition))):
            raise ValueError(
                f"S0 has shape {S0.shape}, permeability has voxels {shape}; give one value for "
                "all, one for each voxel, or one for each measurement of each."
            )
        flat = permeability.reshape(-1, self.grid.n_faces)
        signals = simulate(
            acquisition,
            self.grid,
            flat,
            diffusivity=self.diffusivity_um2_per_ms,
            dtype="float32",
            device=self.device,
        ).reshape(*shape, len(acquisition))
        return signals * (S0 if S0.shape == signals.shape else S0[..., None])

    def signals_of_fit(
        self, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of packed cells, or of the walls and the free water beside them."""
        if "cell_field" in values:
            return signals_of_cells(values, acquisition, self.grid)
        has_walls, tissue = values["has_walls"], packed_cells_values(values)
        walls = {name: value for name, value in values.items() if name in SpinverseFit.WALLS}
        signals = np.empty((len(has_walls), len(acquisition)))
        # Packed cells have no signals of waveforms; walls alone have.
        pulsed = isinstance(acquisition, Acquisition)
        alone = has_walls if not (tissue and pulsed) else np.zeros_like(has_walls)
        if alone.any():
            fraction = walls["field_free_water"][:, None]
            free = free_water_signals(acquisition, self.free_diffusivity_um2_per_ms)
            in_grid = permeability_field_signals(self, walls, acquisition)
            signals[alone] = (1 - fraction) * in_grid + fraction * free
        if not alone.all():
            part = {name: value[~alone] for name, value in tissue.items()}
            signals[~alone] = self.tissue_model.signals_of_fit(part, acquisition)
            refuted = ~values["packed_cells"]
            if refuted.any() and pulsed:
                left = {name: value[refuted[has_walls]] for name, value in walls.items()}
                signals[refuted] += signal_correction(self, left, acquisition)
        return signals

    def _inversion(self, amplitudes, free_water, n_fields):
        smooth = self.optimizer == SMOOTH_CELLS
        faces_only = (amplitudes and not smooth) or free_water or self.priors or self.curriculum
        on_cpu = self.device == "cpu"
        possible = self.grid.boundary == "absorbing" and on_cpu and not faces_only
        for_cells = smooth or self.optimizer == _CELL_SEARCH
        if for_cells and not possible:
            raise ValueError(
                f'optimizer="{self.optimizer}" needs a grid with boundary="absorbing", '
                f'device="cpu", {"" if smooth else "S0 given to fit(), "}and neither free_water, '
                "priors nor a curriculum."
            )
        if smooth:
            warnings.warn(
                "smooth cells are on trial: the search may end in a shape that is wrong but "
                "explains the data about as well, most of all in the places of cells. Fit with "
                "other seeds, and trust what these agree on.",
                stacklevel=3,
            )
            if amplitudes:
                warnings.warn(
                    "S0 is not given: that of late echo times is hardly told apart from the "
                    "permeability of walls, and no interval says so. Give S0 if you know it.",
                    stacklevel=3,
                )
            return SmoothCellInversion(
                self.acquisition,
                self.grid,
                diffusivity=self.diffusivity_um2_per_ms,
                n_fields=n_fields,
                seed=self.seed,
                S0_known=not amplitudes,
                diffusivity_known=self.diffusivity is not None,
            )
        if for_cells or (self.optimizer is None and possible):
            return CellInversion(
                self.acquisition,
                self.grid,
                diffusivity=self.diffusivity_um2_per_ms,
                n_fields=n_fields,
                seed=self.seed,
            )
        settings = InversionSettings(
            diffusivity=self.diffusivity_um2_per_ms,
            optimizer=self.optimizer or "gauss-newton",
            curriculum=self.curriculum,
            priors=self.priors,
            amplitudes=amplitudes,
            free_water=free_water,
            free_diffusivity=self.free_diffusivity_um2_per_ms,
            n_fields=n_fields,
            seed=self.seed,
            device=self.device,
        )
        return FaceSolver(self.acquisition, self.grid, settings)

    def _voxels_per_chunk(self):
        # Jacobian, its weighted copy and the temporaries of a step.
        bytes_per_voxel = 4 * 8 * len(self.acquisition) * self.grid.n_faces
        return max(1, min(_MOST_PER_CHUNK, _BYTES_PER_CHUNK // bytes_per_voxel))

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Settings, and the arrays of the grid."""
        curriculum, priors = self.curriculum, self.priors
        settings = {
            "diffusivity": self.diffusivity,
            "free_diffusivity": self.free_diffusivity,
            "optimizer": self.optimizer,
            "seed": self.seed,
            "priors": None if priors is None else priors_to_json(priors),
            "curriculum": None if curriculum is None else [*map(stage_to_json, curriculum)],
            "boundary": self.grid.boundary,
        }
        arrays = {name: getattr(self.grid, name) for name in _GRID_ARRAYS}
        for name in _GRID_SIZES:
            if getattr(self.grid, name) is not None:
                arrays[name] = getattr(self.grid, name)
        return settings, arrays

    @classmethod
    def from_settings(
        cls, acquisition: BaseAcquisition, settings: dict, arrays: Mapping[str, np.ndarray]
    ) -> SpinverseModel:
        """The model of :meth:`settings`, on the CPU."""
        settings = dict(settings)
        points, tetrahedra, tetrahedron_points = (arrays[name] for name in _GRID_ARRAYS)
        boundary, sizes = settings.pop("boundary"), (arrays.get(name) for name in _GRID_SIZES)
        grid = build_grid(points, tetrahedra, tetrahedron_points, boundary, *sizes)
        if settings["priors"] is not None:
            settings["priors"] = priors_from_json(settings["priors"])
        if settings["curriculum"] is not None:
            settings["curriculum"] = [*map(stage_from_json, settings["curriculum"])]
        return cls(acquisition, grid=grid, **settings)
