"""Several separate cells, combined from simulations of single ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import combinations, islice

import numpy as np

from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.labelled import SimulatedCells
from dipy_spinverse.threads import in_threads

# Set by hand on the shapes of benchmarks/shapes.py; results with these are in
# benchmarks/results/separate_cells.md. Without combinations, shapes of several cells are not
# recovered (benchmarks/results/ablation.md).
_MAX_CELLS = 3
_PENALTY = 1.3  # factor by which the misfit has to fall with each further cell
_MIN_DIFFERENT = 8  # tetrahedra in which combinations differ
_MIN_INSIDE = 0.6  # of a translated cell, that remains in the box
_N_EXCHANGES = 3  # of each cell of a combination
_MAX_SIMULATED = 200  # combinations and reflections
_N_STEPS = 8  # of Gauss-Newton
_N_POSITIONS = 200  # that are tried for a cell
_N_ARRANGEMENTS = 25  # of all cells, that are simulated


class SeparateCells:
    """Combinations of single cells that nearly explain the data of a voxel.

    Effects of distant cells on the signals add up, except for terms of about their product. So
    simulations of N single cells nearly predict the signals of all pairs and triples, and those of
    single cells at all positions the signals of all arrangements.
    """

    def __init__(self, task: ExactData, single: SimulatedCells):
        self._task, self._target, self._tools = task, task.target, task.tools
        self._budget, self._transmissibility = task.tools.budget, task.tools.transmissibility
        grid = self._target.grid
        no_cells = np.zeros((1, grid.n_tetrahedra), dtype=bool)
        self._empty_signals = self._target.simulate(no_cells, self._transmissibility)[0]
        self._error = ((self._target.data - self._empty_signals) ** 2).mean()
        # A cell and its point reflection have the same signals: all are put on one side of a
        # plane that contains no axis of symmetry.
        self._side = (grid.centroids - grid.centroids.mean(axis=0)) @ [1.0, 0.7, 0.4]
        self._cells = self._on_one_side(single.labels)
        self._effects = single.signals - self._empty_signals

    def by_likely_number(self, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers of cells, the most probable first, each with labels (n, T), the best first."""
        objective = self._task.objective_with_error(self._cells, self._error)
        best = {
            number: self._combined(number, objective, rng) for number in range(1, _MAX_CELLS + 1)
        }

        def penalised_misfit(number):
            if not len(best[number]):
                return np.inf
            state = self._target.cells(best[number][:1], self._transmissibility)[0]
            return objective(self._target, state) * _PENALTY**number

        for number in sorted(best, key=penalised_misfit):
            yield number, self._improved(number, best[number], rng)

    def _improved(self, number, best, rng):
        """Labels of combinations after fits and translations of all cells."""
        if number == 1 or not len(best):
            return best
        for _ in range(number - 1):
            candidates = np.concatenate([best, self._descended(best, rng)])
            objective = self._task.objective_with_error(candidates, self._error)
            best = self._best(candidates, objective, self._budget.n_translated)
            objective = self._task.objective_with_error(best, self._error)
            translated = [self._translated(number, labels, objective, rng) for labels in best]
            best = self._best(np.concatenate(translated), objective, self._budget.n_best)
        candidates = np.concatenate([best, self._descended(best, rng)])
        return self._best(candidates, objective, self._budget.n_best)

    def _combined(self, number, objective, rng):
        """Labels of the best combinations, after exchanges of single cells."""
        cells, (effects, data) = self._cells, self._weighted(self._effects, objective)
        squares, disjoint = (effects**2).sum(axis=1), self._disjoint_cells
        indices = rng.integers(len(cells), size=(self._budget.n_combinations, number))
        for k in list(range(number)) * _N_EXCHANGES:
            others = np.delete(indices, k, axis=1)
            residuals = data - effects[others].sum(axis=1)
            gains = squares - 2 * residuals @ effects.T
            gains[~disjoint[others].all(axis=1)] = np.inf
            indices[:, k] = gains.argmin(axis=1)
            misfits = gains.min(axis=1) + (residuals**2).sum(axis=1)
        indices, first_row = np.unique(np.sort(indices, axis=1), axis=0, return_index=True)
        order = np.argsort(misfits[first_row])
        labels = self._with_reflections(cells[row] for row in indices[order])
        return self._best(labels, objective, self._budget.n_descents) if len(labels) else labels

    def _translated(self, number, labels, objective, rng):
        """The same labels (1, T), and those after the best joint translations of all cells."""
        cells = sorted(self._tools.operations.connected_cells(labels), key=np.sum)[-number:]
        candidates = [self._positions(cell, rng) for cell in cells]
        signals = self._target.simulate(np.concatenate(candidates), self._transmissibility)
        effects, data = self._weighted(signals - self._empty_signals, objective)
        effects = np.split(effects, np.cumsum([len(x) for x in candidates])[:-1])
        gains = [(x**2).sum(axis=1) - 2 * x @ data for x in effects]
        misfits = sum(np.ix_(*gains), np.zeros(()))
        for j, k in combinations(range(len(cells)), 2):
            disjoint = self._disjoint(candidates[j], candidates[k])
            cross_terms = np.where(disjoint, effects[j] @ effects[k].T, np.inf)
            other_axes = [axis for axis in range(len(cells)) if axis not in (j, k)]
            misfits = misfits + 2 * np.expand_dims(cross_terms, other_axes)
        n_arrangements = min(np.isfinite(misfits).sum(), _N_ARRANGEMENTS)
        order = np.argsort(misfits, axis=None)[:n_arrangements]
        arrangements = np.column_stack(np.unravel_index(order, misfits.shape))
        translated = self._with_reflections(
            np.array([x[n] for x, n in zip(candidates, arrangement, strict=True)])
            for arrangement in arrangements
        )
        return np.concatenate([labels[None], translated])

    def _with_reflections(self, combinations_of_cells):
        """Labels of combinations, each with all reflections of its cells but the first."""
        none = np.zeros((0, len(self._side)), dtype=bool)
        some = islice(combinations_of_cells, _MAX_SIMULATED)
        return np.concatenate([none, *map(self._tools.operations.with_reflections, some)])

    def _best(self, labels, objective, number):
        """The best of labels (N, T) that differ."""
        states = self._target.cells(labels, self._transmissibility)
        labels = labels[np.argsort([objective(self._target, state) for state in states])]
        return labels[self._tools.operations.distinct(labels, _MIN_DIFFERENT, number)]

    def _descended(self, combined, rng):
        """Labels (N, T) after Gauss-Newton steps."""

        def descend(labels, rng):
            initial = self._tools.descend.blurred(labels, self._transmissibility)
            return self._tools.descend(self._target, initial, rng, _N_STEPS).labels

        return np.array(in_threads(descend, combined, rng.spawn(len(combined))))

    def _weighted(self, effects, objective):
        """Effects (N, m) and the data that they should add up to, in the objective's metric."""
        weights = objective.root / self._target.sigma[:, None]
        return effects @ weights, (self._target.data - self._empty_signals) @ weights

    def _positions(self, cell, rng):
        """Labels (N, T) of a cell and of its translations to points of the grid, on one side."""
        points = rng.permutation(self._target.grid.points_um)[:_N_POSITIONS]
        translated = np.array([cell, *self._tools.operations.translated(points, cell)])
        in_box = translated.sum(axis=1) >= _MIN_INSIDE * cell.sum()
        return np.unique(self._on_one_side(translated[in_box]), axis=0)

    @cached_property
    def _disjoint_cells(self):
        return self._disjoint(self._cells, self._cells)

    def _disjoint(self, cells_a, cells_b):
        """Which pairs (N, n) of cells do not overlap, as they are or with one reflected."""
        cells_a = cells_a.astype(np.float32)
        reflected = cells_b[:, self._tools.operations.reflected]
        return (cells_a @ cells_b.T == 0) | (cells_a @ reflected.T == 0)

    def _on_one_side(self, cells):
        reflected = cells[:, self._tools.operations.reflected]
        return np.where((cells @ self._side < 0)[:, None], reflected, cells)
