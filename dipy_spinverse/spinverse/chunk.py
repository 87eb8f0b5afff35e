"""From the signals of a chunk of voxels to the values that a fit holds of them."""

from __future__ import annotations

from collections.abc import Callable
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
from dipy_spinverse.voxels.noise import KNOWN
from dipy_spinverse.voxels.statistics import of_axes, of_draws, of_fields
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS, wall_maps
from dipy_spinverse.walls.patterns import agreement

if TYPE_CHECKING:
    from dipy_spinverse.spinverse.model import SpinverseModel

_SUFFIXES = ("", "_std", "_low", "_high")
_LARGEST = {
    "restricted_fraction": 1.0,
    "wall_anisotropy": 1.0,
    "free_water_fraction": 1.0,
    "exchange_time": LONGEST_EXCHANGE_TIME_MS,
}
# Probability below which packed cells count as refuted by the residual.
_REFUTED = 1e-3


def empty_values(
    model: SpinverseModel, n: int, n_samples: int, n_stages: int
) -> dict[str, np.ndarray]:
    """Zeros for everything that a fit holds of n voxels."""
    n_faces, n_te = model.grid.n_faces, len(model.acquisition.echo_times)
    values = {
        "permeability": np.zeros((n, n_faces), np.float32),
        "permeability_samples": np.zeros((n, n_samples, n_faces), np.float32),
        "wall_probability": np.zeros((n, n_faces), np.float32),
        "pattern_agreement": np.zeros(n),
        "S0": np.zeros((n, n_te)),
        "sigma": np.zeros(n),
        "field_free_water": np.zeros(n),
        "residual_rms": np.zeros(n),
        "converged": np.zeros(n, bool),
        "packed_cells": np.zeros(n, bool),
        "history_iterations": np.zeros((n, n_stages), int),
        "history_misfit": np.zeros((n, n_stages)),
        "wall_orientation": np.zeros((n, 3)),
        "wall_orientation_angle": np.zeros(n),
    }
    return values | {name + end: np.zeros(n) for name in SpinverseFit.MAPS for end in _SUFFIXES}


def fit_chunk(
    chunk: tuple[np.ndarray, np.ndarray | None],
    inversion: Inversion,
    model: SpinverseModel,
    posterior_of: Callable[..., PackedCellsPosterior] | None,
    noise_freedom: int,
    in_worker: bool,
) -> dict[str, np.ndarray]:
    """Values of each voxel of a chunk, the names and shapes as in `empty_values`.

    Parameters
    ----------
    chunk : tuple of ndarray (V, M), and ndarray (V,) or None
        Signals over the initial magnetisation, and noise.
    inversion : Inversion
    model : SpinverseModel
    posterior_of : callable or None
        Posterior of packed cells of signals (V, M) and noise (V,), for the maps of the voxels
        that packed cells explain.
    noise_freedom : int
        Degrees of freedom of the noise level.
    in_worker : bool
        Whether this is one of several workers, which get one thread each.
    """
    signals, noise = chunk
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1 if in_worker else n_threads)
    try:
        result = inversion.run(signals, noise)
    finally:  # a worker may be a thread of this process
        torch.set_num_threads(n_threads)
    fields = np.concatenate([result.openness[None], result.openness_samples])
    tau = transmissibility(torch.as_tensor(fields))
    permeability = permeability_of(model.grid, tau.numpy(), model.diffusivity_um2_per_ms)
    walls = (fields < WALL_THRESHOLD).astype(float)
    values = {
        "permeability": permeability[0],
        "permeability_samples": np.swapaxes(permeability[1:], 0, 1),
        "wall_probability": result.wall_probability,
        "pattern_agreement": [agreement(walls[:, voxel]) for voxel in range(len(signals))],
        "S0": result.amplitudes,
        "sigma": result.sigma,
        "field_free_water": result.free_water,
        "residual_rms": np.sqrt(((result.predicted - signals) ** 2).mean(axis=1)),
        "converged": result.converged,
        "history_iterations": result.iterations,
        "history_misfit": result.misfit,
    }
    values |= _maps_of_walls(model, result, tau)
    if posterior_of is not None:
        # The packed cells' own residual tells more than a few b0 do.
        posterior = posterior_of(signals, result.sigma if noise_freedom == KNOWN else None)
        explained = _explained(posterior, result.sigma, noise_freedom)
        better = _maps_of_packed_cells(posterior)
        values["packed_cells"] = explained
        for name, value in better.items():
            values[name][explained] = value[explained]
    return values


def _maps_of_walls(model, result: Reconstruction, tau):
    """Maps of the wall fields (n, V, F) of transmissibilities, and their statistics."""
    n, n_voxels, n_faces = tau.shape
    maps = wall_maps(
        model.grid,
        tau.reshape(-1, n_faces),
        diffusivity=model.diffusivity_um2_per_ms,
        diffusion_time=float(model.acquisition.diffusion_time.max()),
    )
    maps = {name: value.reshape(n, n_voxels, *value.shape[1:]) for name, value in maps.items()}
    free_water = np.concatenate([result.free_water[None], result.free_water_samples])
    maps["free_water_fraction"] = free_water
    # The grid is the part of the voxel that is not free water.
    for name in ("surface_to_volume", "restricted_fraction"):
        maps[name] = maps[name] * (1 - free_water)
    errors = SpinverseFit.WALL_ERRORS if model.grid.boundary == "periodic" else {}
    values = {}
    values["wall_orientation"], values["wall_orientation_angle"] = of_axes(
        maps.pop("wall_orientation")
    )
    for name, value in maps.items():
        found = of_fields(value, errors.get(name, 0.0), _LARGEST.get(name, np.inf))
        values |= {name + end: part for end, part in found.items()}
    return values


def _explained(posterior: PackedCellsPosterior, sigma, noise_freedom):
    """Which voxels (V,) packed cells explain, with noise sigma (V,) of so many degrees."""
    freedom = np.maximum(posterior.degrees_of_freedom, 1)
    variance = posterior.chi_square / freedom * (posterior.sigma / sigma) ** 2
    return variance <= f_distribution.ppf(1 - _REFUTED, freedom, noise_freedom)


def _maps_of_packed_cells(posterior: PackedCellsPosterior):
    """Statistics of the maps of packed cells."""
    values = {}
    values["wall_orientation"], values["wall_orientation_angle"] = of_axes(
        posterior.maps["wall_orientation"]
    )
    for name in SpinverseFit.MAPS:
        values |= {name + end: part for end, part in of_draws(posterior.maps[name]).items()}
    return values
