"""The search for the cells that explain a voxel: a population of shapes that descend and change.

Random bodies that agree best with the data start. In each round some of the population are
disturbed, others are changed at random, and all of these descend: by Gauss-Newton in the shares
of tetrahedra inside of cells (`descent`), then by flips of whole tetrahedra (`polish`). The best
that differ from each other survive, judged by a misfit that counts wrong tetrahedra. Cells of
noisy data are sought among smooth bodies instead (`body_search`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import qr

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.bloch_torrey.partial_volume import PartialVolumeSimulator
from dipy_spinverse.cell_search.bodies import random_bodies
from dipy_spinverse.cell_search.body_search import N_BODY_ROUNDS, fitted_bodies
from dipy_spinverse.cell_search.changes import Changes
from dipy_spinverse.cell_search.descent import Descent, PartialCells
from dipy_spinverse.cell_search.ensemble import ensemble
from dipy_spinverse.cell_search.labelled import Cells, Misfit, Target, flips_of
from dipy_spinverse.cell_search.polish import polished
from dipy_spinverse.grid import TetrahedralGrid

# Permeabilities (um/ms) of walls and of other faces from which the search starts; both are fitted.
_START_PERMEABILITIES = (0.01, 100.0)
# Measurements that the search looks at, multiples of a register of the compiled sweep, and the
# random bodies whose sensitivities choose them.
_N_SEARCHED, _N_SEARCHED_NOISY, _N_BODIES_TO_CHOOSE = 64, 160, 6
_STEPS = 4
_N_LIBRARY = 1500
# Error of random bodies as a description of cells, relative to the initial magnetisation.
_BODY_ERROR = 1e-4
# The population, how many random bodies start it, and what is added in each of its rounds.
_N_POPULATION, _N_STARTS = 8, 12
_N_DISTURBED, _N_CHANGED, _N_FRESH = 8, 6, 2
_MOST_ROUNDS = 10
_RANKS_CHOSEN = 4.0
_N_STEPS_FIRST, _N_STEPS = 10, 7
_DISTURBANCES = (0.5, 1.0, 1.5)
# Random changes of which the most promising one descends.
_N_PROPOSED = 50
# Tetrahedra in which the members of a population differ: as long as its best has a misfit above
# this, and then.
_NEAR, _FAR_APART, _APART = 1.0, 12, 3
# Error of what flips of single tetrahedra do not explain, relative to the residual, and the
# number of cells whose flips stand for those of all.
_NOT_EXPLAINED, _N_TYPICAL = 0.3, 3
# Noise relative to the largest signal from which single tetrahedra are left to chance.
_NOISY = 1 / 300
_N_FINALISTS = 3


@dataclass(frozen=True, eq=False)
class Found:
    """The cells found in a voxel, others that explain it, and whether they reach its errors."""

    best: Cells
    samples: list[Cells]
    solved: bool
    n_rounds: int


@dataclass(frozen=True, eq=False)
class _Member:
    """Cells of a population: as they descended, their labels, and how far these are off."""

    partial: PartialCells
    cells: Cells
    misfit: float


@dataclass(frozen=True, eq=False)
class _Path:
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
        self._bodies = [random_bodies(rng, grid) for _ in range(_N_LIBRARY)]
        self._library = np.array([bodies.inside(grid.centroids) for bodies in self._bodies])
        plain = _plain_target(self._full, len(acquisition))
        some = [flips_of(plain, x, self._leaks) for x in self._library[:_N_BODIES_TO_CHOOSE]]
        changes = np.concatenate([flips.changes for flips in some])
        self._overlaps = changes.T @ changes
        self._searched = self._most_telling(np.ones(len(acquisition)), _N_SEARCHED)

    def _most_telling(self, sigma, number):
        """The measurements that tell most about walls, their simulator, and of the library."""
        order = qr(self._overlaps / np.outer(sigma, sigma), mode="r", pivoting=True)[1]
        rows = np.sort(order[:number])
        part = self._acquisition.subset(rows)
        simulator = PartialVolumeSimulator(part, self.grid, **self._settings)
        plain = _plain_target(simulator, len(rows))
        return rows, simulator, plain.simulate(self._library, self._leaks[None])

    def run(
        self, data: np.ndarray, sigma: np.ndarray, rician: np.ndarray, n_samples: int
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
        n_samples : int
            Number of further states that explain the data.
        """
        rng = np.random.default_rng(self._seed)
        complete = Target(self._full, data, sigma, rician)
        if np.median(rician) > _NOISY * data.max():
            return self._run_noisy(complete, n_samples, rng)
        rows, simulator, signals = self._searched
        target = complete.of_measurements(rows, simulator)
        bodies = self._ranked_library(target, signals)
        starts = [_Path(next(bodies), _N_STEPS_FIRST) for _ in range(_N_STARTS)]
        population = self._surviving(target, self._descended(target, starts, rng))
        n_rounds = 0
        while not _solved(target, population) and n_rounds < _MOST_ROUNDS:
            paths = self._paths(target, population, bodies, rng)
            population = self._surviving(target, self._descended(target, paths, rng), population)
            n_rounds += 1
        finalists = [member.cells for member in population[:_N_FINALISTS]]
        samples = ensemble(target, finalists, n_samples, rng)[1] if n_samples else []
        best = complete.cells(finalists[0].labels[None], finalists[0].leaks)[0]
        best = polished(complete, best, self._misfit(complete, [best.labels], 1.0))
        return Found(best, samples, _explained(complete, best), n_rounds)

    def _run_noisy(self, complete, n_samples, rng):
        """Cells of data whose noise hides single tetrahedra: bodies, which are smooth."""
        rows, simulator, signals = self._most_telling(complete.sigma, _N_SEARCHED_NOISY)
        target = complete.of_measurements(rows, simulator)
        library = [
            Cells(labels, self._leaks, expected)
            for labels, expected in zip(self._library, target.expected(signals), strict=True)
        ]
        fits = fitted_bodies(target, complete, self._bodies, library, rng)
        finalists = sorted([fit.cells for fit in fits], key=complete.chi_square)
        best, samples = ensemble(complete, finalists[:_N_FINALISTS], n_samples, rng)
        return Found(best, samples, _explained(complete, best), N_BODY_ROUNDS)

    def _ranked_library(self, target, signals):
        """Random bodies, those first that agree best with the data; without end."""
        scale = _BODY_ERROR / np.median(target.sigma)
        misfit = self._misfit(target, self._library[:_N_TYPICAL], max(scale, 1.0))
        values = misfit(target.data / target.sigma - target.expected(signals))
        while True:
            for k in np.argsort(values):
                yield self._blurred(self._library[k], self._leaks)

    def _blurred(self, labels, leaks):
        return PartialCells(self._descend.blurred(labels), leaks)

    def _paths(self, target, population, bodies, rng):
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
            paths.append(_Path(partial, _N_STEPS, rng.choice(_DISTURBANCES)))
        misfit = self._misfit_of(target, [member.cells for member in population])
        for member in parents[_N_DISTURBED:]:
            paths.append(_Path(self._changed(target, member, population, misfit, rng), _N_STEPS))
        return [*paths, *(_Path(next(bodies), _N_STEPS_FIRST) for _ in range(_N_FRESH))]

    def _descended(self, target, paths, rng):
        def descend(path, own_rng):
            return self._descend(target, path.start, own_rng, path.n_steps, path.disturbance)

        return _in_threads(descend, paths, rng.spawn(len(paths)))

    def _changed(self, target, member, population, misfit, rng):
        """The most promising random change of a member."""
        others = rng.integers(len(population), size=_N_PROPOSED)
        labels = np.array([
            self._changes.drawn(member.cells.labels, population[k].cells.labels, rng)
            for k in others
        ])  # fmt: skip
        states = target.cells(labels, member.cells.leaks)
        values = misfit(np.array([target.residual(state) for state in states]))
        return self._blurred(labels[values.argmin()], member.cells.leaks)

    def _surviving(self, target, descended, population=()):
        """The best that differ, of a population and of cells that descended, now polished."""
        states = target.cells(
            np.array([partial.labels for partial in descended]),
            np.array([partial.leaks for partial in descended]),
        )
        misfit = self._misfit_of(target, [member.cells for member in population] or states)
        states = _in_threads(lambda cells: polished(target, cells, misfit), states)
        candidates = [(member.partial, member.cells) for member in population]
        candidates += zip(descended, states, strict=True)
        members = [_member(target, *candidate, misfit) for candidate in candidates]
        members.sort(key=lambda member: member.misfit)
        least, kept = _FAR_APART if members[0].misfit > _NEAR else _APART, []
        for member in members:
            if all(self._apart(member, other) >= least for other in kept):
                kept.append(member)
        return kept[:_N_POPULATION]

    def _apart(self, one, other):
        """Number of tetrahedra in which members differ, up to point reflection."""
        one, other = one.cells.labels, other.cells.labels
        return min((one != other).sum(), (one != other[self._changes.mirrored]).sum())

    def _misfit_of(self, target, cells):
        """The misfit whose typical cells are the first of some, the best."""
        best = cells[:_N_TYPICAL]
        size = np.sqrt(min(target.chi_square(state) for state in best))
        labels = [state.labels for state in best]
        return self._misfit(target, labels, max(_NOT_EXPLAINED * size, 1.0))

    def _misfit(self, target, some_labels, scale):
        return Misfit([flips_of(target, labels, self._leaks) for labels in some_labels], scale)


def _member(target, partial, cells, misfit):
    """A member of cells, with the shares of those tetrahedra that the labels agree with."""
    value = misfit(target.residual(cells)[None])[0]
    share = np.where(cells.labels == partial.labels, partial.share, cells.labels)
    return _Member(PartialCells(share, cells.leaks), cells, value)


def _plain_target(simulator, n_measurements):
    """A target whose expected data are the signals."""
    nothing = np.zeros(n_measurements)
    return Target(simulator, nothing, nothing + 1, nothing)


def _solved(target, population):
    """Whether the best residual is no more than errors of the data."""
    return any(_explained(target, member.cells) for member in population)


def _explained(target, cells):
    by_chance = 1 + 2 * np.sqrt(2 / len(target.data))
    return target.chi_square(cells) < by_chance


def _in_threads(function, *arguments):
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(function, *arguments))
