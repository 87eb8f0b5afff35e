"""Posterior of the tissue of voxels, by Bayesian model averaging over tissue classes.

1. Signals are corrected for the asymmetry between opposite gradient directions (``nuisance``).
2. Every class is searched for its maximum a posteriori and weighted by its evidence
   (``class_comparison``).
3. Posterior samples are drawn from the classes in proportion to their probabilities
   (``randomise_then_optimise``), and maps are computed from them (``maps``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
from scipy.special import logsumexp

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.packed_cells.class_comparison import (
    INITIAL_SIGMA,
    ClassComparison,
    compare_classes,
    with_errors,
)
from dipy_spinverse.packed_cells.emulator_errors import error_patterns
from dipy_spinverse.packed_cells.equivalent_pulses import PulsedMeasurements
from dipy_spinverse.packed_cells.gaussian_process import GaussianProcess, Smoothing, smooth
from dipy_spinverse.packed_cells.likelihood import (
    expected_signals,
    noise_free_signals,
    residuals,
    systematic_error,
    tissue_data,
)
from dipy_spinverse.packed_cells.maps import (
    PARAMETERS,
    tissue_maps,
    tissue_parameters,
    with_unequal_membranes,
)
from dipy_spinverse.packed_cells.nuisance import (
    find_fast_terms,
    polarity_asymmetry,
    polarity_factors,
)
from dipy_spinverse.packed_cells.randomise_then_optimise import posterior_samples
from dipy_spinverse.packed_cells.residual_tests import (
    Residual,
    ResidualGroups,
    gradient_axes,
    left_out_comparison,
    leverages,
    residual_tests,
)
from dipy_spinverse.packed_cells.tissue_classes import TissueClass
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals
from dipy_spinverse.voxels.progress import part
from dipy_spinverse.voxels.statistics import dominant_axis
from dipy_spinverse.voxels.status import birge_variance
from dipy_spinverse.voxels.tensor_frames import tensor_frames

# Classes of smaller probability are not sampled: less than one of 200 samples.
_MIN_PROBABILITY = 0.005
# The noise of the first search is at least that error of interpolated signals, relative to the
# largest signal (benchmarks/notes/real_data.md).
_INTERPOLATION_ERROR = 0.01
# Factor of the variance of the noise for samples, which are too narrow otherwise: chosen for
# tissues of the prior (benchmarks/tissue_prior.py, benchmarks/notes/emulator.md).
_NOISE_INFLATION = 2.0
# Shares of the time of estimates and samples, for the progress bar.
_ESTIMATION_TIME, _SAMPLING_TIME = (0.0, 0.55), (0.55, 1.0)


@dataclass(frozen=True, eq=False)
class PackedCellsPosterior:
    """Maximum a posteriori estimates of V voxels, and n equally weighted posterior samples.

    Attributes
    ----------
    parameters : dict of ndarray (n, V)
        Samples of ``maps.PARAMETERS``; 0 where the class of a sample lacks one.
    maps : dict of ndarray (n, V), orientations (n, V, 3)
        Samples of "surface_to_volume" (1/um), "restricted_fraction", "wall_permeability" (um/ms,
        mean over the area), "exchange_time" (ms), "pore_diameter" (um, 4 V / S as in
        ``wall_maps``: 2 R of cylinders, 4 R / 3 of spheres), "body_diameter" (um, 2 R, mean
        over the volume), "wall_orientation" (z >= 0; 0 for spheres), "wall_anisotropy" (as in
        ``wall_maps``), "orientation_dispersion" (0.0005 to 0.95, spheres 1),
        "free_water_fraction", "dot_fraction", "hindered_fraction", "diffusivity_inside" and
        "diffusivity_outside" (mm^2/s).
    class_probabilities : dict of ndarray (V,)
        Posterior probability of each class; a priori they are equally likely.
    estimated_maps : dict of ndarray (V, ...)
        The same maps at the maximum a posteriori of the most probable class.
    estimated_parameters : dict of ndarray (V,)
        ``maps.PARAMETERS`` at this estimate.
    estimated_class : ndarray (V,) of int
        Index of the most probable class.
    estimated_frames : ndarray (V, 3, 3)
        Frame of the tissue, its axis last.
    predicted : ndarray (V, M)
        Expected measurements at the estimate, with the bias of Rician noise.
    amplitudes : ndarray (V, L)
        Signal at b = 0 of each label.
    polarity_asymmetry : ndarray (V, T * 6)
        Coefficients of ``nuisance.polarity_factors``.
    fast_fraction : ndarray (V, T)
        Fast (pseudo-diffusion) component relative to the amplitude, by timing.
    systematic_error : ndarray (V,)
        Standard deviation of errors proportional to the signal, relative to it.
    sigma : ndarray (V,)
        Noise, known or estimated.
    chi_square, degrees_of_freedom : ndarray (V,)
        Of the residual of the estimate.
    group_chi_square, group_degrees_of_freedom : ndarray (V, G)
        Of the groups of ``residual_tests``, the last three along, oblique to and across the axis.
    worst_reduced_chi_square, worst_degrees_of_freedom : ndarray (V,)
        Of the least probable shell or timing whose residual exceeds the noise by 1 % of S0 or 10 %
        of its signal.
    misfit_percent : ndarray (V,)
        Root mean square of the residual beyond the noise, in percent of S0.
    left_out_ratio, left_out_significance : ndarray (V,)
        Of ``residual_tests.left_out_comparison``.
    """

    parameters: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    class_probabilities: dict[str, np.ndarray]
    estimated_maps: dict[str, np.ndarray]
    estimated_parameters: dict[str, np.ndarray]
    estimated_class: np.ndarray
    estimated_frames: np.ndarray
    predicted: np.ndarray
    amplitudes: np.ndarray
    polarity_asymmetry: np.ndarray
    fast_fraction: np.ndarray
    systematic_error: np.ndarray
    sigma: np.ndarray
    chi_square: np.ndarray
    degrees_of_freedom: np.ndarray
    group_chi_square: np.ndarray
    group_degrees_of_freedom: np.ndarray
    worst_reduced_chi_square: np.ndarray
    worst_degrees_of_freedom: np.ndarray
    misfit_percent: np.ndarray
    left_out_ratio: np.ndarray
    left_out_significance: np.ndarray

    def mean(self, name: str) -> np.ndarray:
        """Posterior mean (V,) of a map; of orientations the dominant axis (V, 3)."""
        samples = self.maps[name]
        return samples.mean(axis=0) if samples.ndim == 2 else dominant_axis(samples)[0]

    def interval(self, name: str, level: float = 0.95) -> np.ndarray:
        """Central credible intervals (2, V) of a scalar map."""
        tail = (1 - level) / 2
        return np.quantile(self.maps[name], [tail, 1 - tail], axis=0)

    def spread_samples(self, n: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Parameters and maps (n, V, ...) of n samples spread evenly over all of them.

        Neighbouring samples share searches and are correlated.
        """
        n_samples = len(self.maps["pore_diameter"])
        if not 0 <= n <= n_samples:
            raise ValueError(f"n is {n}; give a number from 0 to the {n_samples} samples.")
        index = np.arange(n) * n_samples // max(n, 1)
        parameters, maps = (
            {name: values[index] for name, values in samples.items()}
            for samples in (self.parameters, self.maps)
        )
        return parameters, maps


class Setting(NamedTuple):
    """Data shared by all voxels; labels, used and groups are in the order of the acquisition."""

    acquisition: PulsedMeasurements
    model: TissueSignals
    tissues: list[TissueClass]
    labels: np.ndarray
    used: np.ndarray
    groups: ResidualGroups
    process: GaussianProcess


def posterior_of(
    setting: Setting, measured: np.ndarray, sigma: np.ndarray | None, n_samples: int, seed: int
) -> PackedCellsPosterior:
    """Posterior of signals (V, M) with noise (V,), which is estimated where it is None.

    Where the best class is rejected with p < 0.001, the variance of the noise of the samples is
    multiplied by the reduced chi-square, so that intervals are wider by its root.
    """
    acquisition, order = setting.acquisition, setting.model.shells.order
    noise_known = sigma is not None
    largest = np.abs(measured).max(axis=1)
    initial_sigma = INITIAL_SIGMA * largest if sigma is None else sigma
    asymmetry = polarity_asymmetry(acquisition, measured, initial_sigma)
    factors = polarity_factors(acquisition, acquisition, asymmetry)
    symmetric = measured / factors
    data = tissue_data(
        np.ascontiguousarray(symmetric[:, order]), initial_sigma, setting.labels[order],
        setting.used[order], acquisition.n_averages[order],
        find_fast_terms(acquisition, setting.labels, setting.used, order),
    )  # fmt: skip
    smoothing = smooth(setting.process, symmetric)
    if noise_known:
        ordered = Smoothing(*(values[:, order] for values in smoothing))
        data = replace(data, systematic=systematic_error(data, ordered))
    # With less noise than the error of interpolated signals, searches would fit that error.
    least_noise = initial_sigma / np.sqrt(acquisition.n_averages.max())
    search_inflation = np.maximum(_INTERPOLATION_ERROR * largest / least_noise, 1) ** 2
    frames = tensor_frames(cast(BaseAcquisition, acquisition), symmetric)
    with part(*_ESTIMATION_TIME):
        comparison = compare_classes(
            setting.model, setting.tissues, data, frames, noise_known, search_inflation
        )
    estimates = _estimates(comparison, setting, smoothing)
    with part(*_SAMPLING_TIME):
        probabilities, parameters, maps = _samples(
            comparison, _noise_inflation(estimates, setting, noise_known), n_samples, seed,
            estimates["estimated_class"],
        )  # fmt: skip
    # Classes of unknown free water follow the others.
    classes = [tissue.name for tissue in setting.tissues]
    estimates["estimated_class"] %= len(classes)
    probabilities = probabilities.reshape(-1, len(classes), len(measured)).sum(axis=0)
    estimates["predicted"] *= factors
    return PackedCellsPosterior(
        parameters=parameters,
        maps=maps,
        **estimates,
        class_probabilities=dict(zip(classes, probabilities, strict=True)),
        polarity_asymmetry=asymmetry,
        systematic_error=comparison.data.systematic,
        sigma=comparison.data.sigma,
    )


def _estimates(comparison: ClassComparison, setting: Setting, smoothing: Smoothing):
    """Maximum a posteriori of the most probable classes, and tests of its residual."""
    data, order = comparison.data, comparison.model.shells.order
    n_voxels, n = data.measured.shape
    parameters = {name: np.zeros(n_voxels) for name in PARAMETERS}
    frames, signals = np.zeros((n_voxels, 3, 3)), np.empty((n_voxels, n))
    estimated_class, all_estimates = comparison.best()
    for tissue, voxels, z, class_frames, class_signals in all_estimates:
        signals[voxels], frames[voxels] = class_signals, class_frames
        for name, value in tissue_parameters(tissue, z, comparison.model.diffusivity).items():
            parameters[name][voxels] = value
    voxel = np.arange(n_voxels)
    ordered_residual, amplitudes, _ = residuals(data, signals, voxel)
    noise_free, fast = noise_free_signals(data, signals, amplitudes, voxel)
    terms = data.fast_terms
    has_timing = terms.timing[:, None] == np.arange(len(setting.acquisition.timings))
    mean_over_terms = has_timing / np.maximum(has_timing.sum(axis=0), 1)
    leverage = np.empty((n_voxels, n))
    for tissue, voxels, z, class_frames, class_signals in all_estimates:
        slopes = comparison.model(tissue, z, class_frames, slopes=True)[1]
        leverage[voxels] = leverages(data, class_signals, amplitudes[voxels], slopes, voxels)
    expected = expected_signals(data, noise_free)
    ordered = Residual(
        ordered_residual, data.measured - expected, data.inverse_sd, leverage, expected
    )
    residual = Residual(*(values[:, np.argsort(order)] for values in ordered))
    maps = tissue_maps(parameters, frames)
    directions = gradient_axes(setting.acquisition) * setting.used[:, None]
    axes, S0 = maps["wall_orientation"], amplitudes.mean(axis=1)
    return {
        **residual_tests(residual, setting.groups, directions, axes, S0),
        **left_out_comparison(residual, setting.process, smoothing),
        "estimated_maps": maps,
        "estimated_parameters": parameters,
        "estimated_class": estimated_class,
        "estimated_frames": frames,
        "predicted": residual.expected,
        "amplitudes": amplitudes,
        "fast_fraction": (fast / amplitudes[:, terms.label]) @ mean_over_terms,
    }


def _noise_inflation(estimates, setting, noise_known):
    """Factor (V,) of the variances for samples, larger where the estimates are rejected."""
    chi_square, freedom = estimates["chi_square"], estimates["degrees_of_freedom"]
    if not noise_known:
        return np.full(len(chi_square), _NOISE_INFLATION)
    worst = (estimates[f"worst_{name}"] for name in ("reduced_chi_square", "degrees_of_freedom"))
    n_groups = len(setting.groups.names)
    return _NOISE_INFLATION * birge_variance(chi_square / freedom, freedom, *worst, n_groups)


def _samples(comparison, noise_inflation, n_samples, seed, estimated_class):
    """Probability (C, V) of each class, and samples of parameters and maps."""
    n_classes, n_voxels = comparison.considered.shape
    parameters = {name: np.zeros((n_samples, n_voxels)) for name in PARAMETERS}
    frames = np.zeros((n_samples, n_voxels, 3, 3))
    sample_class = np.zeros((n_samples, n_voxels), dtype=int)
    rng = np.random.default_rng(seed)
    if n_samples:
        comparison = with_errors(comparison, error_patterns(comparison.model.shells))
        data = comparison.data.with_inflated_noise(noise_inflation)
        comparison = replace(comparison, data=data)
        probabilities = _class_probabilities(comparison)
        # Stratified: each class has the share of the samples that is its probability.
        quantile = rng.permutation((np.arange(n_samples) + rng.random()) / n_samples)
        cumulative = np.cumsum(probabilities, axis=0)
        sample_class = (quantile[:, None] > cumulative[:, None]).sum(axis=0)
        sample_class = np.minimum(sample_class, n_classes - 1)
    else:
        probabilities = np.eye(n_classes)[estimated_class].T
    seeds = np.random.SeedSequence(seed).spawn(n_classes)
    for k, (tissue, minima) in enumerate(zip(comparison.tissues, comparison.minima, strict=True)):
        number, voxel = np.nonzero(sample_class == k)
        if not len(number):
            continue
        row = np.cumsum(comparison.considered[k]) - 1
        with part((sample_class < k).mean(), (sample_class <= k).mean()):
            z, frames[number, voxel] = posterior_samples(
                comparison.posterior(k), minima, row[voxel], number, comparison.noise_known,
                n_samples, np.random.default_rng(seeds[k]),
            )  # fmt: skip
        for name, value in tissue_parameters(tissue, z, comparison.model.diffusivity).items():
            parameters[name][number, voxel] = value
    maps = with_unequal_membranes(tissue_maps(parameters, frames), rng)
    return probabilities, parameters, maps


def _class_probabilities(comparison):
    """Posterior probabilities (C, V), those below a threshold set to 0."""
    log_evidence = comparison.log_evidence()
    probabilities = np.exp(log_evidence - logsumexp(log_evidence, axis=0))
    probabilities[probabilities < _MIN_PROBABILITY] = 0
    return probabilities / probabilities.sum(axis=0)
