"""Cells apart from each other, put together from single ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import combinations, product

import numpy as np

from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.labelled import SimulatedCells
from dipy_spinverse.threads import in_threads

# Chosen on the shapes of benchmarks/shapes.py.
_ONE_MORE = 1.3  # times that one cell more makes the misfit smaller, where it is not there
_APART = 8  # tetrahedra in which combinations differ
_LEAST_LEFT = 0.6  # of a cell that the box cuts off


class SeparateCells:
    """Cells that together explain the data of a voxel, nearly.

    What a cell changes in the signals depends little on cells elsewhere: changes add up, but for
    about their product. So simulations of N single cells tell, nearly, the signals of all pairs
    and triples of them, and those of single cells at all places the signals of all arrangements.

    Parameters
    ----------
    task : ExactData
    single : Simulated
        Single cells, each alone, as the task's target measures them.
    """

    def __init__(self, task: ExactData, single: SimulatedCells):
        self._task, self._target, tools = task, task.target, task.tools
        self._descend, self._changes, self._leaks = tools.descend, tools.changes, tools.leaks
        self._effort = tools.effort.together
        grid = self._target.grid
        nothing = np.zeros((1, grid.n_tetrahedra), dtype=bool)
        self._nothing = self._target.simulate(nothing, self._leaks)[0]
        self._error = ((self._target.data - self._nothing) ** 2).mean()
        # No signal tells a cell from its reflection, but for others: all are on the same side.
        self._side = (grid.centroids - grid.centroids.mean(axis=0)) @ [1.0, 0.7, 0.4]
        self._cells = self._on_one_side(single.labels)
        self._effects = single.signals - self._nothing

    def in_likely_numbers(self, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers of cells, the likeliest first, and labels (n, T) of so many together.

        The labels differ from each other, the best come first.
        """
        judge = self._task.judge_with_error(self._cells, self._error)
        best = {number: self._combined(number, judge, rng) for number in (1, 2, 3)}

        def unlikely(number):
            if not len(best[number]):
                return np.inf
            state = self._target.cells(best[number][:1], self._leaks)[0]
            return judge(self._target, state) * _ONE_MORE**number

        for number in sorted(best, key=unlikely):
            yield number, self._improved(number, best[number], rng)

    def _improved(self, number, best, rng):
        """Labels of several cells together after descents, and moves of all cells."""
        if number == 1 or not len(best):
            return best
        for _ in range(number - 1):
            lines = np.concatenate([best, self._descended(best, rng)])
            judge = self._task.judge_with_error(lines, self._error)
            best = self._best(lines, judge, self._effort.n_moved)
            judge = self._task.judge_with_error(best, self._error)
            moved = [self._moved(number, labels, judge, rng) for labels in best]
            best = self._best(np.concatenate(moved), judge, self._effort.n_found)
        lines = np.concatenate([best, self._descended(best, rng)])
        return self._best(lines, judge, self._effort.n_found)

    def _combined(self, number, judge, rng):
        """Labels of the best combinations, which no exchange of one cell makes better."""
        cells, (effects, rest) = self._cells, self._weighted(self._effects, judge)
        squares, apart = (effects**2).sum(axis=1), self._cells_apart
        chosen = rng.integers(len(cells), size=(self._effort.n_combined, number))
        for k in list(range(number)) * self._effort.n_exchanges:
            others = np.delete(chosen, k, axis=1)
            rests = rest - effects[others].sum(axis=1)
            misfits = squares - 2 * rests @ effects.T
            misfits[~apart[others].all(axis=1)] = np.inf
            chosen[:, k] = misfits.argmin(axis=1)
            values = misfits.min(axis=1) + (rests**2).sum(axis=1)
        chosen, first = np.unique(np.sort(chosen, axis=1), axis=0, return_index=True)
        labels = self._placed(cells[some] for some in chosen[np.argsort(values[first])])
        return self._best(labels, judge, self._effort.n_lines) if len(labels) else labels

    def _moved(self, number, labels, judge, rng):
        """The same labels, and those after the best moves of all their cells at once."""
        cells = sorted(self._changes.connected_cells(labels), key=np.sum)[-number:]
        places = [self._places(cell, rng) for cell in cells]
        effects = self._target.simulate(np.concatenate(places), self._leaks) - self._nothing
        effects, rest = self._weighted(effects, judge)
        effects = np.split(effects, np.cumsum([len(some) for some in places])[:-1])
        gains = [(some**2).sum(axis=1) - 2 * some @ rest for some in effects]
        misfits = sum(np.ix_(*gains), np.zeros(()))
        for j, k in combinations(range(len(cells)), 2):
            both = np.where(self._apart(places[j], places[k]), effects[j] @ effects[k].T, np.inf)
            others = [axis for axis in range(len(cells)) if axis not in (j, k)]
            misfits = misfits + 2 * np.expand_dims(both, others)
        n_moves = min(np.isfinite(misfits).sum(), self._effort.n_moves)
        order = np.argsort(misfits, axis=None)[:n_moves]
        arrangements = np.column_stack(np.unravel_index(order, misfits.shape))
        placed = self._placed(
            np.array([some[m] for some, m in zip(places, moves, strict=True)])
            for moves in arrangements
        )
        return np.concatenate([labels[None], placed])

    def _placed(self, several):
        """Labels of cells together, the first as they are and the others also reflected."""
        placed = [np.zeros((0, len(self._side)), dtype=bool)]
        for cells in several:
            sides = ((cell, cell[self._changes.mirrored]) for cell in cells[1:])
            sets = np.array([[cells[0], *others] for others in product(*sides)])
            placed.append(sets[sets.sum(axis=1).max(axis=1) == 1].any(axis=1))
            if len(placed) > self._effort.n_simulated:
                break
        return np.concatenate(placed)

    def _best(self, labels, judge, number):
        """The best of labels (N, T) that differ."""
        states = self._target.cells(labels, self._leaks)
        labels = labels[np.argsort([judge(self._target, state) for state in states])]
        return labels[self._changes.that_differ(labels, _APART, number)]

    def _descended(self, several, rng):
        def descend(labels, own_rng):
            start = self._descend.blurred(labels, self._leaks)
            return self._descend(self._target, start, own_rng, self._effort.n_steps).labels

        return np.array(in_threads(descend, several, rng.spawn(len(several))))

    def _weighted(self, effects, judge):
        """Effects (N, m) and what data they should add up to, as a judge weighs them."""
        weights = judge.misfit.root / self._target.sigma[:, None]
        return effects @ weights, (self._target.data - self._nothing) @ weights

    def _places(self, cell, rng):
        """Labels of a cell where it is and where points of the grid are, on one side of it."""
        points = rng.permutation(self._target.grid.points_um)[: self._effort.n_places]
        moved = np.array([cell, *self._changes.moved_to(points, cell)])
        left = moved.sum(axis=1) >= _LEAST_LEFT * cell.sum()
        return np.unique(self._on_one_side(moved[left]), axis=0)

    @cached_property
    def _cells_apart(self):
        return self._apart(self._cells, self._cells)

    def _apart(self, some, others):
        """Which cells (N, T) and others (n, T) do not overlap, as they are or reflected."""
        some, turned = some.astype(np.float32), others[:, self._changes.mirrored]
        return (some @ others.T == 0) | (some @ turned.T == 0)

    def _on_one_side(self, cells):
        turned = cells[:, self._changes.mirrored]
        return np.where((cells @ self._side < 0)[:, None], turned, cells)
