"""From the signals of a chunk of voxels, all with as many fibres, to what a fit holds of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.compartments.definition import Definition, maps_of, with_fibres
from dipy_spinverse.compartments.fitting.coordinates import Place, frame_of, place_of, values_of
from dipy_spinverse.compartments.fitting.interior_point import interior_point
from dipy_spinverse.compartments.fitting.mix import evolved
from dipy_spinverse.compartments.fitting.starts import dictionary_start
from dipy_spinverse.compartments.fitting.variable_projection import Problem, combined, fit_all
from dipy_spinverse.compartments.posterior.sample import sample_posterior
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.noise import noise_from_residual
from dipy_spinverse.voxels.rician import LEAST_NOISE, rician_sigma
from dipy_spinverse.voxels.statistics import ENDINGS, summary
from dipy_spinverse.voxels.tensor_frames import tensor_frames

MOST_FIBRES = 3
_NUMBERS_PER_CHUNK = 300_000  # measurements x voxels
_DRAWS_PER_CHUNK = 100_000
_MANY = 10  # measurements per unknown above which their residual tells the noise


@dataclass(frozen=True, eq=False)
class Settings:
    """How to fit; see `CompartmentModel`."""

    likelihood: str
    solver: str
    n_draws: int
    seed: int
    dtype: torch.dtype


def voxels_per_chunk(definition: Definition, acquisition: Acquisition, n_draws: int = 0) -> int:
    """As many voxels as fit into some hundred MiB."""
    # Sums over the modes of pores are the largest arrays, as long as signals 20 times.
    per_voxel = len(acquisition) * (20 if definition.timed else 1)
    most = _DRAWS_PER_CHUNK // max(n_draws, 100)
    return max(1, min(most, _NUMBERS_PER_CHUNK // per_voxel))


def layout(definition: Definition, n_te: int, *, posterior: bool) -> dict[str, object]:
    """Type and shape of everything that a fit holds of a voxel, with the most populations.

    Parameters
    ----------
    definition : Definition
    n_te : int
        Echo times.
    posterior : bool
        Whether the fit has standard deviations and intervals.
    """
    most = with_fibres(definition, MOST_FIBRES)
    endings = (*ENDINGS, "_likeliest") if posterior else ("", "_likeliest")
    maps = {name + end: float for name in (*definition.maps, "S0") for end in endings}
    return (
        maps
        | ({"effective_draws": float} if posterior else {})
        | {
            "n_fibres": int,
            "axis": (float, (3,)),
            "axes": (float, (MOST_FIBRES, 3)),
            "fibre_fractions": (float, (MOST_FIBRES,)),
            "S0_per_te": (float, (n_te,)),
            "_unit": (float, (len(most.parameters),)),
            "_fractions": (float, (len(most.pools),)),
            "_frames": (float, (9 * len(most.axes),)),
        }
    )


@dataclass(frozen=True, eq=False)
class FitChunk:
    """The fit of a chunk of voxels, all with as many fibres, all magnitudes or all real parts.

    Attributes
    ----------
    definition : Definition
        Of one population.
    acquisition : Acquisition
    settings : Settings
    refine_sigma : bool
        Whether the noise is not given: it is taken from the residual, from a first idea on.
    """

    definition: Definition
    acquisition: Acquisition
    settings: Settings
    refine_sigma: bool

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Values of each voxel, with the names of `layout`."""
        settings, n_fibres = self.settings, int(voxels.own["n_fibres"][0])
        definition = with_fibres(self.definition, n_fibres)
        encoding = encoding_of(self.acquisition, settings.dtype, timed=definition.timed)
        S0 = voxels.S0[:, self.acquisition.te_index]
        data, scale = (torch.tensor(x, dtype=settings.dtype) for x in (voxels.signals, S0))
        problem = Problem(definition, pool_signals(definition, encoding), data, scale, None)
        found, place, amplitudes, sigma, converged = self._fitted(voxels, problem)
        likeliest = _maps(definition, place, amplitudes)
        result = likeliest | {f"{name}_likeliest": value for name, value in likeliest.items()}
        result |= _places(definition, found, place, amplitudes)
        if settings.n_draws:
            n, seed = settings.n_draws, settings.seed
            draws = sample_posterior(found, place, amplitudes, sigma, n, seed)
            maps = _maps(definition, draws.place, draws.amplitudes)
            result |= summary({name: value.reshape(n, -1) for name, value in maps.items()})
            result["effective_draws"] = draws.effective.numpy()
        return result | {
            "n_fibres": n_fibres,
            "S0_per_te": voxels.S0 * likeliest["S0"][:, None],
            "converged": converged.numpy(),
            "sigma": sigma.numpy(),
            "n_unknowns": definition.n_unknowns,
        }

    def _fitted(self, voxels, problem):
        """Problem with its likelihood, place, amplitudes, noise; whether the search converged."""
        definition, data, settings = problem.definition, problem.data, self.settings
        likelihood = "gaussian" if voxels.signed.any() else settings.likelihood
        sigma = None if voxels.sigma is None else torch.tensor(voxels.sigma, dtype=data.dtype)
        start = self._start(voxels, problem)
        fit = interior_point if settings.solver == "interior-point" else fit_all
        if sigma is None or likelihood == "gaussian":
            place, amplitudes, converged = fit(problem, start)
            if sigma is None:
                residual = data - combined(problem.columns(place), amplitudes)
                n_unknowns = np.full(len(data), definition.n_unknowns)
                sigma = torch.tensor(
                    noise_from_residual(residual.numpy(), n_unknowns), dtype=data.dtype
                )
                sigma, start = sigma.clamp_min(LEAST_NOISE), place
        if likelihood == "rician":
            problem = replace(problem, sigma=sigma)
            place, amplitudes, converged = fit(problem, start)
            if self.refine_sigma and data.shape[1] >= _MANY * definition.n_unknowns:
                predicted = combined(problem.columns(place), amplitudes)
                sigma = rician_sigma(data, predicted, sigma, definition.n_unknowns)
                problem = replace(problem, sigma=sigma)
                place, amplitudes, converged = fit(problem, place)
        return problem, place, amplitudes, sigma, converged

    def _start(self, voxels, problem):
        """Where the search begins: at values given, at peaks, or at the axis of a tensor."""
        definition, settings = problem.definition, self.settings
        own = {name: torch.tensor(x, dtype=settings.dtype) for name, x in voxels.own.items()}
        given = {k.removeprefix("start "): v for k, v in own.items() if k.startswith("start ")}
        if given:
            return place_of(definition, given)
        n_axes = len(definition.axes)
        if "axes" in own:
            axes = own["axes"][:, :n_axes]
            frames = frame_of(axes.reshape(-1, 3)).reshape(len(axes), n_axes, 3, 3)
        else:
            rows = tensor_frames(self.acquisition, problem.data.numpy())
            frames = torch.tensor(rows, dtype=settings.dtype)
            frames = frame_of(frames[:, 2], frames[:, 1])[:, None].expand(-1, n_axes, -1, -1)
        start = dictionary_start(problem, frames)
        return evolved(problem, start, settings.seed) if settings.solver == "mix" else start


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


def _places(definition, problem, place, amplitudes):
    """Where the likeliest parameters are, and what they leave of the data."""
    result = {}
    values = {k: v.numpy() for k, v in all_values(definition, place, amplitudes).items()}
    predicted = combined(problem.columns(place), amplitudes)
    if problem.sigma is not None:
        # The mean of magnitudes is near this, noise floor included.
        predicted = torch.sqrt(predicted**2 + problem.sigma[:, None] ** 2)
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
    result["_unit"] = place.unit.numpy()
    result["_fractions"] = np.stack([values[name] for name in definition.pools], axis=1)
    result["_frames"] = place.frames.flatten(1).numpy()
    return result
