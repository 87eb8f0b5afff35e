"""The fit of a chunk of voxels: initial values, local minima, noise, model test, posterior."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.acquisition.amplitudes import mean_per_te
from dipy_spinverse.compartments.definition import UNITS, Definition
from dipy_spinverse.compartments.fibres import S0_corrections, with_fibres
from dipy_spinverse.compartments.fit import estimate_arrays, posterior_arrays
from dipy_spinverse.compartments.fitting.amplitudes import predicted_signals
from dipy_spinverse.compartments.fitting.crossings import select_populations
from dipy_spinverse.compartments.fitting.initial_values import best_local_minimum, initial_values
from dipy_spinverse.compartments.fitting.model_test import model_test, standardised_residual
from dipy_spinverse.compartments.fitting.parameters import physical_values
from dipy_spinverse.compartments.fitting.variable_projection import (
    residual_noise,
    separable_problem,
    variable_projection,
)
from dipy_spinverse.compartments.posterior.sample import sample_posterior
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals
from dipy_spinverse.voxels.image import Voxels, signal_without_diffusion
from dipy_spinverse.voxels.outliers import outliers_of_fit
from dipy_spinverse.voxels.progress import part, stepwise
from dipy_spinverse.voxels.rician import rician_noise_from_residual
from dipy_spinverse.voxels.status import birge_variance, unknown_noise_variance

# Bound the memory of a chunk to some hundred MiB: measurements times voxels, and samples.
_NUMBERS_PER_CHUNK, _SAMPLES_PER_CHUNK = 150_000, 100_000
_TEMPERED_SAMPLES = 1000  # per voxel, that need as much memory as tempering
_TIME_OF_FIT = 0.3  # share of the time of a chunk, for the progress bar
# Measurements per unknown above which the residual refines the noise (doc/compartments.md); by
# hand: its standard error is then below that of usual numbers of repeated b0.
_MANY_MEASUREMENTS = 10
# Of three narrow fibre populations: 84 to 90 % of the truths are inside of the posterior's
# intervals, 98 with lower limits so much further from the median; for axes closer than 60 degrees
# more is needed (benchmarks/notes/compartments.md).
_EXTENSION, _COSINE_OF_CLOSE_AXES = 1.5, 0.5
_OUTLIER_ROUNDS = 2  # fits without outliers: the first residual is distorted by them; by hand


def voxels_per_chunk(
    definition: Definition, acquisition: BaseAcquisition, n_draws: int = 0
) -> int:
    """As many voxels as fit into some hundred MiB."""
    tempered = definition.curved and n_draws > 0
    samples = max(n_draws, _TEMPERED_SAMPLES if tempered else 100)
    return max(1, min(_SAMPLES_PER_CHUNK // samples, _NUMBERS_PER_CHUNK // len(acquisition)))


@dataclass(frozen=True, eq=False)
class CompartmentChunkFit:
    """The fit of voxels, all magnitudes or all real parts; `definition` has one population.

    `refine_sigma`: the noise is estimated, and a fit with many measurements refines it.
    """

    definition: Definition
    acquisition: BaseAcquisition
    likelihood: str
    solver: str
    n_draws: int
    seed: int
    dtype: torch.dtype
    crossings: bool
    refine_sigma: bool
    labels: np.ndarray  # (M,), of measurements that share their S0

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Values of each voxel, with the names of `compartment_layout`."""
        parts = self._parts(voxels)
        spoilt = [rows for rows, values in parts if values["outliers"].any()]
        if self.crossings and spoilt:  # outliers look like further populations
            rows = np.concatenate(spoilt)
            left_out = np.concatenate([v["outliers"] for _, v in parts if v["outliers"].any()])
            again = voxels[rows]
            again = replace(again, attributes={**again.attributes, "left_out": left_out})
            parts = [part for part in parts if not part[1]["outliers"].any()]
            parts += [(rows[chosen], values) for chosen, values in self._parts(again)]
        result: dict[str, np.ndarray] = {}
        # The widest arrays first.
        for rows, values in sorted(parts, key=lambda part: -part[1]["n_fibres"]):
            for name, value in values.items():
                value = np.broadcast_to(value, (len(rows), *np.shape(value)[1:]))
                array = result.setdefault(name, np.zeros((len(voxels), *value.shape[1:])))
                index: Any = (rows, *map(slice, value.shape[1:]))
                array[index] = value
        return result

    def _parts(self, voxels):
        """Rows and values of voxels, by their number of fibre populations."""
        if self.crossings:
            n_fibres, axes = select_populations(
                lambda definition: self._problem(voxels, definition),
                self.definition, self.acquisition, voxels.signals, self._is_rician(voxels),
            )  # fmt: skip
            attributes = {**voxels.attributes, "n_fibres": n_fibres, "axes": axes}
            voxels = replace(voxels, attributes=attributes)
        parts = []
        for n in stepwise(np.unique(voxels.attributes["n_fibres"])[::-1]):
            rows = np.flatnonzero(voxels.attributes["n_fibres"] == n)
            fits = self._fit_populations(voxels[rows], int(n))
            parts += [(rows[chosen], values) for chosen, values in fits]
        return parts

    def _fit_populations(self, voxels, n_fibres):
        """Rows and arrays of voxels with the same number of fibre populations.

        First those without outliers, then those that are fitted again without theirs.
        """
        initial = self._problem(voxels, with_fibres(self.definition, n_fibres))
        rician = self._is_rician(voxels)
        with part(0.0, _TIME_OF_FIT):
            starts = initial_values(
                initial, self.acquisition, voxels.attributes.get("axes"), self.solver, self.seed
            )
            fit = self._local_minima(initial, starts, rician)
        outliers = self._outliers(initial, *fit[:2])
        affected = outliers.any(axis=1)
        rows = np.flatnonzero(~affected)
        if len(rows):
            unaffected = (part_of.of_voxels(rows) for part_of in fit[:2])
            minima = [parameters.of_voxels(rows) for parameters in fit[2]]
            yield rows, self._arrays(voxels[rows], n_fibres, *unaffected, minima)
        rows = np.flatnonzero(affected)
        if len(rows):
            initial, outliers = initial.of_voxels(rows), outliers[rows]
            minima = [parameters.of_voxels(rows) for parameters in fit[2]]
            for _ in range(_OUTLIER_ROUNDS):
                fit = self._local_minima(initial.without(outliers), minima, rician)
                outliers = self._outliers(initial, *fit[:2])
            yield rows, self._arrays(voxels[rows], n_fibres, *fit)

    def _outliers(self, initial, problem, solution):
        """Outliers (V, M) of a fit, by the noise before it."""
        sigma = initial.sigma
        if sigma is not None and self.refine_sigma:
            sigma = torch.minimum(sigma, problem.sigma)
        standard = replace(initial, sigma=problem.sigma if sigma is None else sigma)
        standard = replace(standard, rician=problem.rician)
        residual = standardised_residual(standard, solution.predicted)
        noise = None if sigma is None else sigma.numpy()
        return outliers_of_fit(residual, self.acquisition, noise)

    def _arrays(self, voxels, n_fibres, problem, solution, minima):
        """Arrays of voxels with the same number of populations, from their fit."""
        definition = problem.definition
        result = estimate_arrays(problem, solution)
        result |= model_test(problem, solution, self.acquisition)
        outliers = problem.left_out.numpy()
        n_unknowns = definition.n_unknowns + outliers.sum(axis=1)
        freedom = np.maximum(len(self.acquisition) - n_unknowns, 1)
        result["reduced_chi_square"] = _squares(problem, solution, result) / freedom
        if self.n_draws:
            inflation = _inflation(result, freedom)
            if voxels.sigma is None:
                inflation = inflation * torch.from_numpy(unknown_noise_variance(freedom))
            problem = replace(problem, inflation=inflation)
            result["birge_ratio"] = inflation.sqrt().numpy()
            with part(_TIME_OF_FIT, 1.0):
                samples = sample_posterior(problem, solution, minima, self.n_draws, self.seed)
            result |= posterior_arrays(definition, solution, samples)
            if n_fibres > 2:
                result |= self._widened_intervals(solution, result)
        return result | {
            "n_fibres": n_fibres,
            **self._S0(problem, solution),
            "converged": solution.converged.numpy(),
            "sigma": problem.sigma.numpy(),
            "n_unknowns": n_unknowns,
            "outliers": outliers,
        }

    def _is_rician(self, voxels):
        return self.likelihood == "rician" and not voxels.signed.any()

    def _problem(self, voxels, definition):
        """Of least squares, with the noise where it is known."""
        S0 = signal_without_diffusion(voxels.signals, self.acquisition, self.labels)
        signals, S0 = (torch.tensor(x, dtype=self.dtype) for x in (voxels.signals, S0 / S0[:, :1]))
        problem = separable_problem(definition, self.acquisition, signals, S0, self.labels)
        sigma = None if voxels.sigma is None else torch.tensor(voxels.sigma, dtype=self.dtype)
        problem = replace(problem, sigma=sigma, known=self._known(voxels, definition))
        left_out = voxels.attributes.get("left_out")
        return problem if left_out is None else problem.without(left_out)

    def _known(self, voxels, definition):
        """Scaled values (V, P) of known scalars, NaN of others; None where none is known."""
        names = [p.name for p in definition.parameters]
        columns = [names.index(name) for name in definition.known]
        known = torch.full((len(voxels), len(names)), torch.nan, dtype=self.dtype)
        known[:, columns] = torch.tensor(voxels.attributes["known"], dtype=self.dtype)
        return known if columns else None

    def _local_minima(self, problem, starts, rician):
        """Problem with its noise and likelihood, best solution, and all local minima.

        Unknown noise is taken from the residual of least squares; magnitudes are then fitted with
        the Rician likelihood, and refine the noise where they are many.
        """
        if problem.sigma is None or not rician:
            solution, minima = best_local_minimum(problem, starts)
        if problem.sigma is None:
            problem, starts = replace(problem, sigma=residual_noise(problem, solution)), minima
        if not rician:
            return problem, solution, minima
        problem = replace(problem, rician=True)
        solution, minima = best_local_minimum(problem, starts)
        n_unknowns = problem.definition.n_unknowns
        if self.refine_sigma and problem.data.shape[1] >= _MANY_MEASUREMENTS * n_unknowns:
            sigma = rician_noise_from_residual(
                problem.data, solution.predicted, problem.sigma, n_unknowns, problem.n_averages
            )
            problem = replace(problem, sigma=sigma)
            solution = variable_projection(problem, solution.parameters)
        return problem, solution, [solution.parameters, *minima[1:]]

    def _widened_intervals(self, solution, result):
        """Lower limits of parameters of three populations: three narrow ones are a corner of the
        prior, above which the posterior lies. The bound where two axes are close."""
        axes, lower_limits = solution.parameters.frames[:, :, 2], {}
        cosine = (axes @ axes.mT).abs() - torch.eye(axes.shape[1], dtype=axes.dtype)
        close = (cosine.amax(dim=(1, 2)) > _COSINE_OF_CLOSE_AXES).numpy()
        for p in self.definition.parameters:
            if p.per_fibre and p.name in result:
                median, low = result[p.name], result[f"{p.name}_low"]
                bound = p.low * UNITS[p.unit]
                extended = np.maximum(median - _EXTENSION * (median - low), bound)
                lower_limits[f"{p.name}_low"] = np.where(close, bound, extended)
        return lower_limits

    def _S0(self, problem, solution):
        """Signals without diffusion of the labels (V, L), and their means at the echo times."""
        definition, acquisition = problem.definition, self.acquisition
        values = physical_values(definition, solution.parameters)
        if definition.has_relaxation:
            rows = np.unique(self.labels, return_index=True)[1]
            encoding = encoding_of(acquisition, self.dtype, timed=definition.timed)
            pools = pool_signals(definition, encoding.without_diffusion())
            of_labels = predicted_signals(pools(values), solution.amplitudes)[:, rows]
        else:
            of_labels = solution.amplitudes.sum(dim=1, keepdim=True)
            if problem.S0 is not None:
                of_labels = of_labels * problem.S0 * S0_corrections(definition, values)
        of_labels = of_labels.numpy()
        per_te = mean_per_te(acquisition, of_labels[:, self.labels])
        return {"S0_per_label": of_labels, "S0_per_te": per_te}


def _squares(problem, solution, result):
    """Sum (V,) of squared residuals over the variance of the noise."""
    if problem.n_averages is not None:
        return (standardised_residual(problem, solution.predicted) ** 2).sum(axis=1)
    return problem.data.shape[1] * (result["residual_rms"] / problem.noise.numpy()) ** 2


def _inflation(result, freedom):
    """Factor (V,) of the variance of the noise in the posterior."""
    names = "worst_reduced_chi_square", "worst_degrees_of_freedom", "n_groups"
    worst = (result[name] for name in names if name in result)
    return torch.from_numpy(birge_variance(result["reduced_chi_square"], freedom, *worst))
