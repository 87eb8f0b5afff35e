"""The search in data without noise, or nearly: cells are judged by how many labels are wrong."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.interacting import perfected
from dipy_spinverse.cell_search.labelled import Cells, Misfit, Target, flips_of
from dipy_spinverse.cell_search.polish import polished

# Error of random bodies as a description of cells, relative to the initial magnetisation.
_BODY_ERROR = 1e-4
# Error of what flips of single tetrahedra do not explain, relative to the residual, and the
# number of cells whose flips stand for those of all.
_NOT_EXPLAINED, _N_TYPICAL = 0.3, 3
# Tetrahedra in which the members of a population differ: as long as its best has a misfit per
# measurement above this, and then.
_NEAR, _FAR_APART, _APART = 1 / 64, 12, 3
_N_FINALISTS = 3
# Of the mean squared residual, relative to it, that a round should bring.
_LEAST_GAIN = 0.1


class ExactData:
    """Data of which some measurements serve the search, and all its end.

    Parameters
    ----------
    complete, target : Target
        With all measurements, and with those that serve the search.
    library : ndarray (N, T) of bool
        Labels of random bodies.
    signals : ndarray (N, m)
        Of the library, as `target` measures.
    leaks : ndarray (2,)
    """

    # What populations start from, and after how many rounds in vain each ends: random bodies
    # alone, which find most single cells soon; also cells put together; the best of those before.
    populations = (("random", 2), *[("put together", 2)] * 3, ("joined", 4)) * 2

    def __init__(self, complete: Target, target: Target, library, signals, leaks):
        self._complete, self.target = complete, target
        self._leaks = leaks
        misfit = self._misfit(target, library[:_N_TYPICAL], _BODY_ERROR)
        values = misfit(target.data / target.sigma - target.expected(signals))
        self.ranked_library = np.argsort(values)

    def judge(self, cells: list[Cells]) -> WrongLabels:
        """A judge of cells like some, the first of which are the best."""
        typical = cells[:_N_TYPICAL]
        size = np.sqrt(min(self.target.chi_square(state) for state in typical))
        error = _NOT_EXPLAINED * size * np.median(self.target.sigma)
        return self.judge_with_error([state.labels for state in typical], error)

    def perfected(self, target: Target, cells: Cells, rng: np.random.Generator) -> Cells:
        """Cells that are nearly right, after flips of several tetrahedra at once."""
        return perfected(target, cells, lambda there: self.judge([there]).misfit, rng)

    def judge_with_error(self, labels, error: float) -> WrongLabels:
        """A judge of cells like the first of labels (N, T), whose signals have an error."""
        return WrongLabels(self._misfit(self.target, labels[:_N_TYPICAL], error))

    def solved_by(self, population) -> bool:
        """Whether the best residual is no more than errors of the data."""
        return any(self.target.explained_by(member.cells) for member in population)

    def distance(self, population) -> float:
        """How far the best are from the data, in steps that count as progress."""
        least = min(self.target.chi_square(member.cells) for member in population)
        return np.log(least) / _LEAST_GAIN

    def conclusion(self, populations, n_samples: int, rng) -> tuple[Cells, list[Cells]]:
        """The best cells, by all measurements, and others that explain the data."""
        found = [member.cells for population in populations for member in population]
        judge = self.judge(sorted(found, key=self.target.chi_square))
        # The same labels may come with other leaks, which the judge does not see.
        found = [x for x in found if self.target.explained_by(x)] or found
        found.sort(key=lambda x: judge(self.target, x))
        finished = [self._finished(cells) for cells in found[:_N_FINALISTS]]
        equals = [x for x in finished if self._complete.explained_by(x)] or finished
        return equals[0], [equals[k] for k in rng.integers(len(equals), size=n_samples)]

    def _finished(self, cells):
        """Cells after flips by all measurements."""
        cells = self._complete.cells(cells.labels[None], cells.leaks)[0]
        return polished(self._complete, cells, self._misfit(self._complete, [cells.labels], 0.0))

    def _misfit(self, target, some_labels, error):
        scale = max(error / np.median(target.sigma), 1.0)
        return Misfit([flips_of(target, labels, self._leaks) for labels in some_labels], scale)


class WrongLabels:
    """Judges cells by the misfit that counts wrong labels."""

    def __init__(self, misfit: Misfit):
        self.misfit = misfit

    def __call__(self, target: Target, cells: Cells) -> float:
        """How far cells are off."""
        return self.misfit(target.residual(cells)[None])[0]

    def improved(self, target: Target, cells: Cells, rng: np.random.Generator) -> Cells:
        """Cells after flips that bring them closer to the data."""
        return polished(target, cells, self.misfit)

    def least_apart(self, best: float) -> int:
        """Tetrahedra in which the members of a population differ at least."""
        return _APART if self.nearly_right(best) else _FAR_APART

    def nearly_right(self, misfit: float) -> bool:
        """Whether cells with this misfit may be perfected."""
        return misfit <= _NEAR * len(self.misfit.root)
