"""CompartmentFit, and the named arrays of a fit: from estimates and from posterior samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.compartments.fibres import MAX_FIBRES, maps_of, with_fibres
from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters, physical_values
from dipy_spinverse.compartments.fitting.variable_projection import SeparableProblem, Solution
from dipy_spinverse.compartments.posterior.sample import PosteriorSamples
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.fitted_model import FittedModel
from dipy_spinverse.voxels.statistics import ENDINGS, sample_statistics, statistics_of_maps


class DefinedModel(FittedModel, Protocol):
    """A model with a definition: a `CompartmentModel`, or one learned from it."""

    @property
    def definition(self) -> Definition:
        """Compartments and parameters."""


class CompartmentFit(VoxelFit):
    """Result of :meth:`CompartmentModel.fit`; see :class:`VoxelFit` for the attributes of a map.

    Attributes
    ----------
    MAPS : tuple of str
        Those of the model, and S0 (in the units of the data).
    n_fibres : ndarray (...) of int
        Fibre populations that were fitted.
    axis : ndarray (..., 3)
        Of the largest population.
    axes : ndarray (..., 3, 3)
        Of up to three populations, as rows, largest first; zero beyond `n_fibres`.
    fibre_fractions : ndarray (..., 3)
        Their maximum-likelihood fractions of the signal; with draws also `fibre_fractions_std`,
        `_low` and `_high`.
    axes_cone : ndarray (..., 3)
        95 % cone of uncertainty: half-angle about each axis, degrees.
    S0_per_te : ndarray (..., K)
        Signal without diffusion at each echo time.
    S0_per_label : ndarray (..., L)
        That of measurements that share it, see `amplitudes` of :class:`CompartmentModel`.
    outliers : ndarray (..., M) of bool
        Measurements that were left out: isolated residuals that noise does not explain.
    birge_ratio : ndarray (...)
        Factor of the noise in the posterior, above 1 where the signals reject the model, or where
        the noise is that of a residual of few degrees of freedom.
    effective_draws : ndarray (...)
        Effective sample size of the posterior; intervals with less than 20 are rough.
    """

    def __init__(self, model: DefinedModel, status: np.ndarray, values: dict[str, np.ndarray]):
        super().__init__(model, status, values)
        self.MAPS = (*model.definition.maps, "S0")

    @property
    def outlier_fraction(self) -> np.ndarray:
        """Fraction (...) of the measurements that were left out as outliers."""
        return self.outliers.mean(axis=-1)


def compartment_layout(
    definition: Definition, acquisition: BaseAcquisition, n_labels: int, *, posterior: bool
) -> dict[str, object]:
    """Type and shape of all arrays of a voxel, with the largest number of populations."""
    largest = with_fibres(definition, MAX_FIBRES)
    endings = (*ENDINGS, "_likeliest") if posterior else ("", "_likeliest")
    layout: dict[str, object] = {
        name + ending: float for name in (*definition.maps, "S0") for ending in endings
    }
    if posterior:
        names = (*(f"fibre_fractions{ending}" for ending in ENDINGS[1:]), "axes_cone")
        layout |= {"effective_draws": float, "birge_ratio": float}
        layout |= {name: (float, (MAX_FIBRES,)) for name in names}
    return layout | {
        "n_fibres": int,
        "axis": (float, (3,)),
        "axes": (float, (MAX_FIBRES, 3)),
        "fibre_fractions": (float, (MAX_FIBRES,)),
        "outliers": (bool, (len(acquisition),)),
        "S0_per_te": (float, (len(acquisition.echo_times),)),
        "S0_per_label": (float, (n_labels,)),
        "_unit": (float, (len(largest.parameters),)),
        "_fractions": (float, (len(largest.pools),)),
        "_frames": (float, (9 * len(largest.axes),)),
        "_known": (bool, (len(largest.parameters),)),
        "_score": (float, (len(definition.fixed),)),
        "_information": (float, (len(definition.fixed),)),
        "_score_bias": (float, (len(definition.fixed),)),
    }


def all_values(
    definition: Definition, parameters: NonlinearParameters, amplitudes: Tensor
) -> dict[str, Tensor]:
    """Scalars, axes, fractions and S0."""
    total = amplitudes.sum(dim=1)
    fractions = amplitudes / total.clamp_min(1e-12)[:, None]
    values = physical_values(definition, parameters) | {"S0": total}
    values |= {name: values[name].expand_as(total) for name in definition.fixed}
    return values | {name: fractions[:, k] for k, name in enumerate(definition.pools)}


def stored_parameters(
    definition: Definition, values: Mapping[str, np.ndarray], rows
) -> tuple[NonlinearParameters, Tensor]:
    """Parameters and fractions (R, K) of rows of a fit, without the padding of its arrays."""
    widths = len(definition.parameters), 9 * len(definition.axes), len(definition.pools)
    names = ("_unit", "_frames", "_fractions")
    unit, frames, fractions = (
        torch.tensor(values[name][rows, :width]) for name, width in zip(names, widths, strict=True)
    )
    frames = frames.reshape(len(unit), len(definition.axes), 3, 3)
    return NonlinearParameters(unit, frames), fractions


def maps_at(
    definition: Definition, parameters: NonlinearParameters, amplitudes: Tensor
) -> dict[str, np.ndarray]:
    """Maps (V,) at posterior samples of parameters, S0 among them."""
    values = all_values(definition, parameters, amplitudes)
    return _maps(definition, with_discrepancy(definition, values))


def with_discrepancy(
    definition: Definition, values: Mapping[str, Tensor], n_voxels: int = 1
) -> dict[str, Tensor]:
    """Values (n V,) of posterior samples, or their maps, with the discrepancy of model and tissue.

    Voxels vary fastest; all share their random numbers, so that none depends on the others.
    """
    result, rng = dict(values), np.random.default_rng(0)
    for name, sd in definition.discrepancy.items():
        factor = np.exp(sd * rng.standard_normal(len(result[name]) // n_voxels))
        result[name] = result[name] * torch.from_numpy(factor.repeat(n_voxels)).to(result[name])
    return result


def _maps(definition, values):
    maps = maps_of(definition, values) | {"S0": values["S0"]}
    return {name: value.numpy() for name, value in maps.items()}


def estimate_arrays(problem: SeparableProblem, solution: Solution) -> dict[str, np.ndarray]:
    """Maps, axes and parameters of maximum likelihood, and the root mean square residual."""
    definition, parameters = problem.definition, solution.parameters
    values = all_values(definition, parameters, solution.amplitudes)
    maps = _maps(definition, values)
    axes, fractions = _fibres(definition, values)
    order = np.argsort(-fractions, axis=1, kind="stable")
    axes = np.take_along_axis(axes, order[..., None], axis=1)
    predicted = solution.predicted
    if problem.rician:
        # The mean of magnitudes is close to this, noise floor included.
        predicted = torch.sqrt(predicted**2 + problem.noise[:, None] ** 2)
    residual, used = problem.data - predicted, ~problem.left_out
    return maps | {
        **{f"{name}_likeliest": value for name, value in maps.items()},
        "residual_rms": ((used * residual**2).sum(dim=1) / used.sum(dim=1)).sqrt().numpy(),
        "axes": axes,
        "axis": axes[:, 0],
        "fibre_fractions": np.take_along_axis(fractions, order, axis=1),
        "_unit": parameters.unit.numpy(),
        "_known": np.array([[p.name in definition.known for p in definition.parameters]]),
        "_fractions": np.stack([values[name].numpy() for name in definition.pools], axis=1),
        "_frames": parameters.frames.flatten(1).numpy(),
    }


def posterior_arrays(
    definition: Definition, solution: Solution, samples: PosteriorSamples
) -> dict[str, np.ndarray]:
    """Medians, standard deviations and intervals of the maps and of the populations."""
    n_voxels = len(samples.effective_size)
    values = all_values(definition, samples.parameters, samples.amplitudes)
    values = with_discrepancy(definition, values, n_voxels)
    result = statistics_of_maps(
        {name: value.reshape(-1, n_voxels) for name, value in _maps(definition, values).items()}
    )
    axes, fractions = (
        array.reshape(-1, n_voxels, *array.shape[1:]) for array in _fibres(definition, values)
    )
    axes_at_fit, fractions_at_fit = _fibres(
        definition, all_values(definition, solution.parameters, solution.amplitudes)
    )
    cosine = np.abs(np.einsum("nvki,vki->nvk", axes, axes_at_fit))
    angle = np.degrees(np.arccos(cosine.clip(max=1)))
    angle[:, :, len(definition.axes) :] = 0
    statistics = {"axes_cone": np.quantile(angle, 0.95, axis=0)}
    for ending, statistic in sample_statistics(fractions).items():
        if ending:  # those without are in `estimate_arrays`
            statistics[f"fibre_fractions{ending}"] = statistic
    order = np.argsort(-fractions_at_fit, axis=1, kind="stable")
    result |= {name: np.take_along_axis(s, order, axis=1) for name, s in statistics.items()}
    return result | {"effective_draws": samples.effective_size.numpy()}


def _fibres(definition, values):
    """Axes (V, 3, 3) of up to three populations, and their fractions (V, 3) of the signal."""
    n_voxels = len(next(iter(values.values())))
    axes, fractions = np.zeros((n_voxels, MAX_FIBRES, 3)), np.zeros((n_voxels, MAX_FIBRES))
    for k, name in enumerate(definition.axes[:MAX_FIBRES]):
        axes[:, k] = values[name].numpy()
        pools = {c.pool for c in definition.compartments if c.has_axis and c.axis == name}
        fractions[:, k] = sum(values[pool].numpy() for pool in pools)
    return axes, fractions
