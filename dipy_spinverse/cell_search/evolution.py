"""Populations of cells that are disturbed and fitted, until the best explain the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dipy_spinverse.cell_search.descent import PartialCells
from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.labelled import Target
from dipy_spinverse.cell_search.member import Member, SearchTools
from dipy_spinverse.cell_search.noisy_data import NoisyData
from dipy_spinverse.threads import in_threads

# Set by hand on the shapes of benchmarks/shapes.py. Further random changes of members (moved,
# mirrored, removed and exchanged cells) had no effect (benchmarks/results/ablation.md).
_N_MEMBERS = 4  # that survive a round
_N_FRESH = 1  # random bodies that join in a round
_N_STEPS = 7  # of Gauss-Newton, of a disturbed member
_RANK_SCALE = 4.0  # ranks over which the probability to be a parent falls to 1/e
_DISTURBANCES = (0.5, 1.0, 1.5)  # in prior standard deviations of a step
_BLURRED_PROBABILITY = 0.5  # that a disturbance begins at blurred labels


@dataclass(frozen=True, eq=False)
class _Descendant:
    target: Target
    initial: PartialCells
    n_steps: int
    disturbance: float = 0.0


@dataclass(eq=False)
class Evolution:
    """Evolution of populations in a voxel."""

    task: ExactData | NoisyData
    tools: SearchTools
    bodies: Iterator[PartialCells]  # random ones, without end
    rng: np.random.Generator

    def new_population(self, initial: list[PartialCells], patience: int) -> list[Member]:
        """A population from given and random bodies, the best first, after its last round."""
        number, n_steps = self.tools.budget.n_initial, self.tools.budget.n_first_steps
        initial = initial[: number // 2]
        initial = [*initial, *islice(self.bodies, number - len(initial))]
        descendants = [_Descendant(self.task.target, x, n_steps) for x in initial]
        return self._evolved(self._surviving(self._descended(descendants)), patience)

    def merged(self, populations: list[list[Member]], patience: int) -> list[Member]:
        """A population from the best of several, after its last round."""
        members = [member for population in populations for member in population]
        members.sort(key=lambda member: self.task.target.reduced_chi_square(member.cells))
        objective = self.task.objective([member.cells for member in members])
        members = [_member(m.target, m.partial, m.cells, objective) for m in members]
        return self._evolved(self._distinct(objective, members, 2 * _N_MEMBERS), patience)

    def _evolved(self, population, patience):
        n_failed, least = 0, self.task.progress_measure(population)
        for _ in range(self.tools.budget.n_rounds):
            if n_failed == patience or self.task.solved_by(population):
                break
            descended = self._descended(self._descendants(population))
            population = self._surviving(descended, population)
            distance = self.task.progress_measure(population)
            n_failed = 0 if distance < least - 1 else n_failed + 1
            least = distance if n_failed == 0 else least
        return population

    def _descendants(self, population):
        """Disturbed members and random bodies, to be fitted in a round."""
        rng, budget = self.rng, self.tools.budget
        weights = np.exp(-np.arange(len(population)) / _RANK_SCALE)
        parents = rng.choice(len(population), budget.n_disturbed, p=weights / weights.sum())
        descendants = []
        for member in (population[k] for k in parents):
            initial = member.partial
            if rng.random() < _BLURRED_PROBABILITY:
                initial = self.tools.descend.blurred(
                    member.cells.labels, member.cells.transmissibility
                )
            disturbance = rng.choice(_DISTURBANCES)
            descendants.append(_Descendant(member.target, initial, _N_STEPS, disturbance))
        target = population[0].target
        fresh = islice(self.bodies, _N_FRESH)
        return [*descendants, *(_Descendant(target, x, budget.n_first_steps) for x in fresh)]

    def _descended(self, descendants):
        """Targets and fitted cells of descendants, and their random number generators."""

        def descend(descendant, rng):
            target, disturbance = descendant.target, descendant.disturbance
            args = target, descendant.initial, rng, descendant.n_steps, disturbance
            return target, self.tools.descend(*args), rng

        return in_threads(descend, descendants, self.rng.spawn(len(descendants)))

    def _surviving(self, descended, population=()):
        """The best distinct members of a population and of fitted cells, now improved."""
        states = self.task.target.cells(
            np.array([partial.labels for _, partial, _ in descended]),
            np.array([partial.transmissibility for _, partial, _ in descended]),
        )
        objective = self.task.objective([member.cells for member in population] or states)

        def improve(fitted, cells):
            target, partial, rng = fitted
            cells = objective.improved(target, cells, rng)
            return target.exact_at(cells), partial, cells

        improved = in_threads(improve, descended, states)
        new = [_member(*fitted, objective) for fitted in improved]
        members = [*(_member(m.target, m.partial, m.cells, objective) for m in population), *new]
        number = max(len(population), _N_MEMBERS)
        for member in self._distinct(objective, members, number):
            if member not in new:
                continue
            cells = self.task.jointly_improved(member, self.rng)
            if cells is not None:
                members.append(_member(member.target, member.partial, cells, objective))
                if self.task.solved_by(members[-1:]):
                    break
        return self._distinct(objective, members, number)

    def _distinct(self, objective, members, number):
        """The best members that differ from each other."""
        members = sorted(members, key=lambda member: member.misfit)
        labels = [member.cells.labels for member in members]
        min_different = objective.min_different(members[0].misfit)
        return [members[k] for k in self.tools.operations.distinct(labels, min_different, number)]


def _member(target, partial, cells, objective):
    """A member of cells, with the fitted volume fractions where these agree with the labels."""
    fractions = np.where(cells.labels == partial.labels, partial.fractions, cells.labels)
    partial = PartialCells(fractions, cells.transmissibility)
    return Member(target, partial, cells, objective(target, cells))
