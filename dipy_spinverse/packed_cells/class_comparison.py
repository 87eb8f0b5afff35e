"""Maximum a posteriori estimates of every tissue class, and their evidence.

All classes are searched with interpolated signals. Then their local minima are refined, with the
noise, the systematic error and the errors of the emulator at the best fit so far, and classes of
little evidence are dropped voxel by voxel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from dipy_spinverse.packed_cells.dictionary import best_dictionary_entries
from dipy_spinverse.packed_cells.emulator_errors import model_errors, timing_patterns
from dipy_spinverse.packed_cells.likelihood import (
    TissueData,
    noise_free_signals,
    residuals,
    with_model_errors,
)
from dipy_spinverse.packed_cells.local_minima import (
    ClassPosterior,
    ClassSearchBudget,
    LocalMinima,
    find_local_minima,
    minimise_costs,
)
from dipy_spinverse.packed_cells.tissue_classes import ROTATION, TissueClass
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals
from dipy_spinverse.voxels.progress import part, stepwise

# Budgets of the search, of the two refinements, of those with the emulator itself, and of voxels
# without an adequate fit, whose searches must converge; others need not
# (benchmarks/notes/emulator.md, benchmarks/notes/tissue.md).
_SEARCH = ClassSearchBudget(16, 0.3)
_REFINEMENTS = ClassSearchBudget(8, 1.0), ClassSearchBudget(40, 0.1)
_EMULATED = ClassSearchBudget(15, 0.1)
_THOROUGH = ClassSearchBudget(40, 0.01, all_initial_values=True)
# Shares of the time of both steps, for the progress bar.
_SEARCH_TIME, _REFINEMENT_TIME = (0.0, 0.55), (0.55, 1.0)
# A fit is inadequate where the mean squared residual exceeds that of the noise and of the
# interpolation (rms error relative to the largest signal, benchmarks/results/emulator.md).
_ADEQUATE, _INTERPOLATION_RMS = 1.3, 0.002
# Interpolated signals are replaced by the emulator's where the two are more than two standard
# deviations of the noise apart: here their squared distance.
_NOTICEABLE = 4.0
# Power of Laplace's evidence, which errs by several units of its logarithm: with the whole of it
# 25 of 128 true classes had less than 5 % of the probability, with 0.3 two of them
# (benchmarks/notes/emulator.md).
_EVIDENCE_POWER = 0.3
# Classes with less than e^-5 of the probability of the best are dropped.
_LARGEST_LOG_ODDS = 5.0
# First estimate of unknown noise relative to the largest signal. It counts as one more
# measurement, since few measurements may be fitted exactly.
INITIAL_SIGMA = 0.02


class ClassEstimates(NamedTuple):
    """Voxels (n,) of which a tissue class has the largest evidence, and its estimates there.

    z (n, P), frames (n, 3, 3) and signals (n, M) relative to b = 0.
    """

    tissue: TissueClass
    voxels: np.ndarray
    z: np.ndarray
    frames: np.ndarray
    signals: np.ndarray


@dataclass(frozen=True, eq=False)
class ClassComparison:
    """Local minima of C tissue classes in V voxels.

    `minima` has those of each class in the voxels in which it is still `considered` (C, V).
    """

    model: TissueSignals
    tissues: list[TissueClass]
    data: TissueData
    noise_known: bool
    considered: np.ndarray
    minima: list[LocalMinima]

    def posterior(self, k: int) -> ClassPosterior:
        """Posterior of a class in the voxels in which it is considered."""
        data = self.data.of_voxels(self.considered[k])
        return ClassPosterior(self.model, self.tissues[k], data, self.minima[k].correction)

    def log_evidence(self) -> np.ndarray:
        """Tempered log evidence (C, V); -inf where a class is not considered."""
        log_evidence = np.full(self.considered.shape, -np.inf)
        for k, minima in enumerate(self.minima):
            log_evidence[k, self.considered[k]] = _EVIDENCE_POWER * minima.log_evidence
        return log_evidence

    def best(self) -> tuple[np.ndarray, list[ClassEstimates]]:
        """Class (V,) of the largest evidence, and maximum a posteriori estimates by class."""
        best_class = self.log_evidence().argmax(axis=0)
        estimates = []
        for k, (tissue, minima) in enumerate(zip(self.tissues, self.minima, strict=True)):
            voxels = np.flatnonzero(best_class == k)
            if len(voxels):
                rows = (np.cumsum(self.considered[k]) - 1)[voxels]
                z, frames = minima.z[rows, 0], minima.frames[rows]
                signals = self.model(tissue, z, frames) + minima.correction[rows]
                estimates.append(ClassEstimates(tissue, voxels, z, frames, signals))
        return best_class, estimates


def compare_classes(
    model: TissueSignals, tissues: list[TissueClass], data: TissueData, frames: np.ndarray,
    noise_known: bool, search_inflation: np.ndarray,
) -> ClassComparison:  # fmt: skip
    """Refined local minima of all classes.

    The data are without errors of the model, the frames (V, 3, 3) have the eigenvectors of the
    diffusion tensors in rows, and `search_inflation` (V,) multiplies the variance of the noise in
    the first search.
    """
    with part(*_SEARCH_TIME):
        search_data = data.with_inflated_noise(search_inflation)
        comparison = _search(model, tissues, search_data, frames, noise_known)
    data = data.with_fast_prior_sd(comparison.data.fast_prior_sd)
    comparison = replace(comparison, data=data)
    with part(*_REFINEMENT_TIME):
        for budget in stepwise(_REFINEMENTS):
            comparison = _refined(comparison, budget)
    return comparison


def _search(model, tissues, data, frames, noise_known):
    """Local minima of every class with interpolated signals.

    Voxels without an adequate fit are searched again, thoroughly, with all fast terms and unknown
    diffusivity of free water; these classes follow the others.
    """
    minima = _minima_of_classes(model, stepwise(tissues), data, frames, _SEARCH)
    considered = np.ones((len(tissues), len(data.measured)), dtype=bool)
    comparison = ClassComparison(model, tissues, data, noise_known, considered, minima)
    inadequate = noise_known & _inadequate(comparison)
    if inadequate.any():
        comparison = _search_again(comparison, frames, inadequate)
    return _without_unlikely_classes(comparison)


def _search_again(comparison, frames, inadequate):
    """The comparison with classes of unknown free water in voxels (V,) of bool."""
    data = comparison.data
    prior_sd = np.where(inadequate[:, None], data.all_fast_prior_sd, data.fast_prior_sd)
    data = data.with_fast_prior_sd(prior_sd)
    tissues = [tissue.of_unknown_water for tissue in comparison.tissues]
    previous = [
        wider.like(tissue, minima.of_voxels(inadequate).best_in(tissue, frames[inadequate]))
        for wider, tissue, minima in zip(
            tissues, comparison.tissues, comparison.minima, strict=True
        )
    ]
    new_minima = _minima_of_classes(
        comparison.model, tissues, data.of_voxels(inadequate), frames[inadequate], _THOROUGH,
        previous,
    )  # fmt: skip
    return replace(
        comparison,
        tissues=[*comparison.tissues, *tissues],
        data=data,
        considered=np.repeat([~inadequate, inadequate], len(tissues), axis=0),
        minima=[minima.of_voxels(~inadequate) for minima in comparison.minima] + new_minima,
    )


def _minima_of_classes(model, tissues, data, frames, budget, previous=()):
    """Local minima of each class; previous estimates (V, P) are initial values, too."""
    minima: dict[str, tuple[TissueClass, LocalMinima]] = {}
    no_correction = np.zeros_like(data.measured)
    for tissue, estimates in zip_longest(tissues, previous):
        if tissue.name == "crossing" and "cylinders" in minima:
            initial_values = _crossing_initial_values(tissue, *minima["cylinders"])
        elif tissue.name == "no cells":
            initial_values = np.zeros((len(data.measured), 1, tissue.n_parameters))
        else:
            initial_values = best_dictionary_entries(model, tissue, data, frames)
        if estimates is not None:
            initial_values = np.concatenate([initial_values, estimates[:, None]], axis=1)
        posterior = ClassPosterior(model, tissue, data, no_correction)
        minima[tissue.name] = tissue, find_local_minima(posterior, initial_values, frames, budget)
    return [class_minima for _, class_minima in minima.values()]


def _crossing_initial_values(tissue, cylinders, minima):
    """z (V, 2, P) like the best cylinders', crossing in either plane of their frame."""
    z = np.repeat(tissue.like(cylinders, minima.z[:, :1]), 2, axis=1)
    z[..., tissue.columns(*ROTATION)] = 0
    # The crossing angle takes the place of the dispersion.
    z[..., tissue.columns("dispersion_1")] = -1.0
    z[:, 1, -1] = np.pi / 2
    return z


def _inadequate(comparison):
    """Voxels (V,) whose best residual exceeds the noise and the error of the interpolation."""
    data = comparison.data
    mean_square = np.zeros(len(data.measured))
    for estimates in comparison.best()[1]:
        residual = residuals(data, estimates.signals, estimates.voxels)[0]
        mean_square[estimates.voxels] = (residual**2).sum(axis=1) / data.n_used
    mean_square /= data.inverse_sd.max(axis=1) ** 2
    error = _INTERPOLATION_RMS * np.abs(data.measured).max(axis=1)
    return mean_square > _ADEQUATE * (data.sigma**2 / data.n_averages.max() + error**2)


def _without_unlikely_classes(comparison):
    """The comparison without the classes of little evidence, voxel by voxel."""
    log_evidence = comparison.log_evidence()
    considered = log_evidence > log_evidence.max(axis=0) - _LARGEST_LOG_ODDS
    minima = [
        minima.of_voxels(likely[previously])
        for minima, likely, previously in zip(
            comparison.minima, considered, comparison.considered, strict=True
        )
    ]
    return replace(comparison, considered=considered, minima=minima)


def _refined(comparison, budget):
    """The comparison with the errors at the best fit so far.

    Errors of the model are one number for each timing. One for each shell, although realistic,
    would explain what parameters can explain where the data refute the model, and predict worse
    (benchmarks/notes/emulator.md).
    """
    comparison = with_errors(comparison, timing_patterns(comparison.model.shells))
    all_minima = list(comparison.minima)
    for k, minima in stepwise([*enumerate(comparison.minima)]):
        if len(minima.frames):
            correction = _interpolation_error(comparison, k, minima)
            posterior = replace(comparison.posterior(k), correction=correction)
            minima = find_local_minima(posterior, minima.z, minima.frames, budget)
            minima = _minima_with_emulator(posterior, minima)
            correction = _interpolation_error(comparison, k, minima)
            all_minima[k] = replace(minima, correction=correction)
    return _without_unlikely_classes(replace(comparison, minima=all_minima))


def with_errors(comparison: ClassComparison, patterns: np.ndarray) -> ClassComparison:
    """The comparison with noise and errors at its best fits."""
    data, model = comparison.data, comparison.model
    n_voxels, n = data.measured.shape
    noise_free, sigma = np.empty((n_voxels, n)), data.sigma.copy()
    all_estimates, errors = comparison.best()[1], []
    for tissue, voxels, z, frames, signals in all_estimates:
        residual, amplitudes, _ = residuals(data, signals, voxels)
        noise_free[voxels], _ = noise_free_signals(data, signals, amplitudes, voxels)
        relative_errors = model_errors(model, tissue, z, frames, patterns)
        errors.append(amplitudes[:, None, data.labels] * relative_errors)
        if not comparison.noise_known:
            n_unknowns = tissue.n_parameters + data.n_linear[voxels]
            freedom = np.maximum(data.n_used - n_unknowns, 0)
            square = sigma[voxels] ** 2 * (residual**2).sum(axis=1)
            square += (INITIAL_SIGMA * np.abs(data.measured[voxels]).max(axis=1)) ** 2
            sigma[voxels] = np.sqrt(square / (freedom + 1))
    data = replace(data, sigma=sigma)
    patterns_of_voxels = np.zeros((n_voxels, max(e.shape[1] for e in errors), n))
    for estimates, class_errors in zip(all_estimates, errors, strict=True):
        patterns_of_voxels[estimates.voxels, : class_errors.shape[1]] = class_errors
    return replace(comparison, data=with_model_errors(data, noise_free, patterns_of_voxels))


def _interpolation_error(comparison, k, minima):
    """Signals (V, M) of the emulator less interpolated ones, at the best minima."""
    at_minimum = comparison.tissues[k], minima.z[:, 0], minima.frames
    return comparison.model.emulated(*at_minimum) - comparison.model(*at_minimum)


def _minima_with_emulator(posterior, minima):
    """Minima, the best one with the emulator itself where interpolation changes chi-square."""
    model, tissue, data = posterior.model, posterior.tissue, posterior.data
    z, frames = minima.z[:, 0], minima.frames
    voxel = np.arange(len(frames))
    interpolated = model(tissue, z, frames) + posterior.correction
    change = residuals(data, model.emulated(tissue, z, frames), voxel)[0]
    change -= residuals(data, interpolated, voxel)[0]
    rows = np.flatnonzero((change**2).sum(axis=1) > _NOTICEABLE)
    if not len(rows):
        return minima
    data = data.of_voxels(rows)
    voxel, no_correction = np.arange(len(rows)), np.zeros_like(data.measured)
    z, frames = z[rows], frames[rows]
    # Derivatives of the interpolation cost a tenth, and lead almost to the minimum.
    for exact_model in (model.emulated, model.emulated_with_slopes):
        exact = ClassPosterior(exact_model, tissue, data, no_correction)
        z, frames, covariance, cost = minimise_costs(exact, z, frames, voxel, _EMULATED)
    result = LocalMinima(*(values.copy() for values in vars(minima).values()))
    result.costs[rows] = np.inf
    result.z[rows, 0], result.frames[rows] = z, frames
    result.covariances[rows, 0], result.costs[rows, 0] = covariance, cost
    return result
