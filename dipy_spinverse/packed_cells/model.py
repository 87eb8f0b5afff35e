"""PackedCellsModel: packed cylinders and spheres as a DIPY model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import Acquisition, Measurements, pulsed_only
from dipy_spinverse.packed_cells.parameter_maps import PARAMETERS
from dipy_spinverse.packed_cells.posterior import packed_cells_posterior
from dipy_spinverse.packed_cells.tables.cache import cached_table, prepare_tables
from dipy_spinverse.packed_cells.tissue_classes import CLASSES, shapes_of, signals_of
from dipy_spinverse.packed_cells.tissue_model import tissue_model
from dipy_spinverse.units import diffusivity_um2_per_ms
from dipy_spinverse.voxels.chunks import Engine, fit_image
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.image import Voxels, image_of
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.statistics import ENDINGS, of_axes, summary

_N_DRAWS = 200
_VOX_PER_CHUNK = 16


class PackedCellsFit(VoxelFit):
    """What :meth:`PackedCellsModel.fit` found; see :class:`VoxelFit` for what a map has.

    Attributes
    ----------
    wall_orientation : ndarray (..., 3)
        Dominant axis of the draws, and
    wall_orientation_angle : ndarray (...)
        the angle to it that 95 % of them keep within, degrees.
    class_probabilities : ndarray (..., 4)
        Of cylinders, spheres, both, and no cells at all (0 where free water is fitted).
    """

    MAPS = (
        "surface_to_volume",
        "restricted_fraction",
        "wall_permeability",
        "exchange_time",
        "pore_diameter",
        "wall_anisotropy",
        "orientation_dispersion",
        "free_water_fraction",
    )


class PackedCellsModel(VoxelModel):
    """Packed permeable cylinders and spheres: the posterior of what a voxel's tissue is like.

    A numerically exact ActiveAx with exchange: the signals of parallel or dispersed permeable
    cylinders, of permeable spheres, or of both side by side, are those of the package's own
    simulation. Where tissue is of this kind, its maps are less free than those of
    :class:`SpinverseModel`, and their intervals narrower; where it is not, `status` says MISFIT.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings. The first fit with new timings simulates tables of signals, which
        takes about a minute for each timing and is kept in the user's cache folder.
    diffusivity : float, optional
        Of the water in the tissue, mm^2/s; known, not fitted.
    free_diffusivity : float, optional
        Of free water, mm^2/s, where :meth:`fit` is asked for it.
    te : float or array-like (M,), optional
        Echo times, s, where `gtab` is a GradientTable.
    seed : int, optional
        Of the draws.

    Raises
    ------
    ValueError
        Missing or inconsistent timings, a diffusivity that is not in mm^2/s.

    Examples
    --------
    >>> fit = PackedCellsModel(gtab).fit(data, sigma=20.0)  # doctest: +SKIP
    >>> fit.pore_diameter, fit.pore_diameter_low, fit.pore_diameter_high  # doctest: +SKIP
    """

    Fit = PackedCellsFit
    acquisition: Acquisition

    def __init__(
        self,
        gtab: GradientTable | Measurements,
        *,
        diffusivity: float = 2e-3,
        free_diffusivity: float = 3e-3,
        te: ArrayLike | None = None,
        seed: int = 0,
    ):
        super().__init__(gtab, te)
        self.acquisition = pulsed_only(self.acquisition)
        self.diffusivity_um2_per_ms = diffusivity_um2_per_ms("diffusivity", diffusivity)
        self.free_diffusivity_um2_per_ms = diffusivity_um2_per_ms(
            "free_diffusivity", free_diffusivity
        )
        self.diffusivity, self.free_diffusivity = float(diffusivity), float(free_diffusivity)
        self.seed = int(seed)

    def fit(
        self,
        data: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        sigma: ArrayLike | None = None,
        free_water: bool = False,
        n_draws: int = _N_DRAWS,
        engine: str = "serial",
        n_jobs: int = -1,
        vox_per_chunk: int | None = None,
        verbose: bool = False,
    ) -> PackedCellsFit:
        """Posterior of every voxel.

        Parameters
        ----------
        data : array-like (..., M)
            Magnitudes.
        mask : array-like (...), optional
            Voxels to fit; all where not given.
        sigma : float or array-like (...), optional
            Standard deviation of the noise; estimated from the residual where not given.
        free_water : bool, optional
            Also fit a fraction of free water.
        n_draws : int, optional
            Draws from the posterior of each voxel; 0 for the likeliest values only.
        engine, n_jobs, vox_per_chunk, verbose
            How it is computed: see :class:`dipy_spinverse.voxels.chunks.Engine`.

        Raises
        ------
        ValueError
            Arguments of wrong shape or range.
        """
        if n_draws < 0:
            raise ValueError(f"n_draws is {n_draws}; give at least 0.")
        how = Engine(engine, n_jobs, vox_per_chunk, verbose)
        image = image_of(data, mask, sigma, self.acquisition)
        if len(image.voxels):
            prepare_tables(self.acquisition, self.diffusivity_um2_per_ms)
        status, values = fit_image(
            image,
            _FitChunk(self, free_water, n_draws),
            _layout(self, n_draws),
            how,
            most=_VOX_PER_CHUNK,
        )
        return PackedCellsFit(self, status, values)

    def signals_of_fit(
        self, values: Mapping[str, np.ndarray], acquisition: Measurements
    ) -> np.ndarray:
        """Signals (V, M) of the likeliest tissue."""
        acquisition = pulsed_only(acquisition)
        tables = {
            shape: cached_table(shape, acquisition, self.diffusivity_um2_per_ms)
            for shape in shapes_of(CLASSES)
        }
        model = tissue_model(
            acquisition, tables, self.diffusivity_um2_per_ms, self.free_diffusivity_um2_per_ms
        )
        parameters = dict(zip(PARAMETERS, values["_parameters"].T, strict=True))
        return signals_of(model, acquisition, parameters, values["_axis"])

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Its arguments."""
        names = ("diffusivity", "free_diffusivity", "seed")
        return {name: getattr(self, name) for name in names}, {}


def _layout(model, n_draws):
    endings = (*ENDINGS, "_likeliest") if n_draws else ("", "_likeliest")
    return {
        "wall_orientation": (float, (3,)),
        "wall_orientation_angle": float,
        "class_probabilities": (float, (len(CLASSES) + 1,)),
        "S0_per_te": (float, (len(model.acquisition.echo_times),)),
        "_parameters": (float, (len(PARAMETERS),)),
        "_axis": (float, (3,)),
    } | {name + end: float for name in PackedCellsFit.MAPS for end in endings}


@dataclass(frozen=True, eq=False)
class _FitChunk:
    """The fit of a chunk of voxels."""

    model: PackedCellsModel
    free_water: bool
    n_draws: int

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        model = self.model
        posterior = packed_cells_posterior(
            model.acquisition,
            voxels.signals,
            voxels.sigma,
            diffusivity=model.diffusivity_um2_per_ms,
            free_water=self.free_water,
            free_diffusivity=model.free_diffusivity_um2_per_ms,
            n_draws=self.n_draws,
            seed=model.seed,
        )
        names = PackedCellsFit.MAPS
        likeliest = {name: posterior.best[name] for name in names}
        values = {f"{name}_likeliest": value for name, value in likeliest.items()}
        if self.n_draws:
            values |= summary({name: posterior.maps[name] for name in names})
            axis, angle = of_axes(posterior.maps["wall_orientation"])
        else:
            values |= likeliest
            axis, angle = of_axes(posterior.best["wall_orientation"][None])
        rest = voxels.signals - posterior.predicted
        probabilities = [*posterior.class_probabilities.values()]
        return values | {
            "wall_orientation": axis,
            "wall_orientation_angle": angle,
            "class_probabilities": np.stack(probabilities, axis=1),
            "S0_per_te": posterior.s0,
            "_parameters": np.stack([posterior.best_parameters[n] for n in PARAMETERS], axis=1),
            "_axis": posterior.best["wall_orientation"],
            "converged": True,
            "sigma": posterior.sigma,
            "residual_rms": np.sqrt((rest**2).mean(axis=1)),
            "n_unknowns": voxels.signals.shape[1] - posterior.degrees_of_freedom,
            "excess": posterior.chi_square / np.maximum(posterior.degrees_of_freedom, 1),
        }
