"""Cells that signals suggest: random ones, turned, and several of them beside each other.

Descents end in the shape that is nearest in form, not in the one that explains the data: they
never take a cell apart. So much depends on where they start. Turned by the rotations of the box
and put together, two thousand simulated cells are a billion candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipy_spinverse.cell_search.smooth.forward import SmoothCells
from dipy_spinverse.cell_search.smooth.level_set import RASTER, FieldPrior
from dipy_spinverse.cell_search.smooth.rotations import Rotations

_LARGEST = 0.15  # share of the box, of cells that leave room for another
_GAP = 0.4  # um, around cells that stand beside each other
_N_COMPONENTS = 40  # of signals, in which sums are compared
_AT_ONCE = 500  # first ones of pairs
_MOST_SUMS = 4000  # of which enough have to stand beside each other
_KEPT = 200  # that one more cell is put beside


@dataclass(frozen=True, eq=False)
class Examples:
    """Random cells: fields (N, R^3) on the raster, leaks (N,), signals (N, M).

    `empty` (M,) are the signals of the box without any.
    """

    fields: np.ndarray
    leaks: np.ndarray
    signals: np.ndarray
    empty: np.ndarray


class InitialCells:
    """Cells like those behind signals, made of examples."""

    def __init__(self, examples: Examples, rotations: Rotations, prior: FieldPrior):
        self._examples, self._rotations, self._prior = examples, rotations, prior

    def scales(self, data: np.ndarray, sigma: np.ndarray, scale_of: np.ndarray) -> np.ndarray:
        """Scales (K,) of measurements, `scale_of` (K, M), of the example that is nearest then."""
        best, found = np.inf, np.ones(len(scale_of))
        for x in self._turned / sigma if len(scale_of) else ():
            scales = ((x * data / sigma) @ scale_of.T) / (x**2 @ scale_of.T)
            misfit = ((scales @ scale_of * x - data / sigma) ** 2).sum(axis=1)
            if misfit.min() < best:
                best, found = misfit.min(), scales[misfit.argmin()]
        return found

    def nearest(self, data: np.ndarray, sigma: np.ndarray, number: int) -> list[SmoothCells]:
        """Examples whose signals are nearest to data (M,) with errors (M,), each once."""
        misfit = np.array([(((x - data) / sigma) ** 2).sum(axis=1) for x in self._turned])
        turn, chosen = misfit.argmin(axis=0), misfit.min(axis=0).argsort()[:number]
        return [self._cells([self._field(turn[n], n)], [n]) for n in chosen]

    def beside(
        self, data: np.ndarray, sigma: np.ndarray, numbers: Sequence[int]
    ) -> list[SmoothCells]:
        """Examples beside each other, whose signals add up to the data.

        Cells that do not touch hardly know of each other, so what each changes of the signals
        of the empty box adds up.

        Parameters
        ----------
        data, sigma : ndarray (M,)
        numbers : sequence of int
            How many of two examples, of three, and so on.
        """
        small = np.flatnonzero((self._examples.fields > 0).mean(axis=1) < _LARGEST)
        change, wanted = self._changes(small, data, sigma)
        sums, found = _pairs(change, wanted), []
        for number in numbers:
            apart = self._apart(sums, small)
            found += self._different(apart, small, number)
            if apart:
                sums = _with_one_more(np.array([which for which, _ in apart]), change, wanted)
        return found

    def _changes(self, small, data, sigma):
        """What turned small examples change (N, C) of the signals, and what is wanted (C,)."""
        empty = self._examples.empty
        change = np.concatenate([((x[small] - empty) / sigma).astype("f4") for x in self._turned])
        basis = np.linalg.eigh(change.T @ change)[1][:, -_N_COMPONENTS:]
        return change @ basis, ((data - empty) / sigma).astype("f4") @ basis

    def _apart(self, sums, small):
        """The first of sums (S, k) whose examples stand apart, and the fields (k, R^3) of each."""
        apart, seen = [], set()
        for which in map(tuple, np.sort(sums, axis=1)):
            if which in seen:
                continue
            seen.add(which)
            fields = np.array([self._field(*self._turn_of(n, small)) for n in which])
            if (np.sort(fields, axis=0)[-2] < -_GAP).all():
                apart.append((which, fields))
            if len(apart) == _KEPT:
                break
        return apart

    def _different(self, apart, small, number):
        """Cells of the first sums, each with an example that none before has."""
        found: list[SmoothCells] = []
        used: set[int] = set()
        for which, fields in apart:
            examples = [self._turn_of(n, small)[1] for n in which]
            if len(found) < number and not used.issuperset(examples):
                found.append(self._cells(fields, examples))
                used.update(examples)
        return found

    def _turn_of(self, which, small):
        turn, n = divmod(which, len(small))
        return turn, small[n]

    def _field(self, turn, n):
        return self._rotations.fields(turn, self._examples.fields[n : n + 1])[0]

    def _cells(self, fields, which):
        """Cells of which each has the walls of its example."""
        nearest = np.argmax(fields, axis=0).reshape((RASTER,) * 3)
        z = self._prior.field_of(np.max(fields, axis=0))
        return SmoothCells(z, self._examples.leaks[which], nearest)

    @cached_property
    def _turned(self):
        """Signals (rotations, N, M) of all turned examples."""
        every = range(len(self._rotations))
        signals = self._examples.signals
        return np.array([self._rotations.signals(k, signals) for k in every], np.float32)


def _pairs(change, wanted):
    """Pairs (P, 2) that add up to what is wanted, of each first one the best second."""
    alone = ((wanted - change) ** 2).sum(axis=1)
    second_alone = (change**2).sum(axis=1) - 2 * change @ wanted
    every = np.arange(len(change))
    seconds, misfits = [], []
    for first in np.split(every, every[_AT_ONCE::_AT_ONCE]):
        misfit = second_alone + 2 * change[first] @ change.T
        seconds.append(misfit.argmin(axis=1))
        misfits.append(alone[first] + misfit.min(axis=1))
    best = np.concatenate(misfits).argsort()[:_MOST_SUMS]
    return np.stack([every, np.concatenate(seconds)], axis=1)[best]


def _with_one_more(sums, change, wanted):
    """Sums (S, k + 1) that add up to what is wanted, of some (S, k) and one more."""
    rest = wanted - change[sums].sum(axis=1)
    misfit = (rest**2).sum(axis=1)[:, None] - 2 * rest @ change.T + (change**2).sum(axis=1)
    misfit = misfit.ravel()
    best = np.argpartition(misfit, min(_MOST_SUMS, len(misfit) - 1))[:_MOST_SUMS]
    best = best[misfit[best].argsort()]
    before, more = np.divmod(best, len(change))
    return np.hstack([sums[before], more[:, None]])
