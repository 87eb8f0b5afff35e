"""The search for the cells that explain a voxel: populations of shapes that are improved.

Populations begin with the random bodies nearest to the data and combinations of single cells
(`separate_cells`). In a round some members are disturbed and fitted again, by Gauss-Newton
(`descent`) and changes of labels (`local_search`, `joint_changes`); the best distinct ones
survive, by an objective that counts wrong labels (`exact_data`) or the posterior (`noisy_data`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, repeat

import numpy as np
from scipy.linalg import qr

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import PartialVolumeSimulator
from dipy_spinverse.cell_search.bodies import random_bodies, random_cell
from dipy_spinverse.cell_search.budget import CellSearchBudget, InitialBodies
from dipy_spinverse.cell_search.cell_operations import CellOperations
from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.descent import Descent, PartialCells
from dipy_spinverse.cell_search.evolution import Evolution
from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.labelled import (
    LabelledCells,
    SimulatedCells,
    Target,
    label_changes,
)
from dipy_spinverse.cell_search.member import Member, SearchTools
from dipy_spinverse.cell_search.noisy_data import NoisyData
from dipy_spinverse.cell_search.separate_cells import SeparateCells
from dipy_spinverse.grid import TetrahedralGrid

# Initial permeabilities of walls and of other faces, um/ms; both are fitted.
_INITIAL_PERMEABILITIES = (0.01, 100.0)
# Noise, relative to the largest signal, above which single tetrahedra are not determined; set by
# hand on the shapes of benchmarks/shapes.py.
_NOISY = 1 / 300
# Time steps per gradient pulse, half of the simulators' default; set by hand. Their error is
# part of `_SIMULATION_ERROR` of `voxel_inversion`, which is set by hand, too.
_STEPS = 4
_N_TYPICAL_BODIES = 6  # whose sensitivities select the measurements of the search; set by hand


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The best cells of a voxel, others that explain it, and how the search ended."""

    best: LabelledCells
    draws: list[LabelledCells]
    solved: bool  # whether the best explain the data
    hopeless: bool = False  # it ended early: all cells were far from explaining the data


class CellSearch:
    """A search for cells, prepared for many voxels of one acquisition (no repeats) on one grid."""

    def __init__(
        self,
        acquisition: Acquisition,
        grid: TetrahedralGrid,
        *,
        diffusivity: float,
        seed: int,
        budget: CellSearchBudget | None = None,
    ):
        self.grid, self._acquisition, self._seed = grid, acquisition, seed
        self._diffusivity, budget = diffusivity, budget or CellSearchBudget()
        tau = relative_transmissibility(
            grid, np.array(_INITIAL_PERMEABILITIES)[:, None], diffusivity
        )
        self.tools = SearchTools(
            Descent(grid), CellOperations(grid), np.median(tau, axis=1), budget
        )
        self.simulator = self._simulator_of(np.arange(len(acquisition)))
        rng = np.random.default_rng(seed)
        self.bodies = np.array([random_bodies(rng, grid) for _ in range(budget.n_bodies)])

    def run(
        self,
        data: np.ndarray,
        sigma: np.ndarray,
        rician_sigma: np.ndarray,
        degrees_of_freedom: float,
        n_draws: int,
    ) -> SearchResult:
        """The cells of a voxel, and further ones that explain data as those of a `Target`."""
        rng = np.random.default_rng(self._seed)
        complete = Target(self.simulator, data, sigma, rician_sigma, degrees_of_freedom)
        task: ExactData | NoisyData
        combinations: Iterator[list[PartialCells]] = repeat([])
        if np.median(rician_sigma) > _NOISY * data.max():
            task = self._noisy_data(complete)
        else:
            task = self.exact_data(complete)
            combinations = self._combinations(task, rng)
        bodies = (self._blurred(self.bodies[k]) for k in cycle(task.ranking))
        evolution = Evolution(task, self.tools, bodies, rng)
        populations: list[list[Member]] = []
        hopeless = False
        for plan in task.populations:
            if plan.initial is InitialBodies.MERGED:
                populations.append(evolution.merged(populations, plan.patience))
                hopeless = isinstance(task, ExactData) and task.hopeless(populations[-1])
            else:
                combined = plan.initial is InitialBodies.COMBINED
                initial = next(combinations) if combined else []
                populations.append(evolution.new_population(initial, plan.patience))
            if hopeless or task.solved_by(populations[-1]):
                break
        best, draws = task.conclusion(populations, n_draws, rng)
        return SearchResult(best, draws, complete.explained_by(best), hopeless)

    def exact_data(self, complete: Target) -> ExactData:
        """The task of finding cells in data without noise."""
        target = complete.of_measurements(*self.searched)
        return ExactData(complete, target, self._library, self.tools)

    def _noisy_data(self, complete):
        number = self.tools.budget.n_condensed
        target = CondensedTarget(complete, self._simulator_of, self.examples, number)
        return NoisyData(complete, target, self.examples, self.tools)

    def separate_cells(self, task: ExactData) -> SeparateCells:
        """Combinations of single cells that nearly explain exact data."""
        return SeparateCells(task, self._single_cells)

    def _combinations(self, task, rng):
        """Initial cells of populations, combined from single ones, again and again."""
        separate_cells = self.separate_cells(task)
        while True:
            for _, combined in separate_cells.by_likely_number(rng):
                yield [self._blurred(labels) for labels in combined]

    def _blurred(self, labels):
        return self.tools.descend.blurred(labels, self.tools.transmissibility)

    def _simulator_of(self, rows):
        return PartialVolumeSimulator(
            self._acquisition.subset(rows),
            self.grid,
            diffusivity=self._diffusivity,
            steps=_STEPS,
            dtype="float32",
        )

    @cached_property
    def searched(self) -> tuple[np.ndarray, PartialVolumeSimulator]:
        """Rows and simulator of the measurements with the most independent sensitivities."""
        target = _signal_target(self.simulator, len(self._acquisition))
        changes = [
            label_changes(target, labels, self.tools.transmissibility)
            for labels in self.bodies[:_N_TYPICAL_BODIES]
        ]
        effects = np.concatenate([x.effects for x in changes])
        order = qr(effects.T @ effects, mode="r", pivoting=True)[1]
        rows = self.simulator.fill_registers(order, self.tools.budget.n_searched)
        return rows, self._simulator_of(rows)

    @cached_property
    def _library(self):
        return self._simulated(self.bodies)

    @cached_property
    def _single_cells(self):
        rng = np.random.default_rng((self._seed, 1))
        number = self.tools.budget.n_single_cells
        return self._simulated(np.array([random_cell(rng, self.grid) for _ in range(number)]))

    def _simulated(self, labels):
        """Cells and their signals of the measurements that serve the search."""
        rows, simulator = self.searched
        target = _signal_target(simulator, len(rows))
        return SimulatedCells(labels, target.simulate(labels, self.tools.transmissibility))

    @cached_property
    def examples(self):
        """All signals (N, M) of the first random bodies."""
        target = _signal_target(self.simulator, len(self._acquisition))
        labels = self.bodies[: self.tools.budget.n_examples]
        return target.simulate(labels, self.tools.transmissibility)


def _signal_target(simulator, n_measurements):
    """A target whose expected data are the signals."""
    zeros = np.zeros(n_measurements)
    return Target(simulator, zeros, zeros + 1, zeros)
