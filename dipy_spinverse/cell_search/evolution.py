"""Populations of cells that descend and change, until the best explain the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dipy_spinverse.cell_search.changes import Changes
from dipy_spinverse.cell_search.descent import Descent, PartialCells
from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.labelled import Cells, Target
from dipy_spinverse.cell_search.noisy_data import NoisyData
from dipy_spinverse.threads import in_threads

# Members of a population, random bodies that start it, and what each of its rounds adds.
_N_MEMBERS, _N_STARTS = 4, 6
_N_DISTURBED, _N_CHANGED, _N_FRESH = 3, 2, 1
_MOST_ROUNDS = 14
_RANKS_CHOSEN = 4.0
_N_STEPS_FIRST, _N_STEPS = 10, 7
_DISTURBANCES = (0.5, 1.0, 1.5)
# Random changes of which the most promising one descends.
_N_PROPOSED = 50


@dataclass(frozen=True, eq=False)
class Member:
    """Cells of a population: as they descended, their labels, and how far these are off.

    Attributes
    ----------
    target : Target
        Exact for these cells.
    """

    target: Target
    partial: PartialCells
    cells: Cells
    misfit: float


@dataclass(frozen=True, eq=False)
class _Path:
    target: Target
    start: PartialCells
    n_steps: int
    disturbance: float = 0.0


class Evolution:
    """Evolution of populations in a voxel.

    Parameters
    ----------
    task : ExactData or NoisyData
    descend : Descent
    changes : Changes
    bodies : iterator of PartialCells
        Random bodies that start populations and join them, without end.
    rng : Generator
    """

    def __init__(
        self,
        task: ExactData | NoisyData,
        descend: Descent,
        changes: Changes,
        bodies: Iterator[PartialCells],
        rng: np.random.Generator,
    ):
        self._task, self._descend, self._changes = task, descend, changes
        self._bodies, self._rng = bodies, rng
        self.n_rounds = 0

    def new_population(self, starts: list[PartialCells], patience: int) -> list[Member]:
        """A population of starts and random bodies, the best first, after rounds in vain."""
        starts = starts[: _N_STARTS // 2]
        starts = [*starts, *islice(self._bodies, _N_STARTS - len(starts))]
        paths = [_Path(self._task.target, start, _N_STEPS_FIRST) for start in starts]
        return self._evolved(self._surviving(self._descended(paths)), patience)

    def joined(self, populations: list[list[Member]], patience: int) -> list[Member]:
        """A population of the best of several, after rounds in vain."""
        task = self._task
        members = [member for population in populations for member in population]
        members.sort(key=lambda member: task.target.chi_square(member.cells))
        judge = task.judge([member.cells for member in members])
        members = [_member(m.target, m.partial, m.cells, judge) for m in members]
        best = self._best_that_differ(judge, members, 2 * _N_MEMBERS)
        return self._evolved(best, patience)

    def _evolved(self, population, patience):
        in_vain, least = 0, self._task.distance(population)
        for _ in range(_MOST_ROUNDS):
            if in_vain == patience or self._task.solved_by(population):
                break
            population = self._surviving(self._descended(self._paths(population)), population)
            distance = self._task.distance(population)
            in_vain = 0 if distance < least - 1 else in_vain + 1
            least = distance if in_vain == 0 else least
            self.n_rounds += 1
        return population

    def _blurred(self, cells):
        return PartialCells(self._descend.blurred(cells.labels), cells.leaks)

    def _paths(self, population):
        """What descends in a round: disturbed and changed members, and random bodies."""
        rng, chance = self._rng, np.exp(-np.arange(len(population)) / _RANKS_CHOSEN)
        number = _N_DISTURBED + _N_CHANGED
        chosen = rng.choice(len(population), number, p=chance / chance.sum())
        parents = [population[k] for k in chosen]
        paths = []
        for member in parents[:_N_DISTURBED]:
            partial = member.partial
            if rng.random() < 0.5:
                partial = self._blurred(member.cells)
            paths.append(_Path(member.target, partial, _N_STEPS, rng.choice(_DISTURBANCES)))
        judge = self._task.judge([member.cells for member in population])
        for member in parents[_N_DISTURBED:]:
            partial = self._changed(judge, member, population)
            paths.append(_Path(member.target, partial, _N_STEPS))
        fresh = islice(self._bodies, _N_FRESH)
        return [*paths, *(_Path(population[0].target, x, _N_STEPS_FIRST) for x in fresh)]

    def _descended(self, paths):
        """Targets and cells of paths, after their steps, and a source of random numbers."""

        def descend(path, own_rng):
            args = path.target, path.start, own_rng, path.n_steps, path.disturbance
            return path.target, self._descend(*args), own_rng

        return in_threads(descend, paths, self._rng.spawn(len(paths)))

    def _changed(self, judge, member, population):
        """The most promising random change of a member."""
        others = self._rng.integers(len(population), size=_N_PROPOSED)
        labels = np.array([
            self._changes.drawn(member.cells.labels, population[k].cells.labels, self._rng)
            for k in others
        ])  # fmt: skip
        states = member.target.cells(labels, member.cells.leaks)
        values = [judge(member.target, state) for state in states]
        return self._blurred(states[np.argmin(values)])

    def _surviving(self, descended, population=()):
        """The best that differ, of a population and of cells that descended, now improved."""
        states = self._task.target.cells(
            np.array([partial.labels for _, partial, _ in descended]),
            np.array([partial.leaks for _, partial, _ in descended]),
        )
        judge = self._task.judge([member.cells for member in population] or states)

        def improve(path, cells):
            target, partial, own_rng = path
            cells = judge.improved(target, cells, own_rng)
            return target.exact_at(cells), partial, cells

        improved = in_threads(improve, descended, states)
        new = [_member(*candidate, judge) for candidate in improved]
        members = [*(_member(m.target, m.partial, m.cells, judge) for m in population), *new]
        number = max(len(population), _N_MEMBERS)
        best = self._best_that_differ(judge, members, number)
        for member in best:
            if member in new and judge.nearly_right(member.misfit):
                cells = self._task.perfected(member.target, member.cells, self._rng)
                members.append(_member(member.target, member.partial, cells, judge))
                if self._task.solved_by(members[-1:]):
                    break
        return self._best_that_differ(judge, members, number)

    def _best_that_differ(self, judge, members, number):
        members = sorted(members, key=lambda member: member.misfit)
        labels, least = [m.cells.labels for m in members], judge.least_apart(members[0].misfit)
        return [members[k] for k in self._changes.that_differ(labels, least, number)]


def _member(target, partial, cells, judge):
    """A member of cells, with the shares of those tetrahedra that the labels agree with."""
    share = np.where(cells.labels == partial.labels, partial.share, cells.labels)
    return Member(target, PartialCells(share, cells.leaks), cells, judge(target, cells))
