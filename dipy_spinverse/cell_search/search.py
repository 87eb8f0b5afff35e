"""The search for the cells that explain a voxel: a population of shapes that descend and change.

Random bodies that agree best with the data start. In each round some of the population are
disturbed, others are changed at random, and all of these descend: by Gauss-Newton in the shares
of tetrahedra inside of cells (`descent`), then by flips of whole tetrahedra. The best that differ
from each other survive, judged by a misfit that counts wrong tetrahedra (`exact_data`) or, where
there is noise, by their probability (`noisy_data`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import qr

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.bloch_torrey.partial_volume import PartialVolumeSimulator
from dipy_spinverse.cell_search.bodies import random_bodies
from dipy_spinverse.cell_search.changes import Changes
from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.descent import Descent, PartialCells
from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.labelled import Cells, Target, flips_of
from dipy_spinverse.cell_search.noisy_data import NoisyData
from dipy_spinverse.grid import TetrahedralGrid

# Permeabilities (um/ms) of walls and of other faces from which the search starts; both are fitted.
_START_PERMEABILITIES = (0.01, 100.0)
# Measurements that the search simulates, a multiple of a register of the compiled sweep, and the
# random bodies whose sensitivities choose them.
_N_SEARCHED, _N_BODIES_TO_CHOOSE = 64, 6
_STEPS = 4
# Random bodies, and those of which all measurements are simulated where there is noise.
_N_LIBRARY, _N_EXAMPLES = 1500, 400
# The population, how many random bodies start it, and what is added in each of its rounds.
_N_POPULATION, _N_STARTS = 8, 12
_N_DISTURBED, _N_CHANGED, _N_FRESH = 8, 6, 2
_MOST_ROUNDS = 10
_RANKS_CHOSEN = 4.0
_N_STEPS_FIRST, _N_STEPS = 10, 7
_DISTURBANCES = (0.5, 1.0, 1.5)
# Random changes of which the most promising one descends.
_N_PROPOSED = 50
# Noise relative to the largest signal from which single tetrahedra are left to chance.
_NOISY = 1 / 300


@dataclass(frozen=True, eq=False)
class Found:
    """The cells found in a voxel, others that explain it, and whether they reach its errors."""

    best: Cells
    samples: list[Cells]
    solved: bool
    n_rounds: int


@dataclass(frozen=True, eq=False)
class _Member:
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


class CellSearch:
    """A search for cells, prepared for many voxels of one acquisition on one grid.

    Parameters
    ----------
    acquisition : Acquisition
        Without repeats.
    grid : TetrahedralGrid
    diffusivity : float
        um^2/ms.
    seed : int
    """

    def __init__(
        self, acquisition: Acquisition, grid: TetrahedralGrid, *, diffusivity: float, seed: int
    ):
        self.grid, self._acquisition = grid, acquisition
        tau = relative_transmissibility(
            grid, np.array(_START_PERMEABILITIES)[:, None], diffusivity
        )
        self._leaks = np.median(tau, axis=1)
        self._settings = {"diffusivity": diffusivity, "dtype": "float32", "steps": _STEPS}
        self._full = PartialVolumeSimulator(acquisition, grid, **self._settings)
        self._descend, self._changes = Descent(grid), Changes(grid)
        self._seed = np.random.SeedSequence(seed)
        rng = np.random.default_rng(self._seed)
        bodies = [random_bodies(rng, grid) for _ in range(_N_LIBRARY)]
        self._library = np.array([body.inside(grid.centroids) for body in bodies])

    def run(
        self,
        data: np.ndarray,
        sigma: np.ndarray,
        rician: np.ndarray,
        freedom: float,
        n_samples: int,
    ) -> Found:
        """Find the cells of a voxel.

        Parameters
        ----------
        data : ndarray (M,)
            Relative to the initial magnetisation.
        sigma : ndarray (M,)
            Standard deviation of the error of each.
        rician : ndarray (M,)
            Noise that lifts the mean of each; 0 for none.
        freedom : float
            Degrees of freedom of the errors.
        n_samples : int
            Number of further states that explain the data.
        """
        rng = np.random.default_rng(self._seed)
        complete = Target(self._full, data, sigma, rician, freedom)
        task = self._task(complete)
        bodies = self._without_end(task.ranked_library)
        starts = [_Path(task.target, next(bodies), _N_STEPS_FIRST) for _ in range(_N_STARTS)]
        population = self._surviving(task, self._descended(starts, rng))
        n_rounds = 0
        while not task.finished(population) and n_rounds < _MOST_ROUNDS:
            paths = self._paths(task, population, bodies, rng)
            population = self._surviving(task, self._descended(paths, rng), population)
            n_rounds += 1
        best, samples = task.conclusion(population, n_samples, rng)
        return Found(best, samples, complete.explained_by(best), n_rounds)

    def _task(self, complete):
        if np.median(complete.rician) > _NOISY * complete.data.max():
            target = CondensedTarget(complete, self._simulator_of, self._examples, _N_SEARCHED)
            return NoisyData(complete, target, self._examples)
        rows, simulator, signals = self._searched
        target = complete.of_measurements(rows, simulator)
        return ExactData(complete, target, self._library, signals, self._leaks)

    def _simulator_of(self, rows):
        part = self._acquisition.subset(rows)
        return PartialVolumeSimulator(part, self.grid, **self._settings)

    @cached_property
    def _searched(self):
        """The measurements that tell most about walls, their simulator, and of the library."""
        plain = _plain_target(self._full, len(self._acquisition))
        some = [flips_of(plain, x, self._leaks) for x in self._library[:_N_BODIES_TO_CHOOSE]]
        changes = np.concatenate([flips.changes for flips in some])
        rows = np.sort(qr(changes.T @ changes, mode="r", pivoting=True)[1][:_N_SEARCHED])
        simulator = self._simulator_of(rows)
        plain = _plain_target(simulator, len(rows))
        return rows, simulator, plain.simulate(self._library, self._leaks[None])

    @cached_property
    def _examples(self):
        """All signals of the first bodies of the library."""
        plain = _plain_target(self._full, len(self._acquisition))
        return plain.simulate(self._library[:_N_EXAMPLES], self._leaks[None])

    def _without_end(self, numbers):
        while True:
            for k in numbers:
                yield self._blurred(self._library[k], self._leaks)

    def _blurred(self, labels, leaks):
        return PartialCells(self._descend.blurred(labels), leaks)

    def _paths(self, task, population, bodies, rng):
        """What descends in a round: disturbed and changed members, and random bodies."""
        chance = np.exp(-np.arange(len(population)) / _RANKS_CHOSEN)
        number = _N_DISTURBED + _N_CHANGED
        chosen = rng.choice(len(population), number, p=chance / chance.sum())
        parents = [population[k] for k in chosen]
        paths = []
        for member in parents[:_N_DISTURBED]:
            partial = member.partial
            if rng.random() < 0.5:
                partial = self._blurred(member.cells.labels, member.cells.leaks)
            paths.append(_Path(member.target, partial, _N_STEPS, rng.choice(_DISTURBANCES)))
        judge = task.judge([member.cells for member in population])
        for member in parents[_N_DISTURBED:]:
            partial = self._changed(judge, member, population, rng)
            paths.append(_Path(member.target, partial, _N_STEPS))
        target = population[0].target
        return [*paths, *(_Path(target, next(bodies), _N_STEPS_FIRST) for _ in range(_N_FRESH))]

    def _descended(self, paths, rng):
        """Targets and cells of paths, after their steps, and a source of random numbers."""

        def descend(path, own_rng):
            args = path.target, path.start, own_rng, path.n_steps, path.disturbance
            return path.target, self._descend(*args), own_rng

        return _in_threads(descend, paths, rng.spawn(len(paths)))

    def _changed(self, judge, member, population, rng):
        """The most promising random change of a member."""
        others = rng.integers(len(population), size=_N_PROPOSED)
        labels = np.array([
            self._changes.drawn(member.cells.labels, population[k].cells.labels, rng)
            for k in others
        ])  # fmt: skip
        states = member.target.cells(labels, member.cells.leaks)
        values = [judge(member.target, state) for state in states]
        return self._blurred(labels[np.argmin(values)], member.cells.leaks)

    def _surviving(self, task, descended, population=()):
        """The best that differ, of a population and of cells that descended, now improved."""
        states = task.target.cells(
            np.array([partial.labels for _, partial, _ in descended]),
            np.array([partial.leaks for _, partial, _ in descended]),
        )
        judge = task.judge([member.cells for member in population] or states)

        def improve(path, cells):
            target, partial, own_rng = path
            cells = judge.improved(target, cells, own_rng)
            return target.exact_at(cells), partial, cells

        improved = _in_threads(improve, descended, states)
        candidates = [(member.target, member.partial, member.cells) for member in population]
        members = [_member(*candidate, judge) for candidate in [*candidates, *improved]]
        members.sort(key=lambda member: member.misfit)
        least, kept = judge.least_apart(members[0].misfit), []
        for member in members:
            if all(self._apart(member, other) >= least for other in kept):
                kept.append(member)
        return kept[:_N_POPULATION]

    def _apart(self, one, other):
        """Number of tetrahedra in which members differ, up to point reflection."""
        one, other = one.cells.labels, other.cells.labels
        return min((one != other).sum(), (one != other[self._changes.mirrored]).sum())


def _member(target, partial, cells, judge):
    """A member of cells, with the shares of those tetrahedra that the labels agree with."""
    share = np.where(cells.labels == partial.labels, partial.share, cells.labels)
    return _Member(target, PartialCells(share, cells.leaks), cells, judge(target, cells))


def _plain_target(simulator, n_measurements):
    """A target whose expected data are the signals."""
    nothing = np.zeros(n_measurements)
    return Target(simulator, nothing, nothing + 1, nothing)


def _in_threads(function, *arguments):
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(function, *arguments))
