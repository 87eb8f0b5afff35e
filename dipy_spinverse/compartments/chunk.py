"""From the signals of a chunk of voxels, all with as many fibres, to what a fit holds of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import UNITS, Definition
from dipy_spinverse.compartments.fibres import S0_corrections, maps_of, with_fibres
from dipy_spinverse.compartments.fitting.crossings import MAX_FIBRES, select_populations
from dipy_spinverse.compartments.fitting.initial_values import (
    best_local_minimum,
    dictionary_initial_values,
)
from dipy_spinverse.compartments.fitting.mix import differential_evolution
from dipy_spinverse.compartments.fitting.model_test import (
    linearise,
    score_test,
    worst_shell_statistic,
)
from dipy_spinverse.compartments.fitting.parameters import (
    NonlinearParameters,
    orthonormal_frames,
    physical_values,
    scaled_parameters,
)
from dipy_spinverse.compartments.fitting.variable_projection import (
    EchoTimeScale,
    SeparableProblem,
    predicted_signals,
    variable_projection,
)
from dipy_spinverse.compartments.posterior.near_fit import (
    MANY_FIBRES,
    draws_near_fit,
    unresolved,
)
from dipy_spinverse.compartments.posterior.sample import sample_posterior
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.noise import noise_from_residual
from dipy_spinverse.voxels.progress import part, stepwise
from dipy_spinverse.voxels.rician import LEAST_NOISE, rician_sigma
from dipy_spinverse.voxels.statistics import ENDINGS, of_draws, summary
from dipy_spinverse.voxels.tensor_frames import tensor_frames

_NUMBERS_PER_CHUNK = 150_000  # measurements x voxels
_DRAWS_PER_CHUNK = 100_000
_LED = 1000  # draws that count for a voxel whose draws are led from the prior
_FITTED = 0.3  # of the time that a chunk takes
_MANY = 10  # measurements per unknown above which their residual tells the noise


@dataclass(frozen=True, eq=False)
class FitSettings:
    """How to fit; see `CompartmentModel`."""

    likelihood: str
    solver: str
    n_draws: int
    seed: int
    dtype: torch.dtype
    crossings: bool = False


def voxels_per_chunk(
    definition: Definition, acquisition: BaseAcquisition, n_draws: int = 0
) -> int:
    """As many voxels as fit into some hundred MiB."""
    led = definition.curved and n_draws > 0
    most = _DRAWS_PER_CHUNK // max(n_draws, _LED if led else 100)
    return max(1, min(most, _NUMBERS_PER_CHUNK // len(acquisition)))


def compartment_layout(definition: Definition, n_te: int, *, posterior: bool) -> dict[str, object]:
    """Type and shape of everything that a fit holds of a voxel, with the most populations.

    Parameters
    ----------
    definition : Definition
    n_te : int
        Echo times.
    posterior : bool
        Whether the fit has standard deviations and intervals.
    """
    most = with_fibres(definition, MAX_FIBRES)
    endings = (*ENDINGS, "_likeliest") if posterior else ("", "_likeliest")
    maps = {name + end: float for name in (*definition.maps, "S0") for end in endings}
    of_fibres = {f"fibre_fractions{end}": (float, (MAX_FIBRES,)) for end in ENDINGS[1:]}
    of_fibres |= {"axes_cone": (float, (MAX_FIBRES,))}
    return (
        maps
        | ({"effective_draws": float} | of_fibres if posterior else {})
        | {
            "n_fibres": int,
            "axis": (float, (3,)),
            "axes": (float, (MAX_FIBRES, 3)),
            "fibre_fractions": (float, (MAX_FIBRES,)),
            "S0_per_te": (float, (n_te,)),
            "_unit": (float, (len(most.parameters),)),
            "_fractions": (float, (len(most.pools),)),
            "_frames": (float, (9 * len(most.axes),)),
            "_score": (float, (len(definition.fixed),)),
            "_information": (float, (len(definition.fixed),)),
        }
    )


@dataclass(frozen=True, eq=False)
class CompartmentChunkFit:
    """The fit of a chunk of voxels, all magnitudes or all real parts.

    Attributes
    ----------
    definition : Definition
        Of one population.
    acquisition : BaseAcquisition
    settings : Settings
    refine_sigma : bool
        Whether the noise is not given: it is taken from the residual, from a first idea on.
    """

    definition: Definition
    acquisition: BaseAcquisition
    settings: FitSettings
    refine_sigma: bool

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Values of each voxel, with the names of `layout`."""
        if self.settings.crossings:
            n_fibres, axes = self._populations(voxels)
            own = {**voxels.own, "n_fibres": n_fibres, "axes": axes}
            voxels = replace(voxels, own=own)
        result: dict[str, np.ndarray] = {}
        for n in stepwise(np.unique(voxels.own["n_fibres"])):
            rows = np.flatnonzero(voxels.own["n_fibres"] == n)
            for name, value in self._of_population(voxels[rows], int(n)).items():
                value = np.broadcast_to(value, (len(rows), *np.shape(value)[1:]))
                wide = result.setdefault(name, np.zeros((len(voxels), *value.shape[1:])))
                if value.shape[1:] > wide.shape[1:]:
                    wide = np.pad(wide, ((0, 0), (0, value.shape[1] - wide.shape[1])))
                    result[name] = wide
                columns: Any = (rows, *map(slice, value.shape[1:]))
                wide[columns] = value
        return result

    def _problem(self, voxels, definition):
        """Of least squares."""
        encoding = encoding_of(self.acquisition, self.settings.dtype, timed=definition.timed)
        data, scale = torch.tensor(voxels.signals, dtype=self.settings.dtype), None
        if definition.n_S0_corrections:
            S0 = torch.tensor(voxels.S0, dtype=self.settings.dtype)
            scale = EchoTimeScale(S0, torch.tensor(self.acquisition.te_index))
        return SeparableProblem(definition, pool_signals(definition, encoding), data, scale, None)

    def _populations(self, voxels):
        """Number and axes of fibre populations by evidence."""
        problem = self._problem(voxels, self.definition)
        rows = tensor_frames(self.acquisition, voxels.signals)
        frames = torch.tensor(rows, dtype=self.settings.dtype)
        frames = orthonormal_frames(frames[:, 2], frames[:, 1])
        sigma = voxels.sigma
        if sigma is None:
            start = dictionary_initial_values(problem, frames[:, None])[0]
            _, columns, amplitudes, _ = variable_projection(problem, start)
            residual = problem.data - predicted_signals(columns, amplitudes)
            n_unknowns = np.full(len(residual), self.definition.n_unknowns)
            sigma = noise_from_residual(residual.numpy(), n_unknowns)
        sigma = torch.tensor(sigma, dtype=self.settings.dtype).clamp_min(LEAST_NOISE)
        return select_populations(
            lambda definition: self._problem(voxels, definition), self.definition, frames, sigma
        )

    def _of_population(self, voxels, n_fibres):
        """Values of voxels that all have as many fibres."""
        settings = self.settings
        definition = with_fibres(self.definition, n_fibres)
        problem = self._problem(voxels, definition)
        with part(0.0, _FITTED):
            found, ends, columns, amplitudes, sigma, converged = self._fitted(voxels, problem)
        place = ends[0]
        likeliest = _maps(definition, place, amplitudes)
        result = likeliest | {f"{name}_likeliest": value for name, value in likeliest.items()}
        places, order = _places(definition, found, place, columns, amplitudes)
        result |= places | self._against(found, place, columns, amplitudes, sigma)
        if settings.n_draws:
            n, seed = settings.n_draws, settings.seed
            with part(_FITTED, 1.0):
                draws = sample_posterior(found, ends, amplitudes, sigma, n, seed)
            maps = _maps(definition, draws.place, draws.amplitudes)
            result |= summary({name: value.reshape(n, -1) for name, value in maps.items()})
            result |= _fibre_statistics(definition, draws, n, order, place)
            if n_fibres >= MANY_FIBRES:
                near = draws_near_fit(found, place, columns, amplitudes, sigma, n, seed)
                result |= self._widened(result, _maps(definition, *near), unresolved(place))
            result["effective_draws"] = draws.effective.numpy()
        return result | {
            "n_fibres": n_fibres,
            "S0_per_te": self._without_diffusion(voxels, definition, place, amplitudes),
            "converged": converged.numpy(),
            "sigma": sigma.numpy(),
            "n_unknowns": definition.n_unknowns,
        }

    def _widened(self, result, near, unresolved):
        """Lower ends of what each population has of its own: not above those near the fit, and
        at the bound where the data tell none."""
        ends = {}
        for p in self.definition.parameters:
            if p.per_fibre and p.name in near:
                least = of_draws(near[p.name].reshape(-1, len(unresolved)))["_low"]
                bound = p.low * UNITS[p.unit]
                low = np.minimum(result[f"{p.name}_low"], least)
                ends[f"{p.name}_low"] = np.where(unresolved, bound, low)
        return ends

    def _without_diffusion(self, voxels, definition, place, amplitudes):
        """Signals (V, K) at the echo times."""
        if not definition.has_relaxation:
            total = amplitudes.sum(dim=1, keepdim=True)
            if definition.n_S0_corrections:
                total = total * S0_corrections(definition, physical_values(definition, place))
            return voxels.S0 * total.numpy()
        first = np.unique(self.acquisition.te_index, return_index=True)[1]
        encoding = encoding_of(self.acquisition, self.settings.dtype, timed=definition.timed)
        pools = pool_signals(definition, encoding.without_diffusion())
        return predicted_signals(pools(physical_values(definition, place)), amplitudes)[
            :, first
        ].numpy()

    def _against(self, problem, place, columns, amplitudes, sigma):
        """What the residual says against the model."""
        fit = linearise(problem, place, columns, amplitudes, sigma)
        result = worst_shell_statistic(
            self.acquisition, problem.data, sigma, fit, rician=problem.sigma is not None
        )
        if problem.definition.fixed:
            found = score_test(problem, place, amplitudes, fit)
            result |= dict(zip(("_score", "_information"), found, strict=True))
        return result

    def _fitted(self, voxels, problem):
        """Problem with its likelihood, places (the best first), signals of the pools and
        amplitudes at the best, noise; whether the search converged."""
        definition, data = problem.definition, problem.data
        likelihood = "gaussian" if voxels.signed.any() else self.settings.likelihood
        sigma = None if voxels.sigma is None else torch.tensor(voxels.sigma, dtype=data.dtype)
        starts = self._starts(voxels, problem)
        if sigma is None or likelihood == "gaussian":
            place, columns, amplitudes, converged, ends = best_local_minimum(problem, starts)
            if sigma is None:
                residual = data - predicted_signals(columns, amplitudes)
                n_unknowns = np.full(len(data), definition.n_unknowns)
                sigma = torch.tensor(
                    noise_from_residual(residual.numpy(), n_unknowns), dtype=data.dtype
                )
                sigma, starts = sigma.clamp_min(LEAST_NOISE), ends
        if likelihood == "rician":
            problem = replace(problem, sigma=sigma)
            place, columns, amplitudes, converged, ends = best_local_minimum(problem, starts)
            if self.refine_sigma and data.shape[1] >= _MANY * definition.n_unknowns:
                predicted = predicted_signals(columns, amplitudes)
                sigma = rician_sigma(data, predicted, sigma, definition.n_unknowns)
                problem = replace(problem, sigma=sigma)
                place, columns, amplitudes, converged = variable_projection(problem, place)
        return problem, [place, *ends[1:]], columns, amplitudes, sigma, converged

    def _starts(self, voxels, problem):
        """Where searches begin: at values given, at peaks, or at the axis of a tensor."""
        definition, settings = problem.definition, self.settings
        own = {name: torch.tensor(x, dtype=settings.dtype) for name, x in voxels.own.items()}
        given = {k.removeprefix("initial "): v for k, v in own.items() if k.startswith("initial ")}
        if given:
            levels = definition.parameters[
                len(definition.parameters) - definition.n_S0_corrections :
            ]
            one = torch.ones(len(problem.data), dtype=settings.dtype)
            return [scaled_parameters(definition, given | {p.name: one for p in levels})]
        n_axes = len(definition.axes)
        if "axes" in own:
            axes = own["axes"][:, :n_axes]
            frames = orthonormal_frames(axes.reshape(-1, 3)).reshape(len(axes), n_axes, 3, 3)
        else:
            rows = tensor_frames(self.acquisition, problem.data.numpy())
            frames = torch.tensor(rows, dtype=settings.dtype)
            frames = orthonormal_frames(frames[:, 2], frames[:, 1])[:, None].expand(
                -1, n_axes, -1, -1
            )
        if settings.solver == "mix":
            (start,) = dictionary_initial_values(problem, frames)
            return [differential_evolution(problem, start, settings.seed)]
        # Of several populations the unknowns are too many for the few starts that there are.
        n_starts = definition.n_starts if definition.n_fibres < 2 else 1
        return dictionary_initial_values(problem, frames, n_starts)


def all_values(
    definition: Definition, place: NonlinearParameters, amplitudes: Tensor
) -> dict[str, Tensor]:
    """Scalars, axes, fractions and S0."""
    total = amplitudes.sum(dim=1)
    fractions = amplitudes / total.clamp_min(1e-12)[:, None]
    values = physical_values(definition, place) | {"S0": total}
    return values | {name: fractions[:, k] for k, name in enumerate(definition.pools)}


def _maps(definition, place, amplitudes):
    values = all_values(definition, place, amplitudes)
    maps = maps_of(definition, values) | {"S0": values["S0"]}
    return {name: value.numpy() for name, value in maps.items()}


def _places(definition, problem, place, columns, amplitudes):
    """Where the likeliest parameters are, and what they leave of the data."""
    result = {}
    values = {k: v.numpy() for k, v in all_values(definition, place, amplitudes).items()}
    predicted = predicted_signals(columns, amplitudes)
    if problem.sigma is not None:
        # The mean of magnitudes is near this, noise floor included.
        predicted = torch.sqrt(predicted**2 + problem.sigma[:, None] ** 2)
    result["residual_rms"] = ((problem.data - predicted) ** 2).mean(dim=1).sqrt().numpy()
    axes, fractions = _fibres(definition, values)
    order = np.argsort(-fractions, axis=1, kind="stable")
    result["axes"] = np.take_along_axis(axes, order[..., None], axis=1)
    result["axis"] = result["axes"][:, 0]
    result["fibre_fractions"] = np.take_along_axis(fractions, order, axis=1)
    result["_unit"] = place.unit.numpy()
    result["_fractions"] = np.stack([values[name] for name in definition.pools], axis=1)
    result["_frames"] = place.frames.flatten(1).numpy()
    return result, order


def _fibres(definition, values):
    """Axes (V, 3, 3) of up to three populations, and their shares (V, 3) of the signal."""
    n_voxels = len(next(iter(values.values())))
    axes, fractions = np.zeros((n_voxels, MAX_FIBRES, 3)), np.zeros((n_voxels, MAX_FIBRES))
    for k, name in enumerate(definition.axes[:MAX_FIBRES]):
        axes[:, k] = values[name]
        owned = {c.pool for c in definition.compartments if c.has_axis and c.axis == name}
        fractions[:, k] = sum(values[pool] for pool in owned)
    return axes, fractions


def _fibre_statistics(definition, draws, n, order, place):
    """How sure axes and shares of populations are, in their order by share."""
    likeliest, n_voxels = place.frames[:, :, 2].numpy(), len(order)
    values = all_values(definition, draws.place, draws.amplitudes)
    axes, fractions = _fibres(definition, {k: v.numpy() for k, v in values.items()})
    axes, fractions = (each.reshape(n, -1, *each.shape[1:]) for each in (axes, fractions))
    found = {f"fibre_fractions{end}": [] for end in ENDINGS[1:]} | {"axes_cone": []}
    for k in range(MAX_FIBRES):
        for end, value in of_draws(fractions[..., k]).items():
            if end:
                found[f"fibre_fractions{end}"].append(value)
        angle = np.zeros((n, n_voxels))
        if k < len(definition.axes):
            cosine = np.abs(np.einsum("nvi,vi->nv", axes[:, :, k], likeliest[:, k]))
            angle = np.degrees(np.arccos(cosine.clip(max=1)))
        found["axes_cone"].append(np.quantile(angle, 0.95, axis=0))
    return {
        name: np.take_along_axis(np.stack(columns, axis=1), order, axis=1)
        for name, columns in found.items()
    }
