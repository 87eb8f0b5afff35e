"""The search for the cells that explain a voxel: populations of shapes that descend and change.

Random bodies that agree best with the data start each, beside cells that are put together from
single ones (`separate_cells`). In a round some of a population are disturbed, others are changed
at random, and all of these descend: by Gauss-Newton in the shares of tetrahedra inside of cells
(`descent`), then by flips of whole tetrahedra. The best that differ from each other survive,
judged by a misfit that counts wrong tetrahedra (`exact_data`) or, where there is noise, by their
probability (`noisy_data`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import numpy as np
from scipy.linalg import qr

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import PartialVolumeSimulator
from dipy_spinverse.cell_search.bodies import random_bodies, random_cell
from dipy_spinverse.cell_search.cell_operations import CellOperations
from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.descent import Descent, PartialCells
from dipy_spinverse.cell_search.effort import DEFAULT_EFFORT, Origin, SearchEffort
from dipy_spinverse.cell_search.evolution import Evolution
from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.labelled import (
    LabelledCells,
    SimulatedCells,
    Target,
    label_changes,
)
from dipy_spinverse.cell_search.noisy_data import NoisyData
from dipy_spinverse.cell_search.protocols import Member, SearchTask, Tools
from dipy_spinverse.cell_search.separate_cells import SeparateCells
from dipy_spinverse.grid import TetrahedralGrid

# Where the search starts; permeabilities of walls and of other faces, um/ms. Both are fitted.
_START_PERMEABILITIES = (0.01, 100.0)
# Noise, relative to the largest signal, from which single tetrahedra are left to chance; chosen
# on the shapes of benchmarks/shapes.py.
_NOISY = 1 / 300
# Time intervals per gradient pulse; half of the simulators' default.
_STEPS = 4


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The cells found in a voxel, others that explain it, and whether they reach its errors.

    It was hopeless where the search ended early, as none come near the data.
    """

    best: LabelledCells
    draws: list[LabelledCells]
    solved: bool
    n_rounds: int
    hopeless: bool = False


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
    effort : SearchEffort
    """

    def __init__(
        self,
        acquisition: Acquisition,
        grid: TetrahedralGrid,
        *,
        diffusivity: float,
        seed: int,
        effort: SearchEffort = DEFAULT_EFFORT,
    ):
        self.grid, self._acquisition, self._seed = grid, acquisition, seed
        self._diffusivity = diffusivity
        tau = relative_transmissibility(
            grid, np.array(_START_PERMEABILITIES)[:, None], diffusivity
        )
        leaks, descend = np.median(tau, axis=1), Descent(grid, effort.steps)
        self.tools = Tools(descend, CellOperations(grid), leaks, effort)
        self.simulator = self._simulator_of(np.arange(len(acquisition)))
        rng = np.random.default_rng(seed)
        number = effort.library.n_bodies
        self.bodies = np.array([random_bodies(rng, grid) for _ in range(number)])

    def run(
        self,
        data: np.ndarray,
        sigma: np.ndarray,
        rician: np.ndarray,
        freedom: float,
        n_draws: int,
    ) -> SearchResult:
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
        n_draws : int
            Number of further cells that explain the data.
        """
        rng = np.random.default_rng(self._seed)
        complete = Target(self.simulator, data, sigma, rician, freedom)
        task: SearchTask
        together: Iterator[list[PartialCells]] = repeat([])
        if np.median(rician) > _NOISY * data.max():
            task = self._noisy_data(complete)
        else:
            task = self.exact_data(complete)
            together = self._put_together(task, rng)
        bodies = self._without_end(task.ranked_library)
        evolution = Evolution(task, self.tools, bodies, rng)
        populations: list[list[Member]] = []
        hopeless = False
        for plan in task.populations:
            if plan.origin is Origin.JOINED:
                populations.append(evolution.joined(populations, plan.patience))
            else:
                starts = next(together) if plan.origin is Origin.PUT_TOGETHER else []
                populations.append(evolution.new_population(starts, plan.patience))
            hopeless = plan.origin is Origin.JOINED and task.hopeless(populations[-1])
            if hopeless or task.solved_by(populations[-1]):
                break
        best, draws = task.conclusion(populations, n_draws, rng)
        solved = complete.explained_by(best)
        return SearchResult(best, draws, solved, evolution.n_rounds, hopeless)

    def exact_data(self, complete: Target) -> ExactData:
        """The task of finding cells in data without noise."""
        target = complete.of_measurements(*self.searched)
        return ExactData(complete, target, self._library, self.tools)

    def _noisy_data(self, complete):
        number = self.tools.effort.n_condensed
        target = CondensedTarget(complete, self._simulator_of, self.examples, number)
        return NoisyData(complete, target, self.examples, self.tools)

    def separate_cells(self, task: ExactData) -> SeparateCells:
        """Cells put together that explain exact data nearly."""
        return SeparateCells(task, self._single_cells)

    def _put_together(self, task, rng):
        """Starts of cells that together explain the data nearly, the likeliest number first."""
        cells = self.separate_cells(task)
        while True:
            for _, several in cells.in_likely_numbers(rng):
                yield [self._blurred(labels) for labels in several]

    def _blurred(self, labels):
        return self.tools.descend.blurred(labels, self.tools.leaks)

    def _simulator_of(self, rows):
        part, D = self._acquisition.subset(rows), self._diffusivity
        return PartialVolumeSimulator(
            part, self.grid, diffusivity=D, steps=_STEPS, dtype="float32"
        )

    @cached_property
    def searched(self) -> tuple[np.ndarray, PartialVolumeSimulator]:
        """Rows and simulator of the measurements that tell most about walls."""
        plain = _plain_target(self.simulator, len(self._acquisition))
        some = self.bodies[: self.tools.effort.library.n_choosing]
        flips = [label_changes(plain, labels, self.tools.leaks) for labels in some]
        changes = np.concatenate([x.changes for x in flips])
        order = qr(changes.T @ changes, mode="r", pivoting=True)[1]
        rows = self.simulator.fill_registers(order, self.tools.effort.n_searched)
        return rows, self._simulator_of(rows)

    @cached_property
    def _library(self):
        return self._simulated(self.bodies)

    @cached_property
    def _single_cells(self):
        rng = np.random.default_rng((self._seed, 1))
        number = self.tools.effort.library.n_single_cells
        return self._simulated(np.array([random_cell(rng, self.grid) for _ in range(number)]))

    def _simulated(self, labels):
        """Cells, and what the search would measure of each."""
        rows, simulator = self.searched
        target = _plain_target(simulator, len(rows))
        return SimulatedCells(labels, target.simulate(labels, self.tools.leaks))

    @cached_property
    def examples(self):
        """All signals (N, M) of the first bodies of the library."""
        plain = _plain_target(self.simulator, len(self._acquisition))
        some = self.bodies[: self.tools.effort.library.n_examples]
        return plain.simulate(some, self.tools.leaks)

    def _without_end(self, numbers):
        """Bodies of the library, as descents start from them, again and again."""
        while True:
            for k in numbers:
                yield self._blurred(self.bodies[k])


def _plain_target(simulator, n_measurements):
    """A target whose expected data are the signals."""
    nothing = np.zeros(n_measurements)
    return Target(simulator, nothing, nothing + 1, nothing)
