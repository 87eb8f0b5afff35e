"""The search in noisy data: cells are judged by their probability."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.ensemble import ensemble
from dipy_spinverse.cell_search.labelled import Cells, Target
from dipy_spinverse.cell_search.posterior import Posterior, with_likeliest_leaks
from dipy_spinverse.cell_search.smoothness import Smoothness

_N_TYPICAL, _N_FINALISTS, _APART = 3, 8, 6
# The search ends where so many rounds have not made the best cells more probable by this.
_PATIENCE, _LEAST_GAIN = 3, 0.5


class NoisyData:
    """Data whose noise hides single tetrahedra.

    Parameters
    ----------
    complete : Target
    target : CondensedTarget
        Of the same data.
    signals : ndarray (N, M)
        Of a library of random bodies.
    """

    def __init__(self, complete: Target, target: CondensedTarget, signals: np.ndarray):
        self._complete, self.target = complete, target
        residuals = complete.data / complete.sigma - complete.expected(signals)
        self.ranked_library = np.argsort((residuals**2).sum(axis=1))
        self._smoothness = Smoothness(target.grid)
        self._least = []

    def judge(self, cells: list[Cells]) -> Improbability:
        """A judge of cells like some, the first of which are the best."""
        return Improbability(Posterior(self._smoothness, self.target, cells[:_N_TYPICAL]))

    def finished(self, population) -> bool:
        """Whether the last rounds have not made the best cells more probable."""
        self._least.append(population[0].misfit)
        before = self._least[:-_PATIENCE]
        return bool(before) and self._least[-1] > before[-1] - _LEAST_GAIN

    def conclusion(self, population, n_samples: int, rng) -> tuple[Cells, list[Cells]]:
        """The most probable cells, and others in proportion to their probability."""
        posterior = Posterior(self._smoothness, self.target, [m.cells for m in population])
        finalists = [(member.target, member.cells) for member in population[:_N_FINALISTS]]
        best, samples = ensemble(posterior, finalists, n_samples, rng)
        best = self._complete.cells(best.labels[None], best.leaks)[0]
        return with_likeliest_leaks(self._complete, best), samples


class Improbability:
    """Judges cells by their probability, given the data."""

    def __init__(self, posterior: Posterior):
        self._posterior = posterior

    def __call__(self, target: Target, cells: Cells) -> float:
        """Minus the log probability of cells."""
        return -self._posterior(target, cells)

    def improved(self, target: Target, cells: Cells, rng: np.random.Generator) -> Cells:
        """More probable cells."""
        return self._posterior.annealed(target, cells, rng)

    def least_apart(self, best: float) -> int:
        """Tetrahedra in which the members of a population differ at least."""
        return _APART
