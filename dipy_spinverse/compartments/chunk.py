"""From the signals of a chunk of voxels, all with as many fibres, to what a fit holds of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.compartments.coordinates import Place, frame_of, place_of, values_of
from dipy_spinverse.compartments.definition import Definition, maps_of
from dipy_spinverse.compartments.encoding import encoding_of
from dipy_spinverse.compartments.posterior import sample_posterior
from dipy_spinverse.compartments.signals import pool_signals
from dipy_spinverse.compartments.starts import dictionary_start, tensor_frames
from dipy_spinverse.compartments.variable_projection import Problem, combined, fit_all
from dipy_spinverse.inversion.noise import noise_from_residual

MOST_FIBRES = 3


@dataclass(frozen=True, eq=False)
class Settings:
    """How to fit; see `CompartmentModel`."""

    likelihood: str
    solver: str
    dictionary_size: int
    n_draws: int
    seed: int
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Chunk:
    """Voxels to fit together.

    Attributes
    ----------
    data : ndarray (V, M)
        Over the signal without diffusion.
    scale : ndarray (V, M)
        Signal without diffusion at the echo time of each measurement, relative to the first.
    sigma : ndarray (V,) or None
        Noise of `data`.
    axes : ndarray (V, n_fibres, 3) or None
        Where the search for the axes begins.
    start : dict of ndarray or None
        Where the search for all values begins.
    """

    data: np.ndarray
    scale: np.ndarray
    sigma: np.ndarray | None
    axes: np.ndarray | None
    start: dict[str, np.ndarray] | None


def fit_chunk(
    chunk: Chunk, definition: Definition, acquisition: Acquisition, settings: Settings
) -> dict[str, np.ndarray]:
    """Everything that a fit holds of the voxels, first axis V."""
    dtype = settings.dtype
    encoding = encoding_of(acquisition, dtype, timed=definition.timed)
    data, scale = (torch.tensor(each, dtype=dtype) for each in (chunk.data, chunk.scale))
    gaussian = Problem(definition, pool_signals(definition, encoding), data, scale, None)
    sigma = None if chunk.sigma is None else torch.tensor(chunk.sigma, dtype=dtype)
    start = _start(chunk, gaussian, acquisition, settings)
    if sigma is None:
        start, amplitudes, _ = fit_all(gaussian, start)
        residual = data - combined(gaussian.columns(start), amplitudes)
        n_unknowns = np.full(len(data), definition.n_unknowns)
        sigma = torch.tensor(noise_from_residual(residual.numpy(), n_unknowns), dtype=dtype)
        sigma = sigma.clamp_min(1e-6)
    noise = sigma if settings.likelihood == "rician" else None
    problem = Problem(definition, gaussian.pools, data, scale, noise)
    place, amplitudes, converged = fit_all(problem, start)
    result = _likeliest(definition, problem, place, amplitudes)
    result |= {"converged": converged.numpy(), "sigma": sigma.numpy()}
    if settings.n_draws:
        draws = sample_posterior(
            problem, place, amplitudes, sigma, settings.n_draws, settings.seed
        )
        maps = _maps(definition, draws.place, draws.amplitudes)
        for name, flat in maps.items():
            values = flat.reshape(settings.n_draws, -1)
            low, high = np.quantile(values, [0.025, 0.975], axis=0)
            result |= {name: values.mean(axis=0), f"{name}_std": values.std(axis=0)}
            result |= {f"{name}_low": low, f"{name}_high": high}
        result["effective_draws"] = draws.effective.numpy()
    return {name: np.asarray(value, dtype=float) for name, value in result.items()}


def _start(chunk, problem, acquisition, settings):
    definition, dtype = problem.definition, settings.dtype
    if chunk.start is not None:
        given = {k: torch.tensor(v, dtype=dtype) for k, v in chunk.start.items()}
        return place_of(definition, given)
    n_axes = len(definition.axes)
    if chunk.axes is None:
        frames = tensor_frames(acquisition, problem.data)[:, None].expand(-1, n_axes, -1, -1)
    else:
        axes = torch.tensor(chunk.axes, dtype=dtype)[:, :n_axes]
        frames = frame_of(axes.reshape(-1, 3)).reshape(-1, n_axes, 3, 3)
    return dictionary_start(problem, frames, settings.dictionary_size)


def all_values(definition: Definition, place: Place, amplitudes: Tensor) -> dict[str, Tensor]:
    """Scalars, axes, fractions and S0."""
    total = amplitudes.sum(dim=1)
    fractions = amplitudes / total.clamp_min(1e-12)[:, None]
    values = values_of(definition, place) | {"S0": total}
    return values | {name: fractions[:, k] for k, name in enumerate(definition.pools)}


def _maps(definition, place, amplitudes):
    values = all_values(definition, place, amplitudes)
    maps = maps_of(definition, values) | {"S0": values["S0"]}
    return {name: value.numpy() for name, value in maps.items()}


def _likeliest(definition, problem, place, amplitudes):
    result = _maps(definition, place, amplitudes)
    values = {k: v.numpy() for k, v in all_values(definition, place, amplitudes).items()}
    predicted = combined(problem.columns(place), amplitudes)
    result["residual_rms"] = ((problem.data - predicted) ** 2).mean(dim=1).sqrt().numpy()
    n_voxels = len(amplitudes)
    axes, fractions = np.zeros((n_voxels, MOST_FIBRES, 3)), np.zeros((n_voxels, MOST_FIBRES))
    for k, name in enumerate(definition.axes):
        axes[:, k] = values[name]
        owned = {c.pool for c in definition.compartments if c.has_axis and c.axis == name}
        fractions[:, k] = sum(values[pool] for pool in owned)
    order = np.argsort(-fractions, axis=1, kind="stable")[..., None]
    result["axes"] = np.take_along_axis(axes, order, axis=1)
    result["axis"] = result["axes"][:, 0]
    result["fibre_fractions"] = np.take_along_axis(fractions, order[..., 0], axis=1)
    result["_unit"], result["_amplitudes"] = place.unit.numpy(), amplitudes.numpy()
    result["_frames"] = place.frames.reshape(n_voxels, -1).numpy()
    return result
