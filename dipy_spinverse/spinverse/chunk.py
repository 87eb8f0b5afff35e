"""From the signals of a chunk of voxels to the values that a fit holds of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import f as f_distribution

from dipy_spinverse.bloch_torrey import permeability_of
from dipy_spinverse.inversion import (
    WALL_THRESHOLD,
    Inversion,
    Reconstruction,
    transmissibility,
)
from dipy_spinverse.packed_cells import PackedCellsPosterior
from dipy_spinverse.spinverse.fit import SpinverseFit
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.noise import KNOWN
from dipy_spinverse.voxels.statistics import ENDINGS, of_axes, of_fields, summary
from dipy_spinverse.voxels.status import REFUTED
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS, wall_maps
from dipy_spinverse.walls.patterns import agreement

if TYPE_CHECKING:
    from dipy_spinverse.spinverse.model import SpinverseModel

_LARGEST = {
    "restricted_fraction": 1.0,
    "wall_anisotropy": 1.0,
    "free_water_fraction": 1.0,
    "exchange_time": LONGEST_EXCHANGE_TIME_MS,
}


def layout(model: SpinverseModel, n_fields: int, n_stages: int) -> dict[str, object]:
    """Type and shape of everything that a fit holds of a voxel."""
    n_faces, n_te = model.grid.n_faces, len(model.acquisition.echo_times)
    return {
        "permeability": ("f4", (n_faces,)),
        "permeability_fields": ("f4", (n_fields, n_faces)),
        "wall_probability": ("f4", (n_faces,)),
        "pattern_agreement": float,
        "S0_per_te": (float, (n_te,)),
        "field_free_water": float,
        "packed_cells": bool,
        "history_iterations": (int, (n_stages,)),
        "history_misfit": (float, (n_stages,)),
        "wall_orientation": (float, (3,)),
        "wall_orientation_angle": float,
    } | {name + end: float for name in SpinverseFit.MAPS for end in ENDINGS}


@dataclass(frozen=True, eq=False)
class FitChunk:
    """The fit of a chunk of voxels.

    Attributes
    ----------
    model : SpinverseModel
    inversion : Inversion or CellInversion
    posterior_of : callable or None
        Posterior of packed cells of signals (V, M) and noise (V,), for the maps of the voxels
        that packed cells explain.
    noise_freedom : int
        Degrees of freedom of the noise level of the voxels.
    """

    model: SpinverseModel
    inversion: Inversion
    posterior_of: Callable[..., PackedCellsPosterior] | None
    noise_freedom: int

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Values of each voxel, with the names of `layout`."""
        signals = voxels.signals
        result = self.inversion.run(signals, voxels.sigma)
        values = self._fields(result, len(signals))
        rms = np.sqrt(((result.predicted - signals) ** 2).mean(axis=1))
        values |= {
            "S0_per_te": result.amplitudes,
            "sigma": result.sigma,
            "residual_rms": rms,
            "excess": (rms / result.sigma) ** 2,
            "n_unknowns": np.zeros(len(signals)),
        }
        if self.posterior_of is not None:
            self._prefer_packed_cells(values, signals, result.sigma)
        return values

    def _fields(self, result: Reconstruction, n_voxels):
        """Wall fields, how far they agree, and their maps."""
        grid, diffusivity = self.model.grid, self.model.diffusivity_um2_per_ms
        fields = np.concatenate([result.openness[None], result.openness_fields])
        tau = transmissibility(torch.as_tensor(fields))
        permeability = permeability_of(grid, tau.numpy(), diffusivity)
        walls = (fields < WALL_THRESHOLD).astype(float)
        values = {
            "permeability": permeability[0],
            "permeability_fields": np.swapaxes(permeability[1:], 0, 1),
            "wall_probability": result.wall_probability,
            "pattern_agreement": [agreement(walls[:, voxel]) for voxel in range(n_voxels)],
            "field_free_water": result.free_water,
            "converged": result.converged,
            "history_iterations": result.iterations,
            "history_misfit": result.misfit,
        }
        return values | _maps_of_fields(self.model, result, tau)

    def _prefer_packed_cells(self, values, signals, sigma):
        """Put in the maps, and the residual, of packed cells where they explain the signals."""
        # Their own residual tells more of the noise than a few b0 do.
        posterior = self.posterior_of(signals, sigma if self.noise_freedom == KNOWN else None)
        freedom = np.maximum(posterior.degrees_of_freedom, 1)
        excess = posterior.chi_square / freedom * (posterior.sigma / sigma) ** 2
        explained = excess <= f_distribution.isf(REFUTED, freedom, self.noise_freedom)
        maps = summary({name: posterior.maps[name] for name in SpinverseFit.MAPS})
        axis, angle = of_axes(posterior.maps["wall_orientation"])
        better = maps | {
            "wall_orientation": axis, "wall_orientation_angle": angle, "excess": excess,
            "n_unknowns": signals.shape[1] - freedom,
        }  # fmt: skip
        values["packed_cells"] = explained
        for name, value in better.items():
            values[name][explained] = value[explained]


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
    free_water = np.concatenate([result.free_water[None], result.free_water_fields])
    maps["free_water_fraction"] = free_water
    # The grid is the part of the voxel that is not free water.
    for name in ("surface_to_volume", "restricted_fraction"):
        maps[name] = maps[name] * (1 - free_water)
    errors = SpinverseFit.WALL_ERRORS if model.grid.boundary == "periodic" else {}
    axis, angle = of_axes(maps.pop("wall_orientation"))
    values = {"wall_orientation": axis, "wall_orientation_angle": angle}
    for name, value in maps.items():
        found = of_fields(value, errors.get(name, 0.0), _LARGEST.get(name, np.inf))
        values |= {name + end: part for end, part in found.items()}
    return values
