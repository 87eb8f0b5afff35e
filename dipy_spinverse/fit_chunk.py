"""From the signals of a chunk of voxels to the values that a fit holds of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dipy_spinverse.bloch_torrey import permeability_of
from dipy_spinverse.inversion import Inversion, transmissibility
from dipy_spinverse.spinverse_fit import SpinverseFit
from dipy_spinverse.wall_maps import wall_maps

if TYPE_CHECKING:
    from dipy_spinverse.spinverse import SpinverseModel


def empty_values(model: SpinverseModel, n: int) -> dict[str, np.ndarray]:
    """Zeros for everything that a fit holds of n voxels."""
    n_faces, n_te = model.grid.n_faces, len(model.acquisition.echo_times)
    values = {
        "permeability": np.zeros((n, n_faces), np.float32),
        "wall_probability": np.zeros((n, n_faces), np.float32),
        "S0": np.zeros((n, n_te)),
        "sigma": np.zeros(n),
        "residual_rms": np.zeros(n),
        "converged": np.zeros(n),
    }
    for name, width in SpinverseFit.MAPS.items():
        values[name] = np.zeros((n, *width))
        values[f"{name}_std"] = np.zeros((n, *width))
    return values


def fit_chunk(
    chunk: tuple[np.ndarray, np.ndarray | None],
    inversion: Inversion,
    model: SpinverseModel,
    in_worker: bool,
) -> dict[str, np.ndarray]:
    """Values of each voxel of a chunk, the names and shapes as in `empty_values`.

    Parameters
    ----------
    chunk : tuple of ndarray (V, M), and ndarray (V,) or None
        Signals over the initial magnetisation, and noise.
    inversion : Inversion
    model : SpinverseModel
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
    diffusivity = model.diffusivity_um2_per_ms
    tau = transmissibility(torch.as_tensor(result.openness)).numpy()
    fields = np.concatenate([result.openness[None], result.openness_samples])
    maps = wall_maps(
        model.grid,
        transmissibility(torch.as_tensor(fields.reshape(-1, model.grid.n_faces))),
        diffusivity=diffusivity,
        diffusion_time=float(model.acquisition.diffusion_time.max()),
    )
    n_voxels = len(signals)
    values = {
        "permeability": permeability_of(model.grid, tau, diffusivity),
        "wall_probability": result.wall_probability,
        "S0": result.amplitudes,
        "sigma": result.sigma,
        "residual_rms": np.sqrt(((result.predicted - signals) ** 2).mean(axis=1)),
        "converged": result.converged,
        "free_water_fraction": result.free_water,
        "free_water_fraction_std": _spread(result.free_water, result.free_water_samples),
    }
    for name, value in maps.items():
        value = value.reshape(len(fields), n_voxels, *value.shape[1:])
        samples = value[1:]
        if name == "wall_orientation":
            # An axis has no sign: compare with the sample's sign that is nearer.
            samples = samples * np.where((samples * value[0]).sum(-1, keepdims=True) < 0, -1, 1)
        values[name] = value[0]
        values[f"{name}_std"] = _spread(value[0], samples)
    # The grid is the part of the voxel that is not free water.
    in_grid = 1 - result.free_water
    for name in ("surface_to_volume", "restricted_fraction"):
        values[name] = values[name] * in_grid
        values[f"{name}_std"] = values[f"{name}_std"] * in_grid
    return values


def _spread(estimate, samples):
    """Root mean squared deviation of samples (n, ...) from the estimate (...)."""
    if len(samples) == 0:
        return np.zeros_like(estimate)
    return np.sqrt(((samples - estimate) ** 2).mean(axis=0))
