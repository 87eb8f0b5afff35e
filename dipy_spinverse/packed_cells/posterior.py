"""Posterior distributions of tissue with packed cylinders and spheres, given signals."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from scipy.stats import chi2

from dipy_spinverse.packed_cells.class_comparison import (
    FIRST_SIGMA,
    REFINEMENTS,
    compare_classes,
    refined_comparison,
    with_errors_by_shell,
)
from dipy_spinverse.packed_cells.equivalent_pulses import PulsedMeasurements
from dipy_spinverse.packed_cells.input_checks import checked_diffusivity, checked_input
from dipy_spinverse.packed_cells.likelihood import (
    expected_magnitudes,
    noise_free_data,
    residuals,
    voxel_data,
)
from dipy_spinverse.packed_cells.maps import (
    PARAMETERS,
    tissue_maps,
    tissue_parameters,
    with_unequal_membranes,
)
from dipy_spinverse.packed_cells.nuisance import (
    FastTerms,
    fast_terms,
    labels_of,
    polarity_asymmetry,
    polarity_factors,
)
from dipy_spinverse.packed_cells.randomise_then_optimise import posterior_samples
from dipy_spinverse.packed_cells.residual_tests import (
    ResidualGroups,
    chi_square_by_direction,
    gradient_axes,
    residual_groups,
    worst_group,
)
from dipy_spinverse.packed_cells.tissue_classes import (
    CLASSES,
    TYPICAL_RADIUS,
    TissueClass,
    tissue_class,
)
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals, tissue_signals
from dipy_spinverse.voxels.progress import part, stepwise
from dipy_spinverse.voxels.statistics import of_axes
from dipy_spinverse.voxels.status import REFUTED
from dipy_spinverse.voxels.tensor_frames import tensor_frames

_LEAST_PROBABILITY = 0.005  # of a class; less likely ones are dropped
# Over the largest signal: what interpolated signals may be wrong by.
_INTERPOLATION_ERROR = 0.01
_BATCH = 64  # voxels
# Of the noise's variance, for draws: those of randomised likelihoods are slightly too narrow
# otherwise. Chosen for tissues drawn from the prior (benchmarks/tissue_prior.py).
_MORE_NOISE = 2.0
# Of the time that a batch takes.
_SEARCHED, _IMPROVED, _DRAWN = (0.0, 0.3), (0.3, 0.55), (0.55, 1.0)


@dataclass(frozen=True, eq=False)
class PackedCellsPosterior:
    """Equally weighted samples of the posteriors of V voxels, and maximum a posteriori estimates.

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
        "diffusivity_outside" (um^2/ms).
    sample_class : ndarray (n, V) of int
        Index in `CLASSES` of the class of each sample.
    estimated_maps : dict of ndarray (V, ...)
        The same maps at the maximum a posteriori.
    estimated_parameters : dict of ndarray (V,)
    estimated_class : ndarray (V,) of int
        Index in `CLASSES`.
    estimated_frames : ndarray (V, 3, 3)
        Frame of the tissue; the axis is the last row.
    predicted : ndarray (V, M)
        Expected measurements at the best parameters, with the noise floor.
    amplitudes : ndarray (V, K)
        Signal at b = 0 of each label.
    polarity_asymmetry : ndarray (V, T * 6)
        Coefficients of ``nuisance.polarity_factors``.
    fast_fraction : ndarray (V, T)
        Fast (pseudo-diffusion) component over the amplitude, by timing.
    systematic_error : ndarray (V,)
        Standard deviation of signals beyond the noise, relative to the signal.
    chi_square : ndarray (V,)
        Of the best parameters.
    degrees_of_freedom : ndarray (V,)
        Measurements less parameters of the best class and amplitudes.
    group_chi_square : ndarray (V, G)
        Sums of squares of `groups` of measurements, then along, oblique to and across the axis.
    group_degrees_of_freedom : ndarray (V, G)
        Of each, that the fit left.
    worst_reduced_chi_square, worst_degrees_of_freedom : ndarray (V,)
        Of the shell or timing that chance explains least.
    sigma : ndarray (V,)
        Noise given or estimated.
    class_probabilities : dict of ndarray (V,)
        Of each class; a priori equally likely.
    """

    parameters: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    sample_class: np.ndarray
    estimated_maps: dict[str, np.ndarray]
    estimated_parameters: dict[str, np.ndarray]
    estimated_class: np.ndarray
    estimated_frames: np.ndarray
    predicted: np.ndarray
    amplitudes: np.ndarray
    polarity_asymmetry: np.ndarray
    fast_fraction: np.ndarray
    systematic_error: np.ndarray
    chi_square: np.ndarray
    degrees_of_freedom: np.ndarray
    group_chi_square: np.ndarray
    group_degrees_of_freedom: np.ndarray
    worst_reduced_chi_square: np.ndarray
    worst_degrees_of_freedom: np.ndarray
    sigma: np.ndarray
    class_probabilities: dict[str, np.ndarray]

    def mean(self, name: str) -> np.ndarray:
        """Posterior means (V,) of a map; of orientations the dominant axis (V, 3)."""
        values = self.maps[name]
        if values.ndim == 2:
            return values.mean(axis=0)
        return of_axes(values)[0]

    def interval(self, name: str, level: float = 0.95) -> np.ndarray:
        """Central intervals (2, V) of a scalar map."""
        tail = (1 - level) / 2
        return np.quantile(self.maps[name], [tail, 1 - tail], axis=0)

    def spread_samples(self, n: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Parameters and maps (n, V, ...) of n samples spread evenly over all of them.

        Neighbouring samples share searches and are correlated.
        """
        n_samples = len(self.sample_class)
        if not 0 <= n <= n_samples:
            raise ValueError(f"n is {n}; the posterior has {n_samples} samples.")
        index = np.arange(n) * n_samples // max(n, 1)
        parameters, maps = (
            {name: value[index] for name, value in samples.items()}
            for samples in (self.parameters, self.maps)
        )
        return parameters, maps


def packed_cells_posterior(
    acquisition: PulsedMeasurements,
    data: ArrayLike,
    sigma: ArrayLike | None = None,
    *,
    diffusivity: float | tuple[float, float] | None = None,
    free_diffusivity: float = 3.0,
    typical_radius: float = TYPICAL_RADIUS,
    radius_spread: float = 0.0,
    n_draws: int = 200,
    seed: int = 0,
    classes: tuple[str, ...] = CLASSES,
    amplitudes: str | ArrayLike = "te",
    least_b: float = 0.0,
) -> PackedCellsPosterior:
    """Which tissue explains the signals of voxels, and how surely.

    The prior is that of ``classes``; amplitudes are integrated out with a flat prior, and what the
    scan adds beside them is told apart (``nuisance``). The first call for an acquisition takes
    some seconds to compile the emulator for it. Where the best class leaves more than noise does
    in one of 1000 voxels, draws are made with so much more noise that it would be typical:
    intervals of a refuted model are wider by the square root of the excess.

    Parameters
    ----------
    acquisition : Acquisition
    data : array-like (V, M)
        Magnitudes, or real parts, which can be negative.
    sigma : float or array-like (V,), optional
        Standard deviation of the noise in each channel; found from the residual where not given.
    diffusivity : float, (inside, outside) or None, optional
        Of the water in the tissue, um^2/ms; one number for both. Unknown where not given, with
        the prior of ``classes``.
    free_diffusivity : float, optional
        Of free water, um^2/ms.
    typical_radius : float, optional
        Median of the prior of radii, um.
    radius_spread : float, optional
        Of the cells of a voxel, whose radii are gamma-distributed: standard deviation over mean.
    n_draws : int, optional
        0 for the likeliest values only.
    seed : int, optional
    classes : tuple of str, optional
        Of ``classes.CLASSES``, and "aligned cylinders": parallel ones along the first
        eigenvector of a tensor.
    amplitudes : {"te", "timing"} or array-like (M,), optional
        Measurements that share a signal at b = 0: of one echo time, of one (delta, Delta, TE), or
        of one label.
    least_b : float, optional
        Weighted measurements below it, ms/um^2, do not count; b = 0 does.

    Returns
    -------
    PackedCellsPosterior

    Raises
    ------
    ValueError
        Arguments of the wrong shape or range.
    """
    diffusivity = checked_diffusivity(diffusivity)
    data, sigma = checked_input(
        acquisition,
        data,
        sigma,
        free_diffusivity,
        typical_radius,
        radius_spread,
        n_draws,
        classes,
        least_b,
    )
    known, relaxes = diffusivity is not None, np.ptp(acquisition.te) > 0
    tissues = [tissue_class(name, known, relaxes, float(typical_radius)) for name in classes]
    shapes = {
        "cylinder": any(tissue.has_cylinders for tissue in tissues),
        "sphere": any(tissue.has_spheres for tissue in tissues),
    }
    needed = tuple(shape for shape, is_needed in shapes.items() if is_needed)
    model = tissue_signals(
        acquisition, diffusivity, free_diffusivity, needed, radius_spread=float(radius_spread)
    )
    used = acquisition.b0_mask | (acquisition.b >= least_b)
    scan = _Scan(
        acquisition, model, tissues, labels_of(acquisition, amplitudes), used,
        residual_groups(acquisition, used),
    )  # fmt: skip
    parts = []
    for first in stepwise(range(0, len(data), _BATCH)):
        voxels = slice(first, first + _BATCH)
        given = None if sigma is None else sigma[voxels]
        parts.append(_posterior_of(scan, data[voxels], given, n_draws, seed))
    return _joined(parts)


@dataclass(frozen=True, eq=False)
class _Scan:
    """What all voxels share; measurements in the order of the acquisition."""

    acquisition: PulsedMeasurements
    model: TissueSignals
    tissues: list[TissueClass]
    labels: np.ndarray
    used: np.ndarray
    groups: ResidualGroups

    @property
    def fleeting(self) -> FastTerms:
        """Terms of the measurements in the order of the shells."""
        return fast_terms(self.acquisition, self.labels, self.used, self.model.shells.order)


def _posterior_of(scan, data, sigma, n_draws, seed):
    order = scan.model.shells.order
    known_noise = sigma is not None
    largest = np.abs(data).max(axis=1)
    first_sigma = sigma if known_noise else FIRST_SIGMA * largest
    odd = polarity_asymmetry(scan.acquisition, data, first_sigma)
    data = data / polarity_factors(scan.acquisition, scan.acquisition, odd)
    frames = tensor_frames(scan.acquisition, data)
    known = voxel_data(
        np.ascontiguousarray(data[:, order]), first_sigma, scan.labels[order], scan.used[order],
        scan.fleeting,
    )  # fmt: skip
    # Less noise than the interpolated signals have errors makes a search follow these.
    excess = np.maximum(_INTERPOLATION_ERROR * largest / first_sigma, 1) ** 2
    weak = known.with_inflated_noise(excess)
    with part(*_SEARCHED):
        case = compare_classes(scan.model, scan.tissues, weak, frames, known_noise)
    case = replace(case, known=known.with_spread(case.known.fleeting_spread))
    floor = np.zeros(len(data))
    with part(*_IMPROVED):
        for effort in stepwise(REFINEMENTS):
            case, floor = refined_comparison(case, effort)
    best_class, groups_of_class = case.best()
    at_best = _at_best(case, best_class, groups_of_class, scan)
    excess = np.full(len(data), _MORE_NOISE)
    if known_noise:
        refuted = _refuted(at_best, len(scan.groups.names))
        of_fit = at_best["chi_square"] / at_best["degrees_of_freedom"]
        excess *= np.where(refuted, np.maximum(of_fit, 1), 1)
    with part(*_DRAWN):
        if n_draws:
            erring = with_errors_by_shell(case)
            noisier = replace(erring, known=erring.known.with_inflated_noise(excess))
            found = _drawn(noisier, n_draws, seed)
        else:
            found = _not_drawn(case, best_class)
    # Classes of unknown free water follow the others.
    n_classes = len(scan.tissues)
    at_best["estimated_class"] = best_class % n_classes
    found["sample_class"] = found["sample_class"] % n_classes
    probabilities = found.pop("probabilities").reshape(-1, n_classes, len(data)).sum(axis=0)
    predicted = at_best.pop("predicted")
    everywhere = np.empty_like(predicted)
    everywhere[:, order] = predicted
    return {
        **found,
        **at_best,
        "predicted": everywhere * polarity_factors(scan.acquisition, scan.acquisition, odd),
        "polarity_asymmetry": odd,
        "systematic_error": floor,
        "sigma": case.known.sigma,
        "class_probabilities": {
            tissue.name: each for tissue, each in zip(scan.tissues, probabilities, strict=True)
        },
    }


def _refuted(at_best, n_groups):
    total = chi2.sf(at_best["chi_square"], at_best["degrees_of_freedom"])
    freedom = at_best["worst_degrees_of_freedom"]
    worst = chi2.sf(at_best["worst_reduced_chi_square"] * freedom, freedom) * n_groups
    return np.minimum(total, worst) < REFUTED


def _not_drawn(case, best_class):
    """As `_drawn`, with no draws and the class of the likeliest place."""
    n_voxels = len(best_class)
    parameters = {name: np.zeros((0, n_voxels)) for name in PARAMETERS}
    return {
        "parameters": parameters,
        "maps": tissue_maps(parameters, np.zeros((0, n_voxels, 3, 3))),
        "sample_class": np.zeros((0, n_voxels), dtype=int),
        "probabilities": np.eye(len(case.tissues))[best_class].T,
    }


def _drawn(case, n_draws, seed):
    """Draws of parameters and maps, and the probability (C, V) of each class."""
    log_evidence = case.log_evidence()
    probabilities = np.exp(log_evidence - logsumexp(log_evidence, axis=0))
    probabilities[probabilities < _LEAST_PROBABILITY] = 0
    probabilities /= probabilities.sum(axis=0)
    n_voxels = probabilities.shape[1]
    parameters = {name: np.zeros((n_draws, n_voxels)) for name in PARAMETERS}
    frames = np.zeros((n_draws, n_voxels, 3, 3))
    rng = np.random.default_rng(seed)
    # In random order, as each class has the share of the draws that is its probability.
    position = rng.permutation((np.arange(n_draws) + rng.random()) / n_draws)
    of_class = (position[:, None] > np.cumsum(probabilities, axis=0)[:, None]).sum(axis=0)
    of_class = np.minimum(of_class, len(probabilities) - 1)
    seeds = np.random.SeedSequence(seed).spawn(len(case.tissues))
    for k, (tissue, modes) in enumerate(zip(case.tissues, case.modes, strict=True)):
        number, voxel = np.nonzero(of_class == k)
        if not len(number):
            continue
        row = np.cumsum(case.kept[k]) - 1
        with part((of_class < k).mean(), (of_class <= k).mean()):
            found = posterior_samples(
                case.problem(k), modes, row[voxel], number, not case.noise_known,
                n_draws, np.random.default_rng(seeds[k]),
            )  # fmt: skip
        frames[number, voxel] = found[1]
        for name, value in tissue_parameters(tissue, found[0], case.model.diffusivity).items():
            parameters[name][number, voxel] = value
    return {
        "parameters": parameters,
        "maps": with_unequal_membranes(tissue_maps(parameters, frames), rng),
        "sample_class": of_class,
        "probabilities": probabilities,
    }


def _at_best(case, best_class, groups_of_class, scan):
    model, known, order = case.model, case.known, scan.model.shells.order
    n_voxels, n = known.data.shape
    parameters = {name: np.zeros(n_voxels) for name in PARAMETERS}
    frames, signals = np.zeros((n_voxels, 3, 3)), np.empty((n_voxels, n))
    n_parameters = np.empty(n_voxels)
    for tissue, voxels, places, own_frames, own_signals in groups_of_class:
        signals[voxels] = own_signals
        frames[voxels] = own_frames
        n_parameters[voxels] = tissue.n_parameters
        for name, value in tissue_parameters(tissue, places, model.diffusivity).items():
            parameters[name][voxels] = value
    white, amplitudes, _ = residuals(known, signals, np.arange(n_voxels))
    unordered = np.empty_like(white)
    unordered[:, order] = white
    chi_square = (white**2).sum(axis=1)
    freedom = np.maximum(known.n_used - n_parameters - known.n_linear, 1)
    noise_free, terms = noise_free_data(known, signals, amplitudes, np.arange(n_voxels))
    of_timing = known.fleeting.timing[:, None] == np.arange(len(scan.acquisition.timings))
    share = of_timing / np.maximum(of_timing.sum(axis=0), 1)
    fast_fraction = (terms / amplitudes[:, known.fleeting.label]) @ share
    groups, left = scan.groups, freedom / known.n_used
    squares = groups.squares(unordered)
    _, worst_excess, worst_freedom = worst_group(squares, groups.sizes, left)
    maps = tissue_maps(parameters, frames)
    of_direction = chi_square_by_direction(
        unordered, gradient_axes(scan.acquisition) * scan.used[:, None], maps["wall_orientation"]
    )
    sizes = np.broadcast_to(groups.sizes, squares.shape)
    return {
        "estimated_maps": maps,
        "estimated_parameters": parameters,
        "estimated_class": best_class,
        "estimated_frames": frames,
        "predicted": expected_magnitudes(known, noise_free),
        "amplitudes": amplitudes,
        "fast_fraction": fast_fraction,
        "chi_square": chi_square,
        "degrees_of_freedom": freedom,
        "group_chi_square": np.concatenate([squares, of_direction[0]], axis=1),
        "group_degrees_of_freedom": np.concatenate([sizes, of_direction[1]], axis=1)
        * left[:, None],
        "worst_reduced_chi_square": worst_excess,
        "worst_degrees_of_freedom": worst_freedom,
    }


def _joined(parts):
    """Voxels of all batches: along the second axis of draws, the first of everything else."""
    fields = {}
    for name, value in parts[0].items():
        axis = 1 if name in ("parameters", "maps", "sample_class") else 0
        if isinstance(value, dict):
            fields[name] = {
                key: np.concatenate([part[name][key] for part in parts], axis=axis)
                for key in value
            }
        else:
            fields[name] = np.concatenate([part[name] for part in parts], axis=axis)
    return PackedCellsPosterior(**fields)
