"""Populations of cells that descend and change, until the best explain the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dipy_spinverse.cell_search.descent import PartialCells
from dipy_spinverse.cell_search.labelled import Target
from dipy_spinverse.cell_search.protocols import Member, SearchTask, Tools
from dipy_spinverse.threads import in_threads

# Chosen on the shapes of benchmarks/shapes.py.
_RANKS_CHOSEN = 4.0  # over which the chance to be a parent falls to 1/e
_DISTURBANCES = (0.5, 1.0, 1.5)  # in prior standard deviations of a step


@dataclass(frozen=True, eq=False)
class _Path:
    target: Target
    start: PartialCells
    n_steps: int
    disturbance: float = 0.0


@dataclass(eq=False)
class Evolution:
    """Evolution of populations in a voxel."""

    task: SearchTask
    tools: Tools
    bodies: Iterator[PartialCells]  # random ones that start populations and join them, no end
    rng: np.random.Generator
    n_rounds: int = 0

    @property
    def _effort(self):
        return self.tools.effort.population

    def new_population(self, starts: list[PartialCells], patience: int) -> list[Member]:
        """A population of starts and random bodies, the best first, after rounds in vain."""
        number = self._effort.n_starts
        starts = starts[: number // 2]
        starts = [*starts, *islice(self.bodies, number - len(starts))]
        target, n_steps = self.task.target, self._effort.n_steps_first
        paths = [_Path(target, start, n_steps) for start in starts]
        return self._evolved(self._surviving(self._descended(paths)), patience)

    def joined(self, populations: list[list[Member]], patience: int) -> list[Member]:
        """A population of the best of several, after rounds in vain."""
        task = self.task
        members = [member for population in populations for member in population]
        members.sort(key=lambda member: task.target.chi_square(member.cells))
        judge = task.judge([member.cells for member in members])
        members = [_member(m.target, m.partial, m.cells, judge) for m in members]
        best = self._best_that_differ(judge, members, 2 * self._effort.n_members)
        return self._evolved(best, patience)

    def _evolved(self, population, patience):
        in_vain, least = 0, self.task.distance(population)
        for _ in range(self._effort.most_rounds):
            if in_vain == patience or self.task.solved_by(population):
                break
            population = self._surviving(self._descended(self._paths(population)), population)
            distance = self.task.distance(population)
            in_vain = 0 if distance < least - 1 else in_vain + 1
            least = distance if in_vain == 0 else least
            self.n_rounds += 1
        return population

    def _blurred(self, cells):
        return self.tools.descend.blurred(cells.labels, cells.leaks)

    def _paths(self, population):
        """What descends in a round: disturbed and changed members, and random bodies."""
        rng, effort = self.rng, self._effort
        chance = np.exp(-np.arange(len(population)) / _RANKS_CHOSEN)
        number = effort.n_disturbed + effort.n_changed
        chosen = rng.choice(len(population), number, p=chance / chance.sum())
        parents = [population[k] for k in chosen]
        paths = []
        for member in parents[: effort.n_disturbed]:
            start = self._blurred(member.cells) if rng.random() < 0.5 else member.partial
            disturbance = rng.choice(_DISTURBANCES)
            paths.append(_Path(member.target, start, effort.n_steps, disturbance))
        judge = self.task.judge([member.cells for member in population])
        for member in parents[effort.n_disturbed :]:
            start = self._changed(judge, member, population)
            paths.append(_Path(member.target, start, effort.n_steps))
        target = population[0].target
        fresh = islice(self.bodies, effort.n_fresh)
        return [*paths, *(_Path(target, start, effort.n_steps_first) for start in fresh)]

    def _descended(self, paths):
        """Targets and cells of paths, after their steps, and a source of random numbers."""

        def descend(path, own_rng):
            args = path.target, path.start, own_rng, path.n_steps, path.disturbance
            return path.target, self.tools.descend(*args), own_rng

        return in_threads(descend, paths, self.rng.spawn(len(paths)))

    def _changed(self, judge, member, population):
        """The most promising random change of a member."""
        others = self.rng.integers(len(population), size=self._effort.n_proposed)
        labels = np.array([
            self.tools.changes.drawn(member.cells.labels, population[k].cells.labels, self.rng)
            for k in others
        ])  # fmt: skip
        states = member.target.cells(labels, member.cells.leaks)
        values = [judge(member.target, state) for state in states]
        return self._blurred(states[np.argmin(values)])

    def _surviving(self, descended, population=()):
        """The best that differ, of a population and of cells that descended, now improved."""
        states = self.task.target.cells(
            np.array([partial.labels for _, partial, _ in descended]),
            np.array([partial.leaks for _, partial, _ in descended]),
        )
        judge = self.task.judge([member.cells for member in population] or states)

        def improve(path, cells):
            target, partial, own_rng = path
            cells = judge.improved(target, cells, own_rng)
            return target.exact_at(cells), partial, cells

        improved = in_threads(improve, descended, states)
        new = [_member(target, partial, cells, judge) for target, partial, cells in improved]
        members = [*(_member(m.target, m.partial, m.cells, judge) for m in population), *new]
        number = max(len(population), self._effort.n_members)
        best = self._best_that_differ(judge, members, number)
        for member in best:
            if member not in new:
                continue
            cells = self.task.jointly_improved(member, self.rng)
            if cells is not None:
                members.append(_member(member.target, member.partial, cells, judge))
                if self.task.solved_by(members[-1:]):
                    break
        return self._best_that_differ(judge, members, number)

    def _best_that_differ(self, judge, members, number):
        members = sorted(members, key=lambda member: member.misfit)
        labels, least = [m.cells.labels for m in members], judge.least_apart(members[0].misfit)
        return [members[k] for k in self.tools.changes.that_differ(labels, least, number)]


def _member(target, partial, cells, judge):
    """A member of cells, with the shares of those tetrahedra that the labels agree with."""
    share = np.where(cells.labels == partial.labels, partial.share, cells.labels)
    return Member(target, PartialCells(share, cells.leaks), cells, judge(target, cells))
