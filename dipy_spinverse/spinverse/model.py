"""SpinverseModel: microscopic walls from diffusion MRI, as a DIPY model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
from dipy.core.gradients import GradientTable
from dipy.utils.multiproc import determine_num_processes
from dipy.utils.parallel import paramap
from scipy.stats import f as f_distribution

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import simulate
from dipy_spinverse.cell_search import CellInversion
from dipy_spinverse.grid import TetrahedralGrid, bcc_grid
from dipy_spinverse.inversion import Inversion, Stage
from dipy_spinverse.inversion.curriculum import check_curriculum
from dipy_spinverse.inversion.inversion import OPTIMIZERS
from dipy_spinverse.packed_cells import packed_cells_posterior, prepare_tables
from dipy_spinverse.spinverse.chunk import empty_values, fit_chunk
from dipy_spinverse.spinverse.fit import SAME_PATTERN, SpinverseFit, Status, load_fit
from dipy_spinverse.voxels.noise import KNOWN, noise_from_b0
from dipy_spinverse.voxels.status import per_voxel, screened

__all__ = ["SpinverseFit", "SpinverseModel", "Status", "load_fit"]

_CELL_SEARCH = "cell-search"
_MM2_PER_S = 1e3  # um^2/ms
# Phase between neighbouring tetrahedra above which a grid is too coarse for an encoding.
_LARGEST_LINK_PHASE = np.pi / 2
_N_SAMPLES = 4
_MISFIT = 1.5
_N_DRAWS = 200
_BYTES_PER_CHUNK = 2**30


class SpinverseModel:
    """Find the walls (membranes) in voxels from their diffusion-weighted signals.

    The permeability of every face of a fixed tetrahedral grid is an unknown; the Bloch-Torrey
    equation predicts the signals [1]_. On a periodic grid, with neither `priors` nor a
    `curriculum`, packed cylinders and spheres are fitted beside, and give the maps of the voxels
    that they explain (see :class:`dipy_spinverse.PackedCellsModel`: the first fit with new
    timings simulates tables, about a minute for each).

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings (`big_delta`, `small_delta`).
    grid : TetrahedralGrid, optional
        A periodic lattice of 4 x 4 x 4 cells of 5 um where not given.
    diffusivity : float, optional
        Of the water between the walls, mm^2/s.
    free_diffusivity : float, optional
        Of free water outside of the grid, mm^2/s, where :meth:`fit` is asked for it. By default at
        body temperature; give that of the medium for tissue ex vivo.
    te : float or array-like (M,), optional
        Echo times, s, where `gtab` is a GradientTable. Each echo time has its own initial
        magnetisation.
    priors : sequence, optional
        Priors in all stages, instead of the curriculum's own.
    curriculum : sequence of Stage, optional
        The stages of the inversion. By default `dipy_spinverse.inversion.DEFAULT_CURRICULUM`, on
        a grid with absorbing outside `CARVING_CURRICULUM`, and for "adam" `ADAM_CURRICULUM`.
    optimizer : {"cell-search", "gauss-newton", "adam"}, optional
        "cell-search" looks for separate closed cells in a box with an absorbing outside;
        "gauss-newton" is Levenberg-Marquardt in data space over all faces, "adam" the published
        method. By default "cell-search" on an absorbing grid if S0 is known, without `priors`
        and `curriculum`, else "gauss-newton".
    device : str, optional
        "cpu", or an accelerator that torch knows, as "cuda".
    seed : int, optional
        Of the random part of the start, which breaks the symmetry of a uniform one, and of the
        samples. It is the same in all voxels: a voxel's fit depends on others only through the
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
    >>> fit = model.fit(100 * np.exp(-2 * acquisition.b), sigma=1.0, n_samples=0)
    >>> bool(fit.surface_to_volume < 0.05), float(fit.S0_hat.round())
    (True, 100.0)
    """

    def __init__(
        self,
        gtab: GradientTable | Acquisition,
        *,
        grid: TetrahedralGrid | None = None,
        diffusivity: float = 2e-3,
        free_diffusivity: float = 3e-3,
        te=None,
        priors: Sequence | None = None,
        curriculum: Sequence[Stage] | None = None,
        optimizer: str | None = None,
        device: str = "cpu",
        seed: int = 0,
    ):
        if isinstance(gtab, Acquisition):
            if te is not None:
                raise ValueError("te is given beside an Acquisition, which has its own; drop te.")
            self.acquisition = gtab
        else:
            self.acquisition = Acquisition.from_gtab(gtab, te=te)
        known = (_CELL_SEARCH, *OPTIMIZERS)
        if optimizer is not None and optimizer not in known:
            raise ValueError(
                f"optimizer is {optimizer!r}; use one of {', '.join(map(repr, known))}."
            )
        for name, value in (("diffusivity", diffusivity), ("free_diffusivity", free_diffusivity)):
            if not 0 < value < 0.1:
                raise ValueError(
                    f"{name} is {value!r}; give it in mm^2/s (water at body temperature has 3e-3)."
                )
        if self.acquisition.b0_mask.all():
            raise ValueError("gtab has b0 measurements only; walls show in weighted ones.")
        if curriculum is not None:
            check_curriculum(curriculum)
        self.grid = bcc_grid() if grid is None else grid
        self.diffusivity, self.free_diffusivity = float(diffusivity), float(free_diffusivity)
        self.priors, self.curriculum, self.optimizer = priors, curriculum, optimizer
        self.device, self.seed = device, int(seed)
        self._warn_if_too_coarse()

    def _warn_if_too_coarse(self):
        phase = np.abs(self.grid.displacements @ self.acquisition.q_vectors.T).max(axis=0)
        coarse = phase > _LARGEST_LINK_PHASE
        if coarse.any():
            warnings.warn(
                f"The grid is too coarse for {coarse.sum()} of {len(coarse)} measurements: the "
                f"phase between neighbouring tetrahedra reaches {phase.max():.1f} rad. Use cells "
                f"smaller by a factor of {phase.max() / _LARGEST_LINK_PHASE:.1f}, or leave these "
                "measurements out.",
                stacklevel=3,
            )

    @property
    def diffusivity_um2_per_ms(self) -> float:
        """Diffusivity of the water between the walls in the package's units."""
        return self.diffusivity * _MM2_PER_S

    @property
    def free_diffusivity_um2_per_ms(self) -> float:
        """Diffusivity of free water in the package's units."""
        return self.free_diffusivity * _MM2_PER_S

    def fit(
        self,
        data: np.ndarray,
        mask: np.ndarray | None = None,
        S0: float | np.ndarray | None = None,
        *,
        sigma: float | np.ndarray | None = None,
        free_water: bool = False,
        n_samples: int = _N_SAMPLES,
        engine: str = "serial",
        n_jobs: int = -1,
        vox_per_chunk: int | None = None,
        verbose: bool = False,
    ) -> SpinverseFit:
        """Fit walls to the signals of voxels.

        Parameters
        ----------
        data : array-like (..., M)
            Signals, of one voxel or of an image of up to three dimensions.
        mask : array-like (...), optional
            Voxels to fit; all where not given.
        S0 : float or array-like (...), optional
            Initial magnetisation, where it is known; otherwise it is fitted, one for each echo
            time.
        sigma : float or array-like (...), optional
            Standard deviation of the noise. Where not given, from repeated b0 measurements (if
            there are enough; of each echo time alone in a search for cells), or else from the
            residual.
        free_water : bool, optional
            Also fit a fraction of free water outside the grid.
        n_samples : int, optional
            Number of further wall fields per voxel, each from a start and noise of its own. With
            0 there are none, packed cells are not asked either, and the intervals contain
            `SpinverseFit.WALL_ERRORS` only.
        engine : {"serial", "joblib", "dask", "ray"}, optional
            How chunks of voxels are spread over processes.
        n_jobs : int, optional
            Number of processes of the other engines; -1 for all but one core.
        vox_per_chunk : int, optional
            Voxels fitted together; by default as many as fit into about 1 GiB.
        verbose : bool, optional
            Show a progress bar.

        Returns
        -------
        SpinverseFit
            Voxels that cannot be fitted (NaN, infinite or negative samples, no signal) have a
            `status` that says so, and zeros elsewhere.

        Raises
        ------
        ValueError
            Arguments of wrong shapes or range.
        """
        data = np.asarray(data)
        self._check_data(data)
        shape = data.shape[:-1]
        flat = data.reshape(-1, data.shape[-1]).astype(float)
        wanted = per_voxel("mask", True if mask is None else mask, shape).astype(bool)
        known = None if S0 is None else per_voxel("S0", S0, shape).astype(float)
        noise = None if sigma is None else per_voxel("sigma", sigma, shape).astype(float)
        if noise is not None and not (noise[wanted] > 0).all():
            raise ValueError("sigma has values that are not positive; give the noise's sd > 0.")
        status, scale = self._screen(flat, wanted, known)
        chosen = np.flatnonzero(status == Status.CONVERGED)

        signals = flat[chosen] / scale[chosen, None]
        freedom = KNOWN
        if noise is None:
            noise, freedom = noise_from_b0(flat[chosen], self.acquisition)
        else:
            noise = noise[chosen]
        if noise is not None:
            noise = noise / scale[chosen]
        inversion = self._inversion(S0 is None, free_water, n_samples)
        posterior_of = self._posterior_of_packed_cells(free_water) if n_samples else None
        # Noise from the residual of a wall field that may follow it is less sure than it seems.
        noise_freedom = freedom if noise is not None else max(len(self.acquisition) // 4, 1)
        n_workers = 1 if engine == "serial" else determine_num_processes(n_jobs)
        size = self._chunk_size(vox_per_chunk, len(chosen), n_workers)
        parts = [slice(first, first + size) for first in range(0, len(chosen), size)]
        told = None if sigma is None and inversion.estimates_noise else noise
        results = paramap(
            fit_chunk,
            [(signals[part], None if told is None else told[part]) for part in parts],
            func_args=[inversion, self, posterior_of, noise_freedom, engine != "serial"],
            engine=engine,
            n_jobs=n_jobs,
            verbose=verbose,
        )
        values = empty_values(self, len(flat), n_samples, inversion.n_stages)
        for part, chunk in zip(parts, results, strict=True):
            rows = chosen[part]
            for name, value in chunk.items():
                values[name][rows] = value
        for name in ("S0", "sigma", "residual_rms"):
            values[name] *= scale.reshape(-1, *(1,) * (values[name].ndim - 1))
        self._set_status(status, chosen, values, freedom)
        values["status"] = status
        values = {name: value.reshape(shape + value.shape[1:]) for name, value in values.items()}
        return SpinverseFit(self, values)

    def predict(
        self, permeability: np.ndarray, S0: float | np.ndarray = 1.0, gtab=None
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
        acquisition = self._acquisition_of(gtab)
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

    def _acquisition_of(self, gtab):
        if gtab is None:
            return self.acquisition
        return gtab if isinstance(gtab, Acquisition) else Acquisition.from_gtab(gtab)

    def _check_data(self, data):
        if not 1 <= data.ndim <= 4:
            raise ValueError(f"data has {data.ndim} dimensions; give 1 (a voxel) to 4 (a volume).")
        if data.shape[-1] != len(self.acquisition):
            raise ValueError(
                f"data has {data.shape[-1]} measurements along its last axis, the acquisition has "
                f"{len(self.acquisition)}; give data and gradients of the same scan."
            )

    def _screen(self, flat, wanted, known_S0):
        """Status (V,) before the fit, and a guess of the initial magnetisation (V,)."""
        least_b = self.acquisition.b == self.acquisition.b.min()
        low = self.acquisition.b0_mask if self.acquisition.b0_mask.any() else least_b
        with np.errstate(invalid="ignore", over="ignore"):
            scale = flat[:, low].mean(axis=1) if known_S0 is None else known_S0.copy()
        status = screened(flat, wanted, scale, stacklevel=4)
        scale[status != Status.CONVERGED] = 1.0
        return status, scale

    def _set_status(self, status, chosen, values, freedom):
        """Status of the voxels that were fitted; the noise has so many degrees of freedom."""
        stopped = values.pop("converged")
        ratio = values["residual_rms"] / np.where(values["sigma"] > 0, values["sigma"], 1)
        by_chance = np.sqrt(f_distribution.ppf((0.95, 0.99), len(self.acquisition), freedom or 1))
        noise_reached = (freedom > 0) & (ratio <= by_chance[0])
        misfit = (ratio > max(_MISFIT, by_chance[1])) & ~values["packed_cells"]
        agree = values["pattern_agreement"] >= SAME_PATTERN
        outcome = np.where(agree, Status.CONVERGED, Status.PATTERN_NOT_DETERMINED)
        outcome = np.where(stopped | noise_reached, outcome, Status.NOT_CONVERGED)
        outcome = np.where(misfit, Status.MISFIT, outcome)
        status[chosen] = outcome[chosen]

    def _inversion(self, amplitudes, free_water, n_samples):
        faces_only = amplitudes or free_water or self.priors or self.curriculum
        on_cpu = self.device == "cpu"
        possible = self.grid.boundary == "absorbing" and on_cpu and not faces_only
        if self.optimizer == _CELL_SEARCH and not possible:
            raise ValueError(
                'optimizer="cell-search" needs a grid with boundary="absorbing", device="cpu", S0 '
                "given to fit(), and neither free_water, priors nor a curriculum."
            )
        if self.optimizer == _CELL_SEARCH or (self.optimizer is None and possible):
            return CellInversion(
                self.acquisition,
                self.grid,
                diffusivity=self.diffusivity_um2_per_ms,
                n_samples=n_samples,
                seed=self.seed,
            )
        return Inversion(
            self.acquisition,
            self.grid,
            diffusivity=self.diffusivity_um2_per_ms,
            optimizer=self.optimizer or "gauss-newton",
            curriculum=self.curriculum,
            priors=self.priors,
            amplitudes=amplitudes,
            free_water=free_water,
            free_diffusivity=self.free_diffusivity_um2_per_ms,
            n_samples=n_samples,
            seed=self.seed,
            device=self.device,
        )

    def _posterior_of_packed_cells(self, free_water):
        """Posterior of signals and noise, where the fit is that of tissue by default; or None."""
        own = self.optimizer in (None, "gauss-newton") and not (self.priors or self.curriculum)
        if self.grid.boundary != "periodic" or not own:
            return None
        prepare_tables(self.acquisition, self.diffusivity_um2_per_ms)
        return partial(
            packed_cells_posterior,
            self.acquisition,
            diffusivity=self.diffusivity_um2_per_ms,
            free_water=free_water,
            free_diffusivity=self.free_diffusivity_um2_per_ms,
            n_samples=_N_DRAWS,
            seed=self.seed,
        )

    def _chunk_size(self, vox_per_chunk, n_voxels, n_workers):
        if vox_per_chunk is None:
            # Jacobian, its weighted copy and the temporaries of a step.
            bytes_per_voxel = 4 * 8 * len(self.acquisition) * self.grid.n_faces
            share = -(-n_voxels // n_workers)
            return max(1, min(64, _BYTES_PER_CHUNK // bytes_per_voxel, share))
        if vox_per_chunk < 1:
            raise ValueError(f"vox_per_chunk is {vox_per_chunk}; give at least 1.")
        return vox_per_chunk
