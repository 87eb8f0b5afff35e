"""Cells apart from each other, put together from single ones."""

from __future__ import annotations

from itertools import product

import numpy as np

from dipy_spinverse.cell_search.changes import Changes
from dipy_spinverse.cell_search.descent import Descent
from dipy_spinverse.cell_search.exact_data import ExactData

# Rounds, the single cells that each adds, and those that it keeps.
_N_ROUNDS, _N_NEW, _N_KEPT = 10, 300, 1200
# The best combinations of cells, and those of them, in so many tetrahedra apart, whose cells are
# varied.
_N_BEST, _N_LINES, _APART = 800, 8, 12
# How often a cell is moved, by how much relative to other changes, and how often these are equal.
_MOVED, _MOVES, _CHANCES = 0.7, (0.3, 0.7, 1.0, 4.0), (0.3, 0.3, 0.3, 0.1)
# How often a cell is deformed, and standard deviations of its shares: smooth ones, and of all.
_DEFORMED, _DEFORMATIONS, _GROWTH = 0.6, (0.045, 0.09, 0.15), 0.08
_LEAST_CELL = 4


class SeparateCells:
    """Cells that together explain the data of a voxel, nearly.

    What a cell changes in the signals depends little on cells elsewhere: changes add up, but for
    about their product. So simulations of N single cells tell, nearly, the signals of all pairs
    and triples of them, and single cells evolve by how well the best others complete them.

    Parameters
    ----------
    task : ExactData
    descend : Descent
    changes : Changes
    leaks : ndarray (2,)
    """

    def __init__(self, task: ExactData, descend: Descent, changes: Changes, leaks: np.ndarray):
        self._task, self._target, self._leaks = task, task.survey, leaks
        self._descend, self._changes = descend, changes
        grid = self._target.grid
        nothing = np.zeros((1, grid.n_tetrahedra), dtype=bool)
        self._nothing = self._target.simulate(nothing, leaks)[0]
        self._error = ((self._target.data - self._nothing) ** 2).mean()
        # No signal tells a cell from its reflection, but for others: all are on the same side.
        self._side = (grid.centroids - grid.centroids.mean(axis=0)) @ [1.0, 0.7, 0.4]

    def found(
        self, number: int, cells: np.ndarray, signals: np.ndarray, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Labels (T,) of cells together that differ from each other, the best first.

        Parameters
        ----------
        number : int
            Of cells: 2 or 3.
        cells : ndarray (N, T) of bool
            Single cells to begin with.
        signals : ndarray (N, m)
        rng : Generator
        """
        cells, effects = self._on_one_side(cells), signals - self._nothing
        judge = self._task.surveyor(cells, self._error)
        for _ in range(_N_ROUNDS):
            best, lines = self._best(number, cells, effects, judge)
            if not len(best):
                return []
            placed = [self._placed(cells[chosen])[0] for chosen in lines]
            judge = self._task.surveyor(placed, self._error)
            parents = cells[np.resize(lines, _N_NEW)]
            varied = np.array([self._varied(cell, rng) for cell in parents])
            new = np.unique(self._on_one_side(varied), axis=0)
            used = np.unique(best)
            others = rng.permutation(np.setdiff1d(np.arange(len(cells)), used))
            kept = np.append(used, others[: max(_N_KEPT - len(used), 0)])
            cells = np.concatenate([cells[kept], new])
            changed = self._target.simulate(new, self._leaks) - self._nothing
            effects = np.concatenate([effects[kept], changed])
        lines = self._best(number, cells, effects, judge)[1]
        placed = np.array([labels for chosen in lines for labels in self._placed(cells[chosen])])
        states = self._target.cells(placed, self._leaks)
        placed = placed[np.argsort([judge(self._target, state) for state in states])]
        return [placed[k] for k in self._that_differ(placed)]

    def _best(self, number, cells, effects, judge):
        """Indices (n, number) of the cells that explain the data best together.

        Of all that are kept, and of the first that differ.
        """
        weights = judge.root / self._target.sigma[:, None]
        effects, rest = effects @ weights, (self._target.data - self._nothing) @ weights
        squares, products = (effects**2).sum(axis=1), effects @ rest
        gains = squares - 2 * products
        misfit = gains[:, None] + gains + 2 * effects @ effects.T
        shares, mirrored = cells.astype(np.float32), self._changes.mirrored
        apart = (shares @ shares.T == 0) | (shares @ shares[:, mirrored].T == 0)
        misfit[~apart | np.tri(len(cells), dtype=bool)] = np.inf
        chosen = np.argpartition(misfit, _N_BEST, axis=None)[:_N_BEST]
        best = np.column_stack(np.unravel_index(chosen, misfit.shape))
        values = misfit[tuple(best.T)]
        if number == 3:
            rests = rest - effects[best].sum(axis=1)
            values = values[:, None] + squares - 2 * rests @ effects.T
            values[~apart[best].all(axis=1)] = np.inf
            best = np.column_stack([best, values.argmin(axis=1)])
            best, first = np.unique(np.sort(best, axis=1), axis=0, return_index=True)
            values = values.min(axis=1)[first]
        best = best[np.argsort(values)][: np.isfinite(values).sum()]
        best = best[[len(self._placed(cells[chosen])) > 0 for chosen in best]]
        return best, best[self._that_differ(np.any(cells[best], axis=1))]

    def _that_differ(self, labels):
        return self._changes.that_differ(labels, _APART, _N_LINES)

    def _placed(self, cells):
        """Labels of cells together, each but the first as it is and reflected."""
        sides = ((cell, cell[self._changes.mirrored]) for cell in cells[1:])
        placed = [np.array([cells[0], *others]) for others in product(*sides)]
        return [some.any(axis=0) for some in placed if some.sum(axis=0).max() == 1]

    def _on_one_side(self, cells):
        turned = cells[:, self._changes.mirrored]
        return np.where((cells @ self._side < 0)[:, None], turned, cells)

    def _varied(self, cell, rng):
        """A cell that is moved or deformed at random."""
        varied = cell
        if rng.random() < _MOVED:
            varied = self._changes.moved(cell, rng, rng.choice(_MOVES, p=_CHANCES))
        if rng.random() < _DEFORMED:
            noise = self._descend.blurred(rng.standard_normal(len(cell)))
            noise *= rng.choice(_DEFORMATIONS) / noise.std()
            share = self._descend.blurred(varied) + noise + rng.normal(0, _GROWTH)
            varied = share > 0.5
        return varied if varied.sum() >= _LEAST_CELL else cell
