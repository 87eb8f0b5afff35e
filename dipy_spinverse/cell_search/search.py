"""The search for the cells that explain a voxel: populations of shapes that descend and change.

Random bodies that agree best with the data start each, beside cells that are put together from
single ones (`separate_cells`). In a round some of a population are disturbed, others are changed
at random, and all of these descend: by Gauss-Newton in the shares of tetrahedra inside of cells
(`descent`), then by flips of whole tetrahedra. The best that differ from each other survive,
judged by a misfit that counts wrong tetrahedra (`exact_data`) or, where there is noise, by their
probability (`noisy_data`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import qr

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import PartialVolumeSimulator
from dipy_spinverse.cell_search.bodies import random_bodies, random_cell
from dipy_spinverse.cell_search.changes import Changes
from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.descent import Descent, PartialCells
from dipy_spinverse.cell_search.evolution import Evolution
from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.labelled import Cells, Target, flips_of
from dipy_spinverse.cell_search.noisy_data import NoisyData
from dipy_spinverse.cell_search.separate_cells import SeparateCells
from dipy_spinverse.grid import TetrahedralGrid

# Permeabilities (um/ms) of walls and of other faces from which the search starts; both are fitted.
_START_PERMEABILITIES = (0.01, 100.0)
# Measurements that are simulated in the search, where there is noise and where there is none:
# multiples of a register of the compiled sweep. 64 determine half of the flips at walls, 128 most
# of them. And the random bodies whose sensitivities choose them.
_N_CONDENSED, _N_SEARCHED, _N_BODIES_TO_CHOOSE = 64, 128, 6
_STEPS = 4
# Random bodies, and those of which all measurements are simulated where there is noise.
_N_LIBRARY, _N_EXAMPLES = 1500, 400
# Single cells that are put together.
_N_SINGLE = 3000
# Noise relative to the largest signal from which single tetrahedra are left to chance.
_NOISY = 1 / 300


@dataclass(frozen=True, eq=False)
class Found:
    """The cells found in a voxel, others that explain it, and whether they reach its errors."""

    best: Cells
    samples: list[Cells]
    solved: bool
    n_rounds: int


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
        self._seed = seed
        rng = np.random.default_rng(seed)
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
        evolution = Evolution(task, self._descend, self._changes, bodies, rng)
        together, populations = self._put_together(task, rng), []
        for kind, patience in task.populations:
            if kind == "joined":
                populations.append(evolution.joined(populations, patience))
            else:
                starts = next(together) if kind == "put together" else []
                populations.append(evolution.new_population(starts, patience))
            if task.solved_by(populations[-1]):
                break
        best, samples = task.conclusion(populations, n_samples, rng)
        return Found(best, samples, complete.explained_by(best), evolution.n_rounds)

    def _task(self, complete):
        if np.median(complete.rician) > _NOISY * complete.data.max():
            target = CondensedTarget(complete, self._simulator_of, self._examples, _N_CONDENSED)
            mirrored = self._changes.mirrored
            return NoisyData(complete, target, self._examples, self._descend, mirrored)
        target = complete.of_measurements(*self._part)
        signals = self._library_signals
        return ExactData(complete, target, self._library, signals, self._leaks)

    def _put_together(self, task, rng):
        """Cells that together explain the data nearly, the likeliest number of them first."""
        cells = SeparateCells(
            task, self._descend, self._changes, *self._single_cells, self._leaks
        )
        while True:
            for _, several in cells.in_likely_numbers(rng):
                blurred = (self._descend.blurred(labels) for labels in several)
                yield [PartialCells(share, self._leaks) for share in blurred]

    def _simulator_of(self, rows):
        part = self._acquisition.subset(rows)
        return PartialVolumeSimulator(part, self.grid, **self._settings)

    @cached_property
    def _part(self):
        """Rows and simulator of the measurements that tell most about walls."""
        plain = _plain_target(self._full, len(self._acquisition))
        some = [flips_of(plain, x, self._leaks) for x in self._library[:_N_BODIES_TO_CHOOSE]]
        changes = np.concatenate([flips.changes for flips in some])
        order = qr(changes.T @ changes, mode="r", pivoting=True)[1]
        rows = self._full.in_full_registers(order, _N_SEARCHED)
        return rows, self._simulator_of(rows)

    @cached_property
    def _library_signals(self):
        return self._simulated(self._library)

    @cached_property
    def _single_cells(self):
        """Single cells, and what the search would measure of each alone."""
        rng = np.random.default_rng((self._seed, 1))
        cells = [random_cell(rng, self.grid) for _ in range(_N_SINGLE)]
        labels = np.array([cell.inside(self.grid.centroids) for cell in cells])
        return labels, self._simulated(labels)

    def _simulated(self, labels):
        rows, simulator = self._part
        return _plain_target(simulator, len(rows)).simulate(labels, self._leaks)

    @cached_property
    def _examples(self):
        """All signals of the first bodies of the library."""
        plain = _plain_target(self._full, len(self._acquisition))
        return plain.simulate(self._library[:_N_EXAMPLES], self._leaks)

    def _without_end(self, numbers):
        """Bodies of the library, as descents start from them, again and again."""
        while True:
            for k in numbers:
                yield PartialCells(self._descend.blurred(self._library[k]), self._leaks)


def _plain_target(simulator, n_measurements):
    """A target whose expected data are the signals."""
    nothing = np.zeros(n_measurements)
    return Target(simulator, nothing, nothing + 1, nothing)
