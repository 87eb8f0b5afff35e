"""Wall fields of tissue: packings of the posterior's draws, changed where the data ask for it.

The signals of a voxel are those of its packed cells, which are averages over all places and
directions of bodies, plus what changing the walls of one packing does to the signals of that
packing, by its share of the water: a field has the signals and maps of the draw that it started
from where it did not leave it, whatever the lattice's own error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.bloch_torrey import permeability_of, relative_transmissibility, simulate
from dipy_spinverse.inversion import WALL_THRESHOLD, scaled_transmissibility, transmissibility
from dipy_spinverse.packed_cells import PackedCellsPosterior, packed_cells_posterior
from dipy_spinverse.spinverse.chunk import statistics_of
from dipy_spinverse.spinverse.fit import SpinverseFit
from dipy_spinverse.spinverse.packings import Packing, packing_of, rescaled_grid
from dipy_spinverse.spinverse.wall_corrections import Patch, corrected_walls
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.progress import part, stepwise
from dipy_spinverse.voxels.statistics import of_axes
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS, wall_maps
from dipy_spinverse.walls.patterns import face_symmetries

if TYPE_CHECKING:
    from dipy_spinverse.spinverse.model import SpinverseModel

# um: water crosses smaller lattice cubes many times in a pulse, and no face can be told.
_LEAST_CUBE = 0.4
# Of the time that a chunk takes.
_TISSUE = 0.15


@dataclass(frozen=True, eq=False)
class _Field:
    """Walls on a lattice of their own length."""

    packing: Packing
    scaled_transmissibility: np.ndarray
    change: np.ndarray
    n_determined: float = 0.0


@dataclass(frozen=True, eq=False)
class TissueWalls:
    """The wall fields of a chunk of voxels, as :class:`chunk.FitChunk` gives them.

    Attributes
    ----------
    model : SpinverseModel
    n_fields : int
        Further fields, each of a draw of its own.
    """

    model: SpinverseModel
    n_fields: int

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Values of each voxel, with the names of `chunk.layout` and those for the status."""
        model = self.model
        known = None if model.diffusivity is None else model.diffusivity_um2_per_ms
        with part(0.0, _TISSUE):
            posterior = packed_cells_posterior(
                model.acquisition, voxels.signals, voxels.sigma, diffusivity=known,
                free_diffusivity=model.free_diffusivity_um2_per_ms, n_draws=self.n_fields,
                seed=model.seed,
            )  # fmt: skip
        with part(_TISSUE, 1.0):
            parts = [
                self._of_voxel(voxels.signals[v], posterior, v)
                for v in stepwise(range(len(voxels)))
            ]
        values = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        maps = {name: values.pop(name).T for name in SpinverseFit.MAPS}
        values |= statistics_of(maps, {})
        axes = np.concatenate(
            [
                posterior.estimated_maps["wall_orientation"][None],
                posterior.maps["wall_orientation"],
            ]
        )
        axis, angle = of_axes(axes)
        return values | {
            "wall_orientation": axis, "wall_orientation_angle": angle,
            "field_free_water": posterior.estimated_maps["free_water_fraction"],
            "S0_per_te": posterior.amplitudes, "sigma": posterior.sigma, "converged": True,
            "worst_freedom": posterior.worst_degrees_of_freedom,
            "n_groups": posterior.group_chi_square.shape[1],
        }  # fmt: skip

    def _of_voxel(self, signals, posterior, v):
        data = _Data.of(self.model, signals, posterior, v)
        fields = self._fields(data, posterior, v)
        first = fields[0]
        rest = (signals - posterior.predicted[v]) - first.change * data.sd
        squares, before = ((data.residual - first.change) ** 2).sum(), (data.residual**2).sum()
        lower = squares / before if before else 1.0
        freedom = posterior.degrees_of_freedom[v]
        left = max(freedom - first.n_determined, 1)
        closed = np.stack([field.scaled_transmissibility < WALL_THRESHOLD for field in fields])
        # Bodies may be anywhere: all places on the lattice are alike.
        probability = closed[:, face_symmetries(self.model.grid)].mean(axis=(0, 1))
        permeability = np.stack([_permeability(field) for field in fields])
        return {
            "permeability": permeability[0],
            "permeability_fields": permeability[1:],
            "packing_permeability": first.packing.permeability,
            "wall_probability": probability,
            "pattern_agreement": _in_common(closed, probability),
            "field_scale": [field.packing.scale for field in fields],
            "field_frame": [field.packing.frame for field in fields],
            "field_diffusivity": [field.packing.diffusivity for field in fields],
            "field_share": [field.packing.share for field in fields],
            "history_iterations": [int(first.n_determined > 0)],
            "history_misfit": [((data.residual - first.change) ** 2).mean()],
            "residual_rms": np.sqrt((rest**2).mean()),
            "n_unknowns": len(signals) - left,
            "excess": posterior.chi_square[v] * lower / left,
            "worst_excess": posterior.worst_reduced_chi_square[v] * lower * freedom / left,
        } | self._maps(fields, posterior, v)

    def _fields(self, data, posterior, v):
        """The field of the likeliest tissue, then those of the draws."""
        model, rng = self.model, np.random.default_rng(self.model.seed)
        draws = [(posterior.estimated_parameters, posterior.estimated_maps)]
        for k in range(self.n_fields):
            draws.append(
                tuple(
                    {name: value[k] for name, value in each.items()}
                    for each in (posterior.parameters, posterior.maps)
                )
            )
        fields, asked = [], True
        for parameters, maps in draws:
            tissue = {name: value[v] for name, value in parameters.items()}
            packing = packing_of(model.grid, tissue, maps["wall_orientation"][v], rng)
            noise = rng.standard_normal(len(data.residual)) if fields else None
            found = data.correction(packing, noise) if asked else None
            if found is None:
                field = _Field(
                    packing, packing.scaled_transmissibility, np.zeros(len(data.residual))
                )
                asked = bool(fields) and asked
            else:
                field = _Field(
                    packing, found.scaled_transmissibility, found.change, found.n_determined
                )
            fields.append(field)
        return fields

    def _maps(self, fields, posterior, v):
        """Maps (n,) of the draws, plus what leaving their packings changed in them."""
        maps = {
            name: np.append(posterior.estimated_maps[name][v], posterior.maps[name][:, v])
            for name in SpinverseFit.MAPS
        }
        surface, restricted = maps["surface_to_volume"], maps["restricted_fraction"]
        crossing = surface * maps["wall_permeability"]
        time = float(self.model.acquisition.diffusion_time.max())
        for k, field in enumerate(fields):
            if not field.n_determined:
                continue
            packing = field.packing
            both = np.stack([packing.scaled_transmissibility, field.scaled_transmissibility])
            found = wall_maps(
                packing.grid, transmissibility(torch.as_tensor(both)),
                diffusivity=packing.diffusivity, diffusion_time=time,
            )  # fmt: skip
            found["crossing"] = found["surface_to_volume"] * found["wall_permeability"]
            for name, values in (("surface_to_volume", surface), ("crossing", crossing),
                                 ("restricted_fraction", restricted)):  # fmt: skip
                values[k] = max(values[k] + packing.share * np.diff(found[name])[0], 0)
        little = 1e-12
        maps["wall_permeability"] = crossing / np.maximum(surface, little)
        maps["pore_diameter"] = 4 * restricted / np.maximum(surface, little)
        maps["exchange_time"] = np.minimum(
            restricted / np.maximum(crossing, little), LONGEST_EXCHANGE_TIME_MS
        )
        return maps


@dataclass(frozen=True, eq=False)
class _Data:
    """What the likeliest packed cells leave of a voxel, and how the data depend on its signals."""

    model: SpinverseModel
    residual: np.ndarray
    sd: np.ndarray
    slope: np.ndarray

    @classmethod
    def of(cls, model: SpinverseModel, signals, posterior: PackedCellsPosterior, v: int) -> _Data:
        predicted = posterior.predicted[v]
        sd = np.hypot(posterior.sigma[v], posterior.systematic_error[v] * predicted)
        amplitude = posterior.amplitudes[v][model.acquisition.te_index]
        # Noise lifts magnitudes to the root of signal^2 + sigma^2, nearly.
        noise = posterior.sigma[v] * (signals.min() >= 0)
        lifted = np.sqrt(np.maximum(1 - (noise / np.maximum(predicted, noise + 1e-12)) ** 2, 0))
        return cls(model, (signals - predicted) / sd, sd, amplitude * lifted)

    def corrected_walls(self, packing, noise):
        cube = np.cbrt(12 * packing.grid.volumes.mean())
        if cube < _LEAST_CUBE or not np.isfinite(packing.permeability).any():
            return None
        patch = Patch(packing, self.model.acquisition, self.model.device)
        weight = packing.share * self.slope / self.sd
        return corrected_walls(patch, weight, self.residual, noise)


def _in_common(closed, probability):
    """Mean F1 (0 to 1) of walls (n, F) at independent places; 1 where there are none."""
    size = closed.sum(axis=1).mean()
    return float(probability @ probability / size) if size else 1.0


def _permeability(field):
    if not field.n_determined:
        return field.packing.permeability
    tau = transmissibility(torch.as_tensor(field.scaled_transmissibility)).numpy()
    return permeability_of(field.packing.grid, tau, field.packing.diffusivity)


def signal_correction(
    model: SpinverseModel, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
) -> np.ndarray:
    """Signals (V, M) of the first fields less those of the packings that they started from.

    Parameters
    ----------
    model : SpinverseModel
    values : mapping of ndarray (V, ...)
        As in `chunk.layout`.
    acquisition : BaseAcquisition
    """
    changes = np.zeros((len(values["permeability"]), len(acquisition)))
    for v, walls in enumerate(values["permeability"]):
        if not np.array_equal(walls, values["packing_permeability"][v]):
            packing = _packing_of(model, values, v)
            patch = Patch(packing, acquisition, model.device)
            tau = relative_transmissibility(packing.grid, walls, packing.diffusivity)
            changes[v] = packing.share * patch.change(scaled_transmissibility(tau))
    return changes


def permeability_field_signals(
    model: SpinverseModel, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
) -> np.ndarray:
    """Signals (V, M) of the first fields alone, on their own lattices; arguments as above."""
    signals = np.empty((len(values["permeability"]), len(acquisition)))
    for v, walls in enumerate(values["permeability"]):
        packing = _packing_of(model, values, v)
        signals[v] = simulate(
            packing.seen(acquisition), packing.grid, walls, diffusivity=packing.diffusivity,
            dtype="float32", device=model.device,
        )  # fmt: skip
    return signals


def _packing_of(model, values, v):
    """The packing that the first field of a voxel started from."""
    scale, frame, diffusivity, share = (
        values[f"field_{name}"][v][0] for name in ("scale", "frame", "diffusivity", "share")
    )
    walls = values["packing_permeability"][v]
    return Packing(
        rescaled_grid(model.grid, scale), scale, frame, walls, float(diffusivity), share
    )
