"""Posterior distributions of packed cylinders and spheres, given signals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.packed_cells.likelihood import (
    Likelihood,
    gaussian_likelihood,
    refined_likelihood,
    residuals,
)
from dipy_spinverse.packed_cells.modes import ClassProblem, Modes, find_modes
from dipy_spinverse.packed_cells.parameter_maps import PARAMETERS, tissue_maps, tissue_parameters
from dipy_spinverse.packed_cells.posterior_checks import checked_input
from dipy_spinverse.packed_cells.sampling import importance_draws, spread_by_chains
from dipy_spinverse.packed_cells.tables.cache import cached_table
from dipy_spinverse.packed_cells.tables.signal_table import FRACTION_RANGE
from dipy_spinverse.packed_cells.tissue_classes import (
    CLASSES,
    TissueClass,
    class_signals,
    shapes_of,
    tissue_class,
)
from dipy_spinverse.packed_cells.tissue_model import TissueModel, packing_spread, tissue_model
from dipy_spinverse.voxels.rician import rician_excess
from dipy_spinverse.voxels.statistics import of_axes
from dipy_spinverse.voxels.tensor_frames import tensor_frames

_N_MODES = 5
_DRAWS_PER_ROUND = 500
_ROUNDS = 6
_N_CHAINS = 120
_CHAIN_STEPS = 120
_LEAST_PROBABILITY = 0.005  # of a class; less likely ones are dropped, and their chains saved
_LEAST_SIGMA = 1e-3  # over the largest signal: tables are not more exact
_BATCH = 16  # voxels


@dataclass(frozen=True, eq=False)
class PackedCellsPosterior:
    """Equally weighted draws from the posteriors of V voxels, and the best fits.

    Attributes
    ----------
    parameters : dict of ndarray (n, V)
        Draws of "radius" and "sphere_radius" (um), "fraction" and "sphere_fraction" (of the
        bodies within their own tissue), "permeability" and "sphere_permeability" (um/ms),
        "dispersion", "sphere_share" and "free_water"; 0 where the class of a draw lacks one
        (without cylinders: dispersion 1).
    maps : dict of ndarray (n, V), orientations (n, V, 3)
        Draws of "surface_to_volume" (1/um), "restricted_fraction", "wall_permeability" (um/ms,
        mean over the area), "exchange_time" (ms), "pore_diameter" (um, 4 V / S as in
        ``wall_maps``: 2 R of cylinders, 4 R / 3 of spheres), "body_diameter" (um, 2 R, mean
        over the volume), "wall_orientation" (z >= 0; 0 for spheres), "wall_anisotropy" (as in
        ``wall_maps``), "orientation_dispersion" (0.0005 to 0.95, spheres 1),
        "free_water_fraction".
    best : dict of ndarray (V, ...)
        The same maps at the likeliest draw or mode.
    best_parameters : dict of ndarray (V,)
    predicted : ndarray (V, M)
        Expected magnitudes at the best parameters, with the noise floor.
    s0 : ndarray (V, K)
        Signal at b = 0 of each of ``acquisition.echo_times``.
    chi_square : ndarray (V,)
        Of the best parameters.
    degrees_of_freedom : ndarray (V,)
        Measurements less parameters of the best class and amplitudes.
    sigma : ndarray (V,)
        Noise given or estimated.
    class_probabilities : dict of ndarray (V,)
        Of "cylinders", "spheres", "mixture" and, unless free water is fitted, "no cells" (water
        of the tissue's diffusivity, all maps 0), equally likely a priori.
    effective_sample_size : ndarray (V,)
        Of the weighted draws that the chains of the equally weighted start from.
    """

    parameters: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    best: dict[str, np.ndarray]
    best_parameters: dict[str, np.ndarray]
    predicted: np.ndarray
    s0: np.ndarray
    chi_square: np.ndarray
    degrees_of_freedom: np.ndarray
    sigma: np.ndarray
    class_probabilities: dict[str, np.ndarray]
    effective_sample_size: np.ndarray

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


def packed_cells_posterior(
    acquisition: Acquisition,
    data: ArrayLike,
    sigma: ArrayLike | None = None,
    *,
    diffusivity: float = 2.0,
    free_water: bool = False,
    free_diffusivity: float = 3.0,
    n_draws: int = 200,
    seed: int = 0,
    classes: tuple[str, ...] = CLASSES,
) -> PackedCellsPosterior:
    """Which packed cylinders and spheres explain the signals of voxels, and how surely.

    The prior is that of `tissue_classes`; amplitudes are integrated out with a flat prior. The
    first call for an acquisition simulates its signal tables, which takes minutes and is kept in
    the user's cache folder. Tissue beyond the tables' ranges is fitted by their ends. Draws are
    spread by what parts real packings from the tables' (see ``tissue_model.packing_spread``).

    Parameters
    ----------
    acquisition : Acquisition
    data : array-like (V, M)
        Magnitudes, in any unit.
    sigma : float or array-like (V,), optional
        Standard deviation of the noise in each channel, in the unit of the data. By default
        estimated from the residuals of the best fit, and integrated out.
    diffusivity : float, optional
        Of water in tissue, um^2/ms; known, not fitted.
    free_water : bool, optional
        Whether a part of the water may diffuse freely.
    free_diffusivity : float, optional
        Of that part, um^2/ms.
    n_draws : int, optional
        Draws returned; with 0 the likeliest places are searched for, and nothing else.
    seed : int, optional
    classes : tuple of str, optional
        Classes of tissue that are considered: some of those, or "aligned cylinders", parallel to
        the direction of largest diffusion (which is across the gradients where there is only one
        direction) without dispersion.

    Returns
    -------
    PackedCellsPosterior

    Raises
    ------
    ValueError
        Arrays of the wrong shape, values that are not finite, noise or diffusivities that are
        not positive, an unknown class, an acquisition without diffusion weighting.

    Examples
    --------
    >>> posterior = packed_cells_posterior(acquisition, data, sigma=0.02)  # doctest: +SKIP
    >>> posterior.mean("surface_to_volume"), posterior.interval("pore_diameter")  # doctest: +SKIP
    """
    data, sigma = checked_input(
        acquisition, data, sigma, diffusivity, free_diffusivity, n_draws, classes
    )
    tables = {s: cached_table(s, acquisition, diffusivity) for s in shapes_of(classes)}
    model = tissue_model(acquisition, tables, diffusivity, free_diffusivity)
    tissues = [tissue_class(name, free_water) for name in classes]
    parts = []
    for first in range(0, len(data), _BATCH):
        voxels = slice(first, first + _BATCH)
        given = None if sigma is None else sigma[voxels]
        parts.append(
            _posterior_of(model, tissues, acquisition, data[voxels], given, n_draws, seed)
        )
    return _joined(parts)


def _posterior_of(model, tissues, acquisition, data, sigma, n_draws, seed):
    frames = tensor_frames(acquisition, data)
    te_index = acquisition.te_index
    known = sigma is not None
    # A first idea of the noise: a fiftieth of the largest signal.
    start_sigma = sigma if known else 0.02 * np.abs(data).max(axis=1)
    likelihood = gaussian_likelihood(data, start_sigma, te_index)
    modes = [find_modes(ClassProblem(model, t, likelihood, frames), _N_MODES) for t in tissues]
    for _ in range(1 if known else 2):
        likelihood = _refined(model, tissues, likelihood, frames, modes, known)
        modes = [
            find_modes(ClassProblem(model, t, likelihood, frames), _N_MODES, each.places)
            for t, each in zip(tissues, modes, strict=True)
        ]
    # Membranes of no volume: the classes' fractions start above zero.
    without_cells = np.exp(-np.where(acquisition.b0_mask, 0, acquisition.b) * model.diffusivity)
    best_class, best_z = _best(modes)
    case = _Case(model, tissues, likelihood, frames, modes, known, without_cells)
    found = _drawn(case, n_draws, seed) if n_draws else _not_drawn(case, best_class)
    probabilities = found.pop("probabilities")
    if len(probabilities) > len(tissues):
        best_class[probabilities[-1] > 0.5] = len(tissues)
    names = [*(tissue.name for tissue in tissues), "no cells"]
    return {
        **found,
        **_at_best(case, best_class, best_z),
        "sigma": likelihood.sigma,
        "class_probabilities": dict(zip(names, probabilities, strict=False)),
    }


@dataclass(frozen=True, eq=False)
class _Case:
    """Voxels, the classes of tissue that are considered, and the modes of each.

    Attributes
    ----------
    known : bool
        Whether the noise is.
    without_cells : ndarray (M,)
        Signals without any membrane.
    """

    model: TissueModel
    tissues: list[TissueClass]
    likelihood: Likelihood
    frames: np.ndarray
    modes: list[Modes]
    known: bool
    without_cells: np.ndarray

    def target(self, tissue: TissueClass, voxels: np.ndarray):
        """Log posterior (len(voxels), n) of places (len(voxels), n, P) of some of the voxels."""

        problem = ClassProblem(self.model, tissue, self.likelihood, self.frames)

        def log_target(z):
            voxel = np.repeat(voxels, z.shape[1])
            value = problem.log_posterior(z.reshape(-1, z.shape[2]), voxel, not self.known)
            return value.reshape(len(voxels), -1)

        return log_target


def _not_drawn(case, best_class):
    """As `_drawn`, with no draws and the class of the likeliest place."""
    n_voxels = len(case.frames)
    parameters = {name: np.zeros((0, n_voxels)) for name in PARAMETERS}
    return {
        "parameters": parameters,
        "maps": tissue_maps(parameters, np.zeros((0, n_voxels, 3))),
        "probabilities": np.eye(len(case.tissues))[best_class].T,
        "effective_sample_size": np.zeros(n_voxels),
    }


def _drawn(case, n_draws, seed):
    """Draws of parameters and maps, and the probability (C, V) of each class."""
    tissues, n_voxels = case.tissues, len(case.frames)
    weighted = []
    # Each step has numbers of its own: a voxel's draws are the same whatever others need.
    steps = np.random.SeedSequence(seed).spawn(2 * len(tissues) + 1)
    for tissue, modes, step in zip(tissues, case.modes, steps, strict=False):
        weighted.append(
            importance_draws(
                case.target(tissue, np.arange(n_voxels)), modes,
                draws_per_round=_DRAWS_PER_ROUND, rounds=_ROUNDS, rng=np.random.default_rng(step),
            )
        )  # fmt: skip
    probabilities = _class_probabilities(case, weighted)
    places = []
    for k, tissue in enumerate(tissues):
        needed = np.flatnonzero(probabilities[k])
        places.append(np.zeros((n_voxels, _N_CHAINS, tissue.n_parameters)))
        if len(needed):
            places[k][needed] = spread_by_chains(
                weighted[k].of_voxels(needed), case.target(tissue, needed),
                n_chains=_N_CHAINS, steps=_CHAIN_STEPS,
                rng=np.random.default_rng(steps[len(tissues) + k]),
            )  # fmt: skip
    size = np.stack([each.effective_size for each in weighted])
    share = probabilities[: len(tissues)] ** 2 / size
    return {
        **_resampled(tissues, places, probabilities, case.frames, n_draws, steps[-1]),
        "probabilities": probabilities,
        "effective_sample_size": 1 / np.maximum(share.sum(axis=0), 1 / size.max(axis=0)),
    }


def _class_probabilities(case, weighted):
    """Probabilities (C, V) of the classes, and of no cells unless free water is fitted."""
    log_evidence = [each.log_evidence for each in weighted]
    if not any("free_water" in tissue.parameters for tissue in case.tissues):
        log_evidence.append(
            _log_evidence_without_cells(case.likelihood, case.without_cells, case.known)
        )
    log_evidence = np.stack(log_evidence)
    probabilities = np.exp(log_evidence - logsumexp(log_evidence, axis=0))
    probabilities[probabilities < _LEAST_PROBABILITY] = 0
    return probabilities / probabilities.sum(axis=0)


def _log_evidence_without_cells(likelihood, signals, known):
    """Logarithms (V,) of the evidence for signals (M,) without parameters."""
    n_voxels = len(likelihood.data)
    white, amplitudes, information = residuals(
        likelihood, np.tile(signals, (n_voxels, 1)), np.arange(n_voxels)
    )
    chi_square = (white**2).sum(axis=1)
    if not known:
        degrees = likelihood.data.shape[1] - amplitudes.shape[1]
        chi_square = degrees * np.log(chi_square + 1e-300)
    return -0.5 * chi_square - information


def _best(modes):
    costs = np.stack([each.costs[:, 0] for each in modes])
    return costs.argmin(axis=0), [each.places[:, 0] for each in modes]


def _refined(model, tissues, likelihood, frames, modes, known):
    """The likelihood with the noise and the model errors around the best fit so far."""
    best_class, best_z = _best(modes)
    amplitude, errors = np.empty_like(likelihood.data), []
    sigma = likelihood.sigma.copy()
    for v, k in enumerate(best_class):
        z = best_z[k][v : v + 1]
        signals = class_signals(model, tissues[k], z, frames[v : v + 1])
        voxel = np.array([v])
        white, s0, _ = residuals(likelihood, signals, voxel)
        scale = s0[0][likelihood.te_index]
        amplitude[v] = scale * signals[0]
        errors.append(scale * model_errors(model, tissues[k], z, frames[v : v + 1]))
        if not known:
            n_unknown = tissues[k].n_parameters + s0.shape[1]
            dof = max(white.shape[1] - n_unknown, 1)
            # Few measurements may be fitted exactly; tables are not more exact than this.
            least = _LEAST_SIGMA * np.abs(likelihood.data[v]).max()
            sigma[v] = max(sigma[v] * np.sqrt((white**2).sum() / dof), least)
    width = max(len(each) for each in errors)
    padded = np.stack([np.pad(each, ((0, width - len(each)), (0, 0))) for each in errors])
    scaled = Likelihood(
        likelihood.data, sigma, likelihood.inverse_sd, likelihood.modes, likelihood.damping,
        likelihood.te_index,
    )  # fmt: skip
    return refined_likelihood(scaled, amplitude, padded)


def model_errors(model, tissue, z, frame):
    """One standard deviation of the model's errors (K, M), weighted by the tissues' shares."""
    values = tissue_parameters(tissue, z)
    tissue_share = 1 - values["free_water"][0]
    parts = []
    if tissue.has_cylinders:
        axis = tissue.axes(z, frame)[0]
        share = tissue_share * (1 - values["sphere_share"][0])
        place = np.array([values[name][0] for name in PARAMETERS[:3]])
        parts.append(share * model.error_modes("cylinder", place, axis))
    if tissue.has_spheres:
        share = tissue_share * values["sphere_share"][0]
        place = np.array([values[name][0] for name in PARAMETERS[4:7]])
        parts.append(share * model.error_modes("sphere", place, None))
    return np.concatenate(parts)


def _resampled(tissues, places, probabilities, frames, n_draws, seed):
    """Draws of parameters and maps from all classes, by their probabilities, in random order."""
    n_voxels = len(frames)
    parameters = {name: np.zeros((n_draws, n_voxels)) for name in PARAMETERS}
    parameters["dispersion"] += 1
    axes = np.zeros((n_draws, n_voxels, 3))
    for v in range(n_voxels):
        rng = np.random.default_rng(seed)
        position = rng.permutation((np.arange(n_draws) + rng.random()) / n_draws)
        total = np.cumsum(probabilities[:, v])
        of_class = np.searchsorted(total / total[-1], position).clip(0, len(total) - 1)
        for k, tissue in enumerate(tissues):
            own = of_class == k
            # Every chain once before any comes again.
            order = np.resize(rng.permutation(places[k].shape[1]), own.sum())
            z = places[k][v, order]
            for name, value in _spread(tissue_parameters(tissue, z), rng).items():
                parameters[name][own, v] = value
            if tissue.has_cylinders:
                axes[own, v] = tissue.axes(z, np.repeat(frames[v : v + 1], len(z), axis=0))
    return {"parameters": parameters, "maps": tissue_maps(parameters, axes)}


def _spread(values, rng):
    """Parameters (n,) of tissue that signals like the table does at the values given."""
    values = dict(values)
    for shape, prefix in (("cylinder", ""), ("sphere", "sphere_")):
        fraction = prefix + "fraction"
        spread = packing_spread(shape, values[fraction])
        for name, width in zip(PARAMETERS[:3], spread, strict=False):
            factor = np.exp(width * rng.standard_normal(len(width)))
            values[prefix + name] = values[prefix + name] * factor
        values[fraction] = np.minimum(values[fraction], FRACTION_RANGE[shape][1])
    return values


def _at_best(case, best_class, best_z):
    model, tissues, likelihood = case.model, case.tissues, case.likelihood
    n_voxels, m = likelihood.data.shape
    parameters = {name: np.zeros(n_voxels) for name in PARAMETERS}
    parameters["dispersion"] += 1
    axes = np.zeros((n_voxels, 3))
    predicted = np.empty((n_voxels, m))
    chi_square, dof = np.empty(n_voxels), np.empty(n_voxels)
    s0 = np.empty((n_voxels, int(likelihood.te_index.max()) + 1))
    for v, k in enumerate(best_class):
        signals, n_parameters = case.without_cells[None], 0
        if k < len(tissues):
            tissue, z, frame = tissues[k], best_z[k][v : v + 1], case.frames[v : v + 1]
            signals, n_parameters = class_signals(model, tissue, z, frame), tissue.n_parameters
            for name, value in tissue_parameters(tissue, z).items():
                parameters[name][v] = value[0]
            if tissue.has_cylinders:
                axes[v] = tissue.axes(z, frame)[0]
        white, amplitude, _ = residuals(likelihood, signals, np.array([v]))
        s0[v] = amplitude[0]
        noise_free = amplitude[0][likelihood.te_index] * np.maximum(signals[0], 0)
        sigma = likelihood.sigma[v]
        predicted[v] = noise_free + sigma * rician_excess(noise_free / sigma)
        chi_square[v] = (white**2).sum()
        dof[v] = m - n_parameters - s0.shape[1]
    return {
        "best": tissue_maps(parameters, axes),
        "best_parameters": parameters,
        "predicted": predicted,
        "s0": s0,
        "chi_square": chi_square,
        "degrees_of_freedom": dof,
    }


def _joined(parts):
    """Voxels of all batches: along the second axis of draws, the first of everything else."""
    fields = {}
    for name, value in parts[0].items():
        axis = 1 if name in ("parameters", "maps") else 0
        if isinstance(value, dict):
            fields[name] = {
                key: np.concatenate([part[name][key] for part in parts], axis=axis)
                for key in value
            }
        else:
            fields[name] = np.concatenate([part[name] for part in parts], axis=axis)
    return PackedCellsPosterior(**fields)
