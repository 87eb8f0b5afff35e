"""Initial cells that signals suggest: random ones, rotated, and combinations of several of them.

Descents never split a cell, so much depends on the initial cells. Rotated by the symmetries of the
box and combined, two thousand simulated cells are a billion candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipy_spinverse.cell_search.smooth.level_set import RASTER, FieldPrior, SmoothCells
from dipy_spinverse.cell_search.smooth.symmetries import Rotations

# Set by hand; what combinations contribute is in benchmarks/notes/walls_off_grid.md.
_MAX_FRACTION = 0.15  # of the box, of cells to be combined
_GAP = 0.4  # um, between combined cells
_N_COMPONENTS = 40  # principal components of signals, in which sums are compared
_BLOCK = 500  # rows of pairs at once, which bounds the memory
_MAX_SUMS = 4000  # best combinations, among which are enough that do not touch
_MAX_EXTENDED = 200  # combinations to which one more cell is added


@dataclass(frozen=True, eq=False)
class Examples:
    """Random cells."""

    fields: np.ndarray  # (N, R^3) on the raster
    log_permeability: np.ndarray  # (N,)
    signals: np.ndarray  # (N, M)
    empty: np.ndarray  # (M,) signals of the box without cells


class InitialCells:
    """Initial cells for the signals of a voxel, made of examples."""

    def __init__(self, examples: Examples, rotations: Rotations, prior: FieldPrior):
        self._examples, self._rotations, self._prior = examples, rotations, prior

    def scales(self, data: np.ndarray, sigma: np.ndarray, scale_of: np.ndarray) -> np.ndarray:
        """Scales (K,) of measurements, `scale_of` (K, M), that fit the nearest example."""
        least, best = np.inf, np.ones(len(scale_of))
        for x in self._rotated / sigma if len(scale_of) else ():
            scales = ((x * data / sigma) @ scale_of.T) / (x**2 @ scale_of.T)
            misfit = ((scales @ scale_of * x - data / sigma) ** 2).sum(axis=1)
            if misfit.min() < least:
                least, best = misfit.min(), scales[misfit.argmin()]
        return best

    def nearest(self, data: np.ndarray, sigma: np.ndarray, number: int) -> list[SmoothCells]:
        """Examples whose signals are nearest to data (M,) with errors (M,), each once."""
        misfit = np.array([(((x - data) / sigma) ** 2).sum(axis=1) for x in self._rotated])
        rotation, order = misfit.argmin(axis=0), misfit.min(axis=0).argsort()[:number]
        return [self._cells([self._field(rotation[n], n)], [n]) for n in order]

    def combined(
        self, data: np.ndarray, sigma: np.ndarray, numbers: Sequence[int]
    ) -> list[SmoothCells]:
        """Combinations of examples, `numbers` of two, of three and so on: effects of cells that do
        not touch on the signals of the empty box nearly add up."""
        small = np.flatnonzero((self._examples.fields > 0).mean(axis=1) < _MAX_FRACTION)
        effects, total_effect = self._effects(small, data, sigma)
        sums = _pairs(effects, total_effect)
        cells: list[SmoothCells] = []
        for number in numbers:
            disjoint = self._disjoint(sums, small)
            cells += self._distinct(disjoint, small, number)
            if disjoint:
                rows = np.array([indices for indices, _ in disjoint])
                sums = _with_one_more(rows, effects, total_effect)
        return cells

    def _effects(self, small, data, sigma):
        """Effects (N, C) of rotated small examples, and that of the data (C,)."""
        empty = self._examples.empty
        effects = np.concatenate(
            [((x[small] - empty) / sigma).astype("f4") for x in self._rotated]
        )
        basis = np.linalg.eigh(effects.T @ effects)[1][:, -_N_COMPONENTS:]
        return effects @ basis, ((data - empty) / sigma).astype("f4") @ basis

    def _disjoint(self, sums, small):
        """The first of sums (S, k) whose examples do not touch, with their fields (k, R^3)."""
        disjoint, tried = [], set()
        for indices in map(tuple, np.sort(sums, axis=1)):
            if indices in tried:
                continue
            tried.add(indices)
            fields = np.array([self._field(*self._rotation_of(n, small)) for n in indices])
            if (np.sort(fields, axis=0)[-2] < -_GAP).all():
                disjoint.append((indices, fields))
            if len(disjoint) == _MAX_EXTENDED:
                break
        return disjoint

    def _distinct(self, disjoint, small, number):
        """Cells of the first sums, each with an example that none before has."""
        cells: list[SmoothCells] = []
        used: set[int] = set()
        for indices, fields in disjoint:
            examples = [self._rotation_of(n, small)[1] for n in indices]
            if len(cells) < number and not used.issuperset(examples):
                cells.append(self._cells(fields, examples))
                used.update(examples)
        return cells

    def _rotation_of(self, index, small):
        rotation, n = divmod(index, len(small))
        return rotation, small[n]

    def _field(self, rotation, n):
        return self._rotations.fields(rotation, self._examples.fields[n : n + 1])[0]

    def _cells(self, fields, examples):
        """Cells of which each has the permeability of its example."""
        index = np.argmax(fields, axis=0).reshape((RASTER,) * 3)
        z = self._prior.coefficients_of(np.max(fields, axis=0))
        return SmoothCells(z, self._examples.log_permeability[examples], index)

    @cached_property
    def _rotated(self):
        """Signals (rotations, N, M) of all rotated examples."""
        signals, n_rotations = self._examples.signals, len(self._rotations.matrices)
        rotated = [self._rotations.signals(k, signals) for k in range(n_rotations)]
        return np.array(rotated, np.float32)


def _pairs(effects, total_effect):
    """Pairs (P, 2) whose effects add up to the total, with the best second of each first one."""
    single = ((total_effect - effects) ** 2).sum(axis=1)
    of_second = (effects**2).sum(axis=1) - 2 * effects @ total_effect
    indices = np.arange(len(effects))
    seconds, misfits = [], []
    for rows in np.split(indices, indices[_BLOCK::_BLOCK]):
        misfit = of_second + 2 * effects[rows] @ effects.T
        seconds.append(misfit.argmin(axis=1))
        misfits.append(single[rows] + misfit.min(axis=1))
    order = np.concatenate(misfits).argsort()[:_MAX_SUMS]
    return np.stack([indices, np.concatenate(seconds)], axis=1)[order]


def _with_one_more(sums, effects, total_effect):
    """Sums (S, k + 1) of effects that add up to the total, extended from sums (S, k)."""
    residual = total_effect - effects[sums].sum(axis=1)
    misfit = (residual**2).sum(axis=1)[:, None] - 2 * residual @ effects.T
    misfit = (misfit + (effects**2).sum(axis=1)).ravel()
    order = np.argpartition(misfit, min(_MAX_SUMS, len(misfit) - 1))[:_MAX_SUMS]
    order = order[misfit[order].argsort()]
    row, added = np.divmod(order, len(effects))
    return np.hstack([sums[row], added[:, None]])
