"""From the signals of a chunk of voxels to their wall fields, and the maps read off them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey import permeability_of
from dipy_spinverse.cell_search.smooth import smooth_layout
from dipy_spinverse.inversion import (
    WALL_THRESHOLD,
    FaceSolver,
    Reconstruction,
    transmissibility,
)
from dipy_spinverse.spinverse.fit import SpinverseFit
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.noise import noise_of_each_te
from dipy_spinverse.voxels.statistics import ENDINGS, of_axes, of_fields
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS, wall_maps
from dipy_spinverse.walls.patterns import mean_pairwise_f1

if TYPE_CHECKING:
    from dipy_spinverse.spinverse.model import SpinverseModel

SMOOTH_CELLS = "smooth-cells"
_LARGEST = {
    "restricted_fraction": 1.0,
    "wall_anisotropy": 1.0,
    "free_water_fraction": 1.0,
    "exchange_time": LONGEST_EXCHANGE_TIME_MS,
}


def layout(model: SpinverseModel, n_fields: int, n_stages: int) -> dict[str, object]:
    """Type and shape of everything that a fit holds of a voxel with walls."""
    n_faces, n_te = model.grid.n_faces, len(model.acquisition.echo_times)
    smooth = model.optimizer == SMOOTH_CELLS
    return {
        "permeability": ("f4", (n_faces,)),
        "permeability_fields": ("f4", (n_fields, n_faces)),
        "packing_permeability": ("f4", (n_faces,)),
        "wall_probability": ("f4", (n_faces,)),
        "pattern_agreement": float,
        "field_free_water": float,
        "field_scale": (float, (n_fields + 1,)),
        "field_frame": (float, (n_fields + 1, 3, 3)),
        "field_diffusivity": (float, (n_fields + 1,)),
        "field_share": (float, (n_fields + 1,)),
        "history_iterations": (int, (n_stages,)),
        "history_misfit": (float, (n_stages,)),
        "S0_per_te": (float, (n_te,)),
        "wall_orientation": (float, (3,)),
        "wall_orientation_angle": float,
        **{name + end: float for name in SpinverseFit.MAPS for end in ENDINGS},
        **(smooth_layout(model.grid, n_fields) if smooth else {}),
    }


@dataclass(frozen=True, eq=False)
class FitChunk:
    """The wall fields of a chunk of voxels.

    Attributes
    ----------
    model : SpinverseModel
    inversion : Inversion or CellInversion
    noise_given : bool
        Whether the noise is known to be that of all echo times.
    """

    model: SpinverseModel
    inversion: FaceSolver
    noise_given: bool

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Values of each voxel, with the names of `layout` and those that the status needs."""
        signals = voxels.signals
        result = self.inversion.run(signals, voxels.sigma)
        return (
            self._fields(result, len(signals))
            | {
                "S0_per_te": result.amplitudes,
                "converged": result.converged,
                "sigma": result.sigma,
                "residual_rms": np.sqrt(((result.predicted - signals) ** 2).mean(axis=1)),
                "n_unknowns": np.zeros(len(signals)),
            }
            | worst_timing(self.model.acquisition, signals, result, self.noise_given)
            | result.cells
        )

    def _fields(self, result: Reconstruction, n_voxels):
        """Wall fields, how far they agree, and their maps."""
        grid, diffusivity = self.model.grid, self.model.diffusivity_um2_per_ms
        fields = np.concatenate(
            [result.scaled_transmissibility[None], result.scaled_transmissibility_fields]
        )
        tau = transmissibility(torch.as_tensor(fields))
        permeability = permeability_of(grid, tau.numpy(), diffusivity)
        walls = (fields < WALL_THRESHOLD).astype(float)
        found = result.diffusivity
        values = {
            "permeability": permeability[0],
            "permeability_fields": np.swapaxes(permeability[1:], 0, 1),
            "packing_permeability": permeability[0],
            "field_scale": 1.0,
            "field_frame": np.broadcast_to(np.eye(3), (n_voxels, len(fields), 3, 3)),
            "field_diffusivity": diffusivity if found is None else found[:, None],
            "field_share": 1.0,
            "wall_probability": result.wall_probability,
            "pattern_agreement": [mean_pairwise_f1(walls[:, voxel]) for voxel in range(n_voxels)],
            "field_free_water": result.free_water,
            "history_iterations": result.iterations,
            "history_misfit": result.misfit,
        }
        return values | _maps_of_fields(self.model, result, tau)


def worst_timing(
    acquisition: Acquisition, signals: np.ndarray, result: Reconstruction, noise_given: bool
) -> dict[str, np.ndarray | int]:
    """Excess (V,) of the timing that walls explain least, and what judges it by, see `fit_image`.

    Where the noise is not given it may differ between echo times: the levels of their b0 count,
    over their root mean square.
    """
    level = np.ones((len(signals), len(acquisition.echo_times)))
    of_te = None if noise_given else noise_of_each_te(signals, acquisition)
    if of_te is not None and (of_te > 0).all():
        level = of_te / np.sqrt((of_te**2).mean(axis=1, keepdims=True))
    sigma = result.sigma[:, None] * level[:, acquisition.te_index]
    squares = ((result.predicted - signals) / sigma) ** 2
    rows = acquisition.timing_index == np.arange(len(acquisition.timings))[:, None]
    n = rows.sum(axis=1)
    excess = squares @ rows.T / n
    # A large excess of few measurements is less of a surprise.
    worst = ((excess - 1) * np.sqrt(n)).argmax(axis=1)
    return {
        "worst_excess": excess[np.arange(len(excess)), worst],
        "worst_freedom": n[worst],
        "n_groups": len(rows) if len(rows) > 1 else 0,
    }


def _maps_of_fields(model, result: Reconstruction, tau):
    """Maps of the wall fields (n, V, F) of transmissibilities, and their statistics."""
    n, n_voxels, n_faces = tau.shape
    maps = wall_maps(
        model.grid,
        tau.reshape(-1, n_faces),
        diffusivity=model.diffusivity_um2_per_ms,
        diffusion_time=float(model.acquisition.diffusion_time.max()),
    )
    maps = {name: value.reshape(n, n_voxels, *value.shape[1:]) for name, value in maps.items()}
    maps |= result.maps
    free_water = np.concatenate([result.free_water[None], result.free_water_fields])
    maps["free_water_fraction"] = free_water
    # The grid is the part of the voxel that is not free water.
    for name in ("surface_to_volume", "restricted_fraction"):
        maps[name] = maps[name] * (1 - free_water)
    of_walls = SpinverseFit.WALL_ERRORS if model.grid.boundary == "periodic" else {}
    axis, angle = of_axes(maps.pop("wall_orientation"))
    axes = {"wall_orientation": axis, "wall_orientation_angle": angle}
    return axes | statistics_of(maps, result.errors or of_walls)


def statistics_of(maps: dict[str, np.ndarray], errors: dict[str, float]) -> dict[str, np.ndarray]:
    """Statistics (V,) of maps (n, V) of fields, with errors that all fields share."""
    values: dict[str, np.ndarray] = {}
    for name, value in maps.items():
        found = of_fields(value, errors.get(name, 0.0), _LARGEST.get(name, np.inf))
        values |= {name + end: part for end, part in found.items()}
    return values
