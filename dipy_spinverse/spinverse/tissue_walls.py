"""Walls of tissue: packings with the parameters of posterior samples, corrected by the data.

The signals of a voxel are those of its packed cells, which are averages over all positions and
directions of bodies, plus the change of the signals of one packing that a correction of its walls
causes, weighted with its fraction of the water. A permeability field without a correction has the
signals and maps of its posterior sample, independent of discretisation errors of the lattice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from dipy_spinverse.acquisition import Acquisition, BaseAcquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.inversion import (
    WALL_THRESHOLD,
    WallProblem,
    scaled_transmissibility,
    transmissibility,
)
from dipy_spinverse.packed_cells import PackedCellsModel
from dipy_spinverse.packed_cells.fit import values_of_fit
from dipy_spinverse.spinverse.fit import (
    CELLS_PREFIX,
    SpinverseFit,
    packed_cells_values,
    status_with_pattern,
    wall_layout,
)
from dipy_spinverse.spinverse.packings import (
    cube_um,
    packing_of,
    packing_of_fit,
    permeability_field_signals,
)
from dipy_spinverse.spinverse.permeability_fields import MAP_LAYOUT, map_statistics
from dipy_spinverse.spinverse.voxel_inversion import VoxelInversion
from dipy_spinverse.spinverse.wall_corrections import (
    CorrectedPacking,
    PackingSignals,
    corrected_walls,
)
from dipy_spinverse.units import MM2_PER_S
from dipy_spinverse.voxels.chunks import Engine, fit_image, fit_status
from dipy_spinverse.voxels.image import Image, Voxels
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.progress import part, stepwise
from dipy_spinverse.voxels.statistics import dominant_axis
from dipy_spinverse.voxels.status import FITTED, Status
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS, wall_maps
from dipy_spinverse.walls.patterns import face_symmetries

# Edge of lattice cubes, um, below which water crosses them many times in a pulse, so that the data
# contain no information on single faces.
_MIN_CUBE_UM = 0.4
# Voxels computed together. Lattices differ between voxels, so larger chunks save little time.
_MOST_PER_CHUNK = 16
# Part of the time of a chunk that packed cells take, for the progress bar.
_CELLS_TIME = 0.15
# In front of the names of what is computed from permeability fields of a voxel.
_FIELDS_PREFIX = "_fields/"
_STATUS_VALUES: dict[str, type] = {
    "residual_rms": float, "n_unknowns": float, "reduced_chi_square": float,
    "worst_reduced_chi_square": float, "worst_degrees_of_freedom": float, "n_groups": float,
    "converged": bool,
}  # fmt: skip


@dataclass(frozen=True)
class TissueWallInversion(VoxelInversion):
    """Packed cells in all voxels, and packings with their parameters where walls are requested.

    Packed cells are fitted once. In voxels whose signals they do not explain, maps are computed
    from the corrected permeability fields. Walls need a periodic grid.
    """

    def fit(
        self,
        problem: WallProblem,
        image: Image,
        walls: np.ndarray,
        compute: Engine,
        model: VoxelModel,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Status and values of all voxels."""
        if walls.any() and problem.grid.boundary != "periodic":
            raise ValueError(
                f"grid has boundary={problem.grid.boundary!r}, but walls of tissue need a "
                "periodic grid; use one, or walls=False, or inversion=FaceInversion()."
            )
        cells_model, has_walls = packed_cells_model(problem), walls.reshape(-1)[image.rows]
        options = {
            "sigma": image.voxels.sigma, "n_draws": problem.n_draws, "n_fields": problem.n_fields
        }  # fmt: skip
        layout = cells_model.layout(problem.n_draws)
        run = partial(fit_image, model=model, options=options)
        status, cells = run(
            image.within(~walls), partial(cells_model.fit_chunk, n_draws=problem.n_draws),
            layout, _in_folder(compute, "tissue"), most=cells_model.VOX_PER_CHUNK,
        )  # fmt: skip
        fields: dict[str, np.ndarray] = {}
        if walls.any():
            with_walls = image.within(walls)
            wall_status, values = run(
                with_walls, TissueWallChunk(problem, cells_model),
                layout | _field_layout(problem), _in_folder(compute, "walls"),
                most=_MOST_PER_CHUNK,
            )  # fmt: skip
            status = np.where(walls, wall_status, status)
            cells = {name: _merged(has_walls, values[name], cells[name]) for name in cells}
            fields = {name: value for name, value in values.items() if name not in cells}
            fields["wall_status"] = _status_of_fields(with_walls, values)
        return _combined(status, cells, has_walls, fields)

    def signals_of_fit(
        self, problem: WallProblem, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of packed cells, corrected where these do not explain the data."""
        has_walls, cells = values["has_walls"], packed_cells_values(values)
        fields = {name: value for name, value in values.items() if name in SpinverseFit.WALLS}
        # Corrections are for pulses; signals of waveforms are those of the permeability fields.
        pulsed = isinstance(acquisition, Acquisition)
        by_cells = np.full(len(has_walls), True) if pulsed else ~has_walls
        signals = np.empty((len(has_walls), len(acquisition)))
        if not by_cells.all():
            signals[~by_cells] = permeability_field_signals(problem, fields, acquisition)
        if by_cells.any():
            cells = {name: value[by_cells] for name, value in cells.items()}
            signals[by_cells] = packed_cells_model(problem).signals_of_fit(cells, acquisition)
        misfit = ~values["packed_cells"]
        if misfit.any() and pulsed:
            fields = {name: value[misfit[has_walls]] for name, value in fields.items()}
            signals[misfit] += signal_correction(problem, fields, acquisition)
        return signals


def packed_cells_model(problem: WallProblem) -> PackedCellsModel:
    """The model of packed cells of a problem."""
    return PackedCellsModel(
        problem.acquisition,
        diffusivity=problem.diffusivity / MM2_PER_S if problem.diffusivity_known else None,
        free_diffusivity=problem.free_diffusivity / MM2_PER_S,
        seed=problem.seed,
    )


def _in_folder(compute, name):
    journal = None if compute.journal is None else Path(compute.journal) / name
    return replace(compute, journal=journal)


def _field_layout(problem):
    """Type and shape of what is stored of a voxel with walls in addition to packed cells."""
    layout = wall_layout(problem.grid.n_faces, problem.n_fields)
    values = _STATUS_VALUES | MAP_LAYOUT
    return layout | {_FIELDS_PREFIX + name: kind for name, kind in values.items()}


def _merged(mask, inside, outside):
    """Values (V, ...) from those in a mask (V,) and outside of it."""
    values = np.empty((len(mask), *inside.shape[1:]), inside.dtype)
    values[mask], values[~mask] = inside, outside
    return values


def _status_of_fields(image, values):
    """Status (W,) of permeability fields; brings their residual to the unit of the data."""
    values[f"{_FIELDS_PREFIX}residual_rms"] *= image.voxels.S0[:, 0]
    of_fields = {name: values[_FIELDS_PREFIX + name] for name in _STATUS_VALUES}
    scatter = image.voxels.signals.std(axis=1)
    return fit_status(image, of_fields | {"sigma": values["sigma"]}, scatter)


def _combined(status, cells, has_walls, fields):
    """Status (...) and values: those of packed cells, or of fields where these are refuted."""
    cells_status = status[np.isin(status, FITTED)]
    misfit = has_walls & (cells_status == Status.MISFIT)
    names = "sigma", "residual_rms", "S0_per_te", *MAP_LAYOUT
    values = {name: cells[name].copy() for name in names if name in cells}
    final_status = cells_status.copy()
    if fields:
        final_status[misfit] = fields["wall_status"][misfit[has_walls]]
        for name in values:
            if _FIELDS_PREFIX + name in fields:
                values[name][misfit] = fields[_FIELDS_PREFIX + name][misfit[has_walls]]
    values |= {name: fields[name] for name in SpinverseFit.WALLS if name in fields}
    values |= {"has_walls": has_walls, "packed_cells": ~misfit, "_tissue_status": cells_status}
    values |= {CELLS_PREFIX + name: value for name, value in cells.items()}
    status = status.copy()
    status[np.isin(status, FITTED)] = final_status
    return status_with_pattern(status, has_walls, values), values


@dataclass(frozen=True, eq=False)
class TissueWallChunk:
    """Packed cells and permeability fields of a chunk of voxels."""

    problem: WallProblem
    cells_model: PackedCellsModel

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Values of each voxel, with the names of the layout and those of the status."""
        n_draws, n_fields = self.problem.n_draws, self.problem.n_fields
        with part(0.0, _CELLS_TIME):
            posterior = self.cells_model.posterior(
                voxels.signals, voxels.sigma, max(n_draws, n_fields)
            )
        cells = values_of_fit(self.cells_model, voxels, posterior, n_draws)
        # The maximum a posteriori estimate, then samples, along the first axis.
        parameters, maps = (
            {name: np.concatenate([estimates[name][None], samples[name]]) for name in samples}
            for estimates, samples in zip(
                (posterior.estimated_parameters, posterior.estimated_maps),
                posterior.spread_samples(n_fields),
                strict=True,
            )
        )
        with part(_CELLS_TIME, 1.0):
            results = [
                self._of_voxel(voxels.signals[v], posterior, v, parameters, maps)
                for v in stepwise(range(len(voxels)))
            ]
        values = {name: np.stack([result[name] for result in results]) for name in results[0]}
        field_maps = {name: values.pop(name).T for name in SpinverseFit.MAPS}
        axis, angle = dominant_axis(maps["wall_orientation"])
        of_fields = map_statistics(field_maps, {}) | {
            "wall_orientation": axis, "wall_orientation_angle": angle, "converged": True,
            "worst_degrees_of_freedom": cells["worst_degrees_of_freedom"],
            "n_groups": cells["n_groups"],
        } | {name: values.pop(name) for name in _STATUS_VALUES.keys() & values.keys()}  # fmt: skip
        of_fields = {_FIELDS_PREFIX + name: value for name, value in of_fields.items()}
        free_water = posterior.estimated_maps["free_water_fraction"]
        return cells | values | {"field_free_water": free_water} | of_fields

    def _of_voxel(self, signals, posterior, v, parameters, maps):
        sd, slope = _noise_and_slope(signals, posterior, v, self.problem.acquisition.te_index)
        cells_residual = (signals - posterior.predicted[v]) / sd
        fields = self._fields(cells_residual, slope / sd, v, parameters, maps)
        estimate = fields[0]
        residual = cells_residual - estimate.change
        cells_squares = (cells_residual**2).sum()
        reduction = (residual**2).sum() / cells_squares if cells_squares else 1.0
        degrees_of_freedom = posterior.degrees_of_freedom[v]
        remaining = max(degrees_of_freedom - estimate.n_determined, 1)
        worst_group = posterior.worst_reduced_chi_square[v]
        walls = np.stack([field.scaled_transmissibility < WALL_THRESHOLD for field in fields])
        # Positions of bodies are arbitrary: the mean over all shifts of the lattice.
        probability = walls[:, face_symmetries(self.problem.grid)].mean(axis=(0, 1))
        permeability = np.stack([field.permeability for field in fields])
        return {
            "permeability": permeability[0],
            "permeability_fields": permeability[1:],
            "packing_permeability": estimate.packing.permeability,
            "wall_probability": probability,
            "pattern_agreement": _independent_f1(walls, probability),
            "field_scale": [field.packing.scale for field in fields],
            "field_frame": [field.packing.frame for field in fields],
            "field_diffusivity": [field.packing.diffusivity / MM2_PER_S for field in fields],
            "field_share": [field.packing.share for field in fields],
            "field_bodies": [field.packing.bodies for field in fields],
            "residual_rms": np.sqrt(((residual * sd) ** 2).mean()),
            "n_unknowns": len(signals) - remaining,
            "reduced_chi_square": posterior.chi_square[v] * reduction / remaining,
            "worst_reduced_chi_square": worst_group * reduction * degrees_of_freedom / remaining,
            **self._corrected_maps(fields, {name: maps[name][:, v] for name in SpinverseFit.MAPS}),
        }

    def _fields(self, residual, weight, v, parameters, maps):
        """The field of the maximum a posteriori estimate, then those of samples."""
        rng = np.random.default_rng(self.problem.seed)
        fields, corrected = [], True
        for k, axes in enumerate(maps["wall_orientation"]):
            tissue = {name: samples[k, v] for name, samples in parameters.items()}
            packing = packing_of(self.problem.grid, tissue, axes[v], rng)
            noise = rng.standard_normal(len(residual)) if fields else None
            resolved = cube_um(packing.grid) >= _MIN_CUBE_UM
            correction = None
            if corrected and resolved and np.isfinite(packing.permeability).any():
                packing_signals = PackingSignals(
                    packing, self.problem.acquisition, self.problem.device
                )
                correction = corrected_walls(
                    packing_signals, packing.share * weight, residual, noise
                )
            # Without evidence at the estimate, samples are not corrected either.
            corrected = correction is not None or (bool(fields) and corrected)
            unchanged = np.zeros(len(residual))
            fields.append(
                correction
                or CorrectedPacking(packing, packing.scaled_transmissibility, unchanged, 0.0)
            )
        return fields

    def _corrected_maps(self, fields, maps):
        """Maps (n,) of samples, plus the change of each by the correction of its packing."""
        maps = {name: values.copy() for name, values in maps.items()}
        surface, restricted = maps["surface_to_volume"], maps["restricted_fraction"]
        crossing = surface * maps["wall_permeability"]
        time = float(self.problem.acquisition.diffusion_time.max())
        for k, field in enumerate(fields):
            if not field.n_determined:
                continue
            packing = field.packing
            scaled = np.stack([packing.scaled_transmissibility, field.scaled_transmissibility])
            of_packing = wall_maps(
                packing.grid, transmissibility(scaled),
                diffusivity=packing.diffusivity, diffusion_time=time,
            )  # fmt: skip
            permeability = of_packing["wall_permeability"]
            of_packing["crossing"] = of_packing["surface_to_volume"] * permeability
            for name, values in (("surface_to_volume", surface), ("crossing", crossing),
                                 ("restricted_fraction", restricted)):  # fmt: skip
                values[k] = max(values[k] + packing.share * np.diff(of_packing[name])[0], 0)
        tiny = 1e-12
        maps["wall_permeability"] = crossing / np.maximum(surface, tiny)
        maps["pore_diameter"] = 4 * restricted / np.maximum(surface, tiny)
        maps["exchange_time"] = np.minimum(
            restricted / np.maximum(crossing, tiny), LONGEST_EXCHANGE_TIME_MS
        )
        return maps


def _noise_and_slope(signals, posterior, v, te_index):
    """Standard deviations of the data of a voxel, and their slope by the signals of tissue."""
    predicted, sigma = posterior.predicted[v], posterior.sigma[v]
    sd = np.hypot(sigma, posterior.systematic_error[v] * predicted)
    # The expected magnitude is about the root of signal^2 + sigma^2.
    noise = sigma * (signals.min() >= 0)
    slope = np.sqrt(np.maximum(1 - (noise / np.maximum(predicted, noise + 1e-12)) ** 2, 0))
    return sd, posterior.amplitudes[v][te_index] * slope


def _independent_f1(walls, probability):
    """Expected F1 (0 to 1) of walls (n, F) at independent positions; 1 where there are none."""
    size = walls.sum(axis=1).mean()
    return float(probability @ probability / size) if size else 1.0


def signal_correction(
    problem: WallProblem, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
) -> np.ndarray:
    """Signals (V, M) of the first fields minus those of their packings, from values of a fit."""
    changes = np.zeros((len(values["permeability"]), len(acquisition)))
    for v, permeability in enumerate(values["permeability"]):
        if not np.array_equal(permeability, values["packing_permeability"][v]):
            packing = packing_of_fit(problem, values, v)
            signals = PackingSignals(packing, acquisition, problem.device)
            tau = relative_transmissibility(packing.grid, permeability, packing.diffusivity)
            changes[v] = packing.share * signals.change(scaled_transmissibility(tau))
    return changes
