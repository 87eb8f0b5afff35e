"""The likeliest tissue of voxels: every class searched, then refined by what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from dipy_spinverse.packed_cells.emulator_errors import (
    error_patterns,
    model_errors,
    timing_patterns,
)
from dipy_spinverse.packed_cells.likelihood import (
    VoxelData,
    noise_free_data,
    residuals,
    systematic_error,
    with_model_errors,
)
from dipy_spinverse.packed_cells.local_minima import (
    ClassProblem,
    LocalMinima,
    SearchBudget,
    dictionary_initial_values,
    find_local_minima,
    minimise,
)
from dipy_spinverse.packed_cells.tissue_classes import ROTATION, TissueClass
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals
from dipy_spinverse.voxels.progress import stepwise

_N_MODES = 6
_FIRST, _POLISHING = SearchBudget(16, 0.3), SearchBudget(15, 0.1)
# Refinements, each with errors of the model around the best fit so far.
REFINEMENTS = SearchBudget(8, 1.0), SearchBudget(40, 0.1)
_THOROUGH = SearchBudget(40, 0.01, all_starts=True)
# Of the mean squared residual over the noise; rms error of interpolated signals.
_UNEXPLAINED, _INTERPOLATED = 1.3, 0.002
# Of the chi-square: interpolated signals that are wrong by more are not good enough.
_TELLING = 4.0
# Of the logarithm of Laplace's evidence, which errs by several units: with all of it, classes are
# dropped that are the right ones.
_TRUSTED = 0.3
# Classes with less than e^-5 of the probability of the best are dropped.
_SCREEN = 5.0
# Over the largest signal: a first idea of the noise where it is not given. It counts as one
# measurement more, as few measurements may be fitted exactly.
FIRST_SIGMA = 0.02


@dataclass(frozen=True, eq=False)
class ClassComparison:
    """Voxels, the classes of tissue that are considered, and the modes of each.

    Attributes
    ----------
    noise_known : bool
    modes : list of LocalMinima
        Of those voxels alone that `kept` says.
    offsets : list of ndarray
        What the emulator itself gives beyond `model` at the best of the modes so far.
    kept : ndarray (C, V) of bool
        Voxels for which a class is considered.
    """

    model: TissueSignals
    tissues: list[TissueClass]
    known: VoxelData
    noise_known: bool
    modes: list[LocalMinima]
    offsets: list[np.ndarray]
    kept: np.ndarray

    def problem(self, k: int) -> ClassProblem:
        """That of one class and the voxels for which it is considered."""
        known = self.known.of_voxels(self.kept[k])
        return ClassProblem(self.model, self.tissues[k], known, self.offsets[k])

    def log_evidence(self) -> np.ndarray:
        """What is trusted of Laplace's (C, V); -inf where a class is not considered."""
        found = np.full(self.kept.shape, -np.inf)
        for k, modes in enumerate(self.modes):
            found[k, self.kept[k]] = _TRUSTED * modes.log_evidence
        return found

    def best(self) -> tuple[np.ndarray, list[Best]]:
        """Class (V,) of the largest evidence, and the likeliest places, class by class."""
        best = self.log_evidence().argmax(axis=0)
        groups = []
        for k, modes in enumerate(self.modes):
            voxels = np.flatnonzero(best == k)
            if len(voxels):
                rows = (np.cumsum(self.kept[k]) - 1)[voxels]
                tissue, place, frames = self.tissues[k], modes.places[rows, 0], modes.frames[rows]
                signals = self.model(tissue, place, frames) + self.offsets[k][rows]
                groups.append(Best(tissue, voxels, place, frames, signals))
        return best, groups


class Best(NamedTuple):
    """Voxels (n,) that a class explains best, and how.

    Places (n, P), frames (n, 3, 3) and signals (n, M) over those at b = 0.
    """

    tissue: TissueClass
    voxels: np.ndarray
    places: np.ndarray
    frames: np.ndarray
    signals: np.ndarray


def compare_classes(
    model: TissueSignals, tissues: list[TissueClass], known: VoxelData, frames: np.ndarray,
    noise_known: bool,
) -> ClassComparison:  # fmt: skip
    """Modes of every class, without model errors; frames (V, 3, 3) are those of the tensor.

    Voxels that nothing explains are searched again, thoroughly, with all fleeting terms and a
    diffusivity of free water that is unknown: these are classes of their own.
    """
    modes = _modes_of_classes(model, stepwise(tissues), known, frames, _FIRST)
    offsets = [np.zeros_like(known.data)] * len(tissues)
    kept = np.ones((len(tissues), len(known.data)), dtype=bool)
    case = ClassComparison(model, tissues, known, noise_known, modes, offsets, kept)
    left = noise_known & _unexplained(case)
    return _screened(_searched_again(case, frames, left) if left.any() else case)


def _searched_again(case, frames, left):
    """The case with classes of unknown free water for some voxels (V,) of bool."""
    known, data = case.known, case.known.data
    spread = np.where(left[:, None], known.widest_spread, known.fleeting_spread)
    known = known.with_spread(spread)
    wider = [tissue.of_unknown_water for tissue in case.tissues]
    before = [
        each.like(tissue, modes.of_voxels(left).best_in(tissue, frames[left]))
        for each, tissue, modes in zip(wider, case.tissues, case.modes, strict=True)
    ]
    again = _modes_of_classes(
        case.model, wider, known.of_voxels(left), frames[left], _THOROUGH, before
    )
    return replace(
        case,
        tissues=[*case.tissues, *wider],
        known=known,
        modes=[each.of_voxels(~left) for each in case.modes] + again,
        offsets=[np.zeros_like(data[rows]) for rows in (~left, left) for _ in wider],
        kept=np.repeat([~left, left], len(wider), axis=0),
    )


def _modes_of_classes(model, tissues, known, frames, effort, before=()):
    """Modes of each class; places (V, P) that were found before are starts, too."""
    modes: dict[str, tuple[TissueClass, LocalMinima]] = {}
    none = np.zeros_like(known.data)
    for tissue, found in zip_longest(tissues, before):
        problem = ClassProblem(model, tissue, known, none)
        if tissue.name == "crossing" and "cylinders" in modes:
            starts = _crossing_starts(tissue, *modes["cylinders"])
        elif tissue.name == "no cells":
            starts = np.zeros((len(known.data), 1, tissue.n_parameters))
        else:
            starts = dictionary_initial_values(model, tissue, known, frames)
        if found is not None:
            starts = np.concatenate([starts, found[:, None]], axis=1)
        modes[tissue.name] = tissue, find_local_minima(problem, starts, frames, _N_MODES, effort)
    return [found for _, found in modes.values()]


def _unexplained(case):
    """Whether the best fit (V,) leaves more than the noise and what interpolation is wrong by."""
    known = case.known
    square = np.zeros(len(known.data))
    for group in case.best()[1]:
        white = residuals(known, group.signals, group.voxels)[0]
        square[group.voxels] = (white**2).sum(axis=1) / known.n_used
    square /= known.inverse_sd.max(axis=1) ** 2
    error = _INTERPOLATED * np.abs(known.data).max(axis=1)
    return square > _UNEXPLAINED * (known.sigma**2 + error**2)


def _crossing_starts(tissue, alone, cylinders):
    """Places (V, 2, P) like the best cylinders', crossing in either plane of their frame."""
    starts = np.repeat(tissue.like(alone, cylinders.places[:, :1]), 2, axis=1)
    starts[..., tissue.columns(*ROTATION)] = 0
    # What dispersion stood for are now angles.
    starts[..., tissue.columns("dispersion_1")] = -1.0
    starts[:, 1, -1] = np.pi / 2
    return starts


def _screened(case):
    """The case without classes of little evidence, voxel by voxel."""
    evidence = case.log_evidence()
    kept = evidence > evidence.max(axis=0) - _SCREEN
    still = [kept[k, case.kept[k]] for k in range(len(kept))]
    modes = [each.of_voxels(rows) for each, rows in zip(case.modes, still, strict=True)]
    offsets = [each[rows] for each, rows in zip(case.offsets, still, strict=True)]
    return replace(case, modes=modes, offsets=offsets, kept=kept)


def refined_comparison(
    case: ClassComparison, effort: SearchBudget
) -> tuple[ClassComparison, np.ndarray]:
    """The case with the noise, the floor and the model's errors around the best fit so far.

    What may be wrong is one number for each timing: were it one for each shell, as it is, a model
    that the data refute would leave to it what parameters can explain, and predict worse.
    """
    case, floor = _around_best(case, timing_patterns(case.model.shells))
    modes, offsets = list(case.modes), list(case.offsets)
    for k, each in stepwise([*enumerate(case.modes)]):
        if len(each.frames):
            problem = replace(case.problem(k), offset=_beyond(case, k, each))
            found = find_local_minima(problem, each.places, each.frames, _N_MODES, effort)
            modes[k] = _polished(problem, found)
            offsets[k] = _beyond(case, k, modes[k])
    return _screened(replace(case, modes=modes, offsets=offsets)), floor


def with_errors_by_shell(case: ClassComparison) -> ClassComparison:
    """The case with the model's errors as they are: those that draws need."""
    return _around_best(case, error_patterns(case.model.shells))[0]


def _around_best(case, patterns):
    """The case with noise, floor (V,) and errors at its best fits, and the floor."""
    _, groups = case.best()
    known = case.known
    n_voxels, n = known.data.shape
    noise_free, sigma = np.empty((n_voxels, n)), known.sigma.copy()
    n_unknowns = np.empty(n_voxels)
    errors = []
    for tissue, voxels, places, frames, signals in groups:
        white, amplitude, _ = residuals(known, signals, voxels)
        scale = amplitude[:, known.labels]
        noise_free[voxels], _ = noise_free_data(known, signals, amplitude, voxels)
        errors.append(scale[:, None] * model_errors(case.model, tissue, places, frames, patterns))
        n_unknowns[voxels] = tissue.n_parameters + known.n_linear[voxels]
        if not case.noise_known:
            dof = np.maximum(known.n_used - n_unknowns[voxels], 0)
            square = sigma[voxels] ** 2 * (white**2).sum(axis=1)
            square += (FIRST_SIGMA * np.abs(known.data[voxels]).max(axis=1)) ** 2
            sigma[voxels] = np.sqrt(square / (dof + 1))
    known = replace(known, sigma=sigma)
    floor = np.zeros(n_voxels)
    if case.noise_known:
        floor = systematic_error(known, noise_free, n_unknowns)
    of_model = np.zeros((n_voxels, max(each.shape[1] for each in errors), n))
    for group, each in zip(groups, errors, strict=True):
        of_model[group.voxels, : each.shape[1]] = each
    return replace(case, known=with_model_errors(known, noise_free, of_model, floor)), floor


def _beyond(case, k, modes):
    """What the emulator gives at the best places beyond the signals of the model, (V, M)."""
    place = case.tissues[k], modes.places[:, 0], modes.frames
    return case.model.exact(*place) - case.model(*place)


def _polished(problem, modes):
    """Modes, the best of which is found with the emulator itself where the data tell."""
    model = problem.model
    tissue, everywhere = problem.tissue, np.arange(len(modes.frames))
    z, frames = modes.places[:, 0], modes.frames
    known = problem.known
    interpolated = model(tissue, z, frames) + problem.offset
    apart = residuals(known, model.exact(tissue, z, frames), everywhere)[0]
    apart -= residuals(known, interpolated, everywhere)[0]
    rows = np.flatnonzero((apart**2).sum(axis=1) > _TELLING)
    if not len(rows):
        return modes
    known = known.of_voxels(rows)
    none, number = np.zeros_like(known.data), np.arange(len(rows))
    # Derivatives of the interpolation cost a tenth, and lead almost there.
    quick, exact = (
        ClassProblem(each, tissue, known, none) for each in (model.exact, model.exact_with_slopes)
    )
    near = minimise(quick, z[rows], frames[rows], number, _POLISHING)
    found = minimise(exact, *near[:2], number, _POLISHING)
    places, frames, covariances, costs = (
        each.copy() for each in (modes.places, modes.frames, modes.covariances, modes.costs)
    )
    costs[rows] = np.inf
    places[rows, 0], frames[rows], covariances[rows, 0], costs[rows, 0] = found
    return LocalMinima(places, frames, covariances, costs)
