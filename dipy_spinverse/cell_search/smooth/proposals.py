"""Cells that signals suggest: random ones, turned, and two of them beside each other.

Descents end in the shape that is nearest in form, not in the one that explains the data: they
never take a cell apart. So much depends on where they start. Turned by the rotations of the box
and put together, two thousand simulated cells are a billion candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipy_spinverse.cell_search.smooth.forward import SmoothCells, as_one
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior
from dipy_spinverse.cell_search.smooth.rotations import Rotations

_LARGEST = 0.15  # share of the box, of cells that leave room for another
_GAP = 0.4  # um, around cells that stand beside each other
_N_COMPONENTS = 40  # of signals, in which pairs are compared
_AT_ONCE = 500  # first ones of pairs
_MOST_PAIRS = 4000  # of which enough have to stand beside each other


@dataclass(frozen=True, eq=False)
class Examples:
    """Random cells: fields (N, R^3) on the raster, leaks (N,), signals (N, M).

    `empty` (M,) are the signals of the box without any.
    """

    fields: np.ndarray
    leaks: np.ndarray
    signals: np.ndarray
    empty: np.ndarray


class Proposals:
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

    def pairs(self, data: np.ndarray, sigma: np.ndarray, number: int) -> list[SmoothCells]:
        """Two examples beside each other, whose signals add up to the data.

        Cells that do not touch hardly know of each other, so what each changes of the signals
        of the empty box adds up.
        """
        small = np.flatnonzero((self._examples.fields > 0).mean(axis=1) < _LARGEST)
        found: list[SmoothCells] = []
        used: set[int] = set()
        for pair in self._adding_up(small, data, sigma):
            turns, places = np.divmod(pair, len(small))
            fields = [self._field(k, small[n]) for k, n in zip(turns, places, strict=True)]
            overlap = (np.min(fields, axis=0) > -_GAP).any()
            if len(found) < number and not overlap and not used.issuperset(places.tolist()):
                found.append(self._cells(fields, small[places]))
                used.update(places.tolist())
        return found

    def _adding_up(self, small, data, sigma):
        """Pairs of turned small examples, the best first: of each first one the best second."""
        empty = self._examples.empty
        change = np.concatenate([((x[small] - empty) / sigma).astype("f4") for x in self._turned])
        basis = np.linalg.eigh(change.T @ change)[1][:, -_N_COMPONENTS:]
        change, wanted = change @ basis, ((data - empty) / sigma).astype("f4") @ basis
        alone = ((wanted - change) ** 2).sum(axis=1)
        second_alone = (change**2).sum(axis=1) - 2 * change @ wanted
        every = np.arange(len(change))
        seconds, misfits = [], []
        for first in np.split(every, every[_AT_ONCE::_AT_ONCE]):
            misfit = second_alone + 2 * change[first] @ change.T
            seconds.append(misfit.argmin(axis=1))
            misfits.append(alone[first] + misfit.min(axis=1))
        best = np.concatenate(misfits).argsort()[:_MOST_PAIRS]
        return np.stack([every, np.concatenate(seconds)], axis=1)[best]

    def _field(self, turn, n):
        return self._rotations.fields(turn, self._examples.fields[n : n + 1])[0]

    def _cells(self, fields, which):
        z = self._prior.field_of(np.max(fields, axis=0))
        return as_one(z, self._examples.leaks[which].mean())

    @cached_property
    def _turned(self):
        """Signals (rotations, N, M) of all turned examples."""
        every = range(len(self._rotations))
        signals = self._examples.signals
        return np.array([self._rotations.signals(k, signals) for k in every], np.float32)
