"""The search in noisy data: cells are judged by their probability."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.effort import PopulationPlan
from dipy_spinverse.cell_search.ensemble import posterior_ensemble
from dipy_spinverse.cell_search.labelled import N_TYPICAL, LabelledCells, Target
from dipy_spinverse.cell_search.probability import LogProbability, with_likeliest_leaks
from dipy_spinverse.cell_search.protocols import Member, Tools
from dipy_spinverse.cell_search.smoothness import Smoothness

# Chosen on the shapes of benchmarks/shapes.py.
_APART = 6  # tetrahedra in which the members of a population differ
_LEAST_GAIN = 0.5  # of the log probability, that a round should bring
_WARM = 0.3  # temperature from which what most draws share is annealed: to small changes only


@dataclass(frozen=True, eq=False)
class NoisyData:
    """Data whose noise hides single tetrahedra."""

    complete: Target
    target: CondensedTarget  # of the same data
    signals: np.ndarray  # (N, M) of random bodies
    tools: Tools

    @property
    def populations(self) -> tuple[PopulationPlan, ...]:
        """Those that evolve, one after the other."""
        return self.tools.effort.noisy_populations

    @property
    def ranked_library(self) -> np.ndarray:
        """Indices of random bodies, the best first."""
        expected = self.complete.expected(self.signals)
        residuals = self.complete.data / self.complete.sigma - expected
        return np.argsort((residuals**2).sum(axis=1))

    @cached_property
    def _smoothness(self):
        return Smoothness(self.target.grid)

    def judge(self, cells: list[LabelledCells]) -> Improbability:
        """A judge of cells like some, the first of which are the best."""
        return Improbability(self._probability(cells))

    def _probability(self, cells):
        typical = cells[:N_TYPICAL]
        return LogProbability(self._smoothness, self.target, typical, self.tools.effort.annealing)

    def jointly_improved(self, member: Member, rng: np.random.Generator) -> None:
        """Never: noise hides what more flips would tell."""

    def solved_by(self, population: list[Member]) -> bool:
        """Never: other populations may find cells that are as probable."""
        return False

    def hopeless(self, population: list[Member]) -> bool:
        """Never: its few populations are the ensemble."""
        return False

    def distance(self, population: list[Member]) -> float:
        """How improbable the best are, in steps that count as progress."""
        return population[0].misfit / _LEAST_GAIN

    def conclusion(
        self, populations: list[list[Member]], n_draws: int, rng: np.random.Generator
    ) -> tuple[LabelledCells, list[LabelledCells]]:
        """The most typical of probable cells, and others in proportion to their probability."""
        effort = self.tools.effort.draws
        members = [member for some in populations for member in some[: effort.n_finalists]]
        members.sort(key=lambda member: member.misfit)
        probability = self._probability([member.cells for member in members])
        finalists = [(member.target, member.cells) for member in members]
        number = max(n_draws, effort.n_to_choose)
        draws = posterior_ensemble(probability, self.tools.descend, finalists, number, rng, effort)
        typical = medoid(draws, self.tools.changes.mirrored)
        # What most draws share is closer to the truth, if it explains the data, too.
        shared = self._shared_by_most(draws, typical)
        shared = probability.annealed(self.target.exact_at(shared), shared, rng, _WARM)
        typical, shared = (
            with_likeliest_leaks(self.complete, self.complete.cells(x.labels[None], x.leaks)[0])
            for x in (typical, shared)
        )
        most = self.complete.chi_square(typical) + self.complete.chance
        best = shared if self.complete.chi_square(shared) < most else typical
        return best, draws[:n_draws]

    def _shared_by_most(self, draws, reference):
        """Cells of those tetrahedra that are inside in most draws, all on the same side."""
        labels = np.array([cells.labels for cells in draws])
        reflected = labels[:, self.tools.changes.mirrored]
        common, common_turned = ((x & reference.labels).sum(axis=1) for x in (labels, reflected))
        turned = (common_turned > common)[:, None]
        shared = np.where(turned, reflected, labels).mean(axis=0) > 0.5
        return self.target.cells(shared[None], reference.leaks)[0] if shared.any() else reference


def medoid(cells: list[LabelledCells], mirrored: np.ndarray) -> LabelledCells:
    """Those of some cells that overlap most with all others, as they are or mirrored (T,)."""
    labels = np.array([state.labels for state in cells]).astype(float)
    common = np.maximum(labels @ labels.T, labels @ labels[:, mirrored].T)
    sizes = labels.sum(axis=1)
    overlap = 2 * common / (sizes[:, None] + sizes)
    return cells[overlap.sum(axis=1).argmax()]


@dataclass(frozen=True, eq=False)
class Improbability:
    """Judges cells by their probability, given the data."""

    probability: LogProbability

    def __call__(self, target: Target, cells: LabelledCells) -> float:
        """Minus the log probability of cells."""
        return -self.probability(target, cells)

    def improved(
        self, target: Target, cells: LabelledCells, rng: np.random.Generator
    ) -> LabelledCells:
        """More probable cells."""
        return self.probability.annealed(target, cells, rng)

    def least_apart(self, best: float) -> int:
        """Tetrahedra in which the members of a population differ at least."""
        return _APART
