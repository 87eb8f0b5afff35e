"""Where lines of the search end: as the limit of fine grids has it, and at other places, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np

from dipy_spinverse.cell_search.shared_errors import most_probable_errors, whitening
from dipy_spinverse.cell_search.smooth.descent import Fitted, SmoothDescent
from dipy_spinverse.cell_search.smooth.effort import SmoothEffort
from dipy_spinverse.cell_search.smooth.forward import (
    LimitModel,
    SmoothCells,
    SmoothModel,
    split_into_cells,
    without_unresolved_cells,
)
from dipy_spinverse.cell_search.smooth.symmetry_images import symmetry_images

# Of minus twice the log probability: what another correction may bring at least, and how far from
# the best end a corrected line is given up.
_LEAST_GAIN, _HOPELESS = 1.0, 100.0


@dataclass(frozen=True, eq=False)
class LocalMinimum:
    """Where a line of the search ends.

    Attributes
    ----------
    fitted : Fitted
        To all data, in the limit of fine grids.
    signals : ndarray (M,)
        There.
    narrowing : float
        Minus twice the log of how much of the prior's volume around the cells data leave.
    shared : ndarray (k,)
        Errors that measurements share, in standard deviations.
    """

    fitted: Fitted
    signals: np.ndarray
    narrowing: float
    shared: np.ndarray

    @property
    def improbability(self) -> float:
        """Minus twice the log probability of the cells and those around them, but for a constant.

        Of two ends as probable, that with more room around it is the more likely one.
        """
        return self.fitted.improbability + self.narrowing


@dataclass(frozen=True, eq=False)
class LimitRefinement:
    """The last steps of lines.

    Parameters
    ----------
    fine : SmoothModel
        Of all measurements.
    limit : LimitModel
        Of those that the target wants.
    descend : SmoothDescent
        On the fine grid.
    effort : SmoothEffort
    """

    fine: SmoothModel
    limit: LimitModel
    descend: SmoothDescent
    effort: SmoothEffort

    def __call__(self, cells: SmoothCells, best: float = np.inf) -> LocalMinimum:
        """The best end of a line after some steps, corrected by the limit each time.

        A correction belongs to one shape, so steps far from it can lead away from the data: then
        fewer are taken. Lines that stay far above the improbability of the best one are given up.
        """
        prior = self.descend.prior
        cells = split_into_cells(without_unresolved_cells(cells, prior), prior)
        end, n_steps = self.at(cells), self.effort.n_steps_last
        for _ in range(self.effort.n_corrections):
            descend = self._exact_for(self.descend, end)
            there = descend(descend.fitted(end.fitted.cells), n_steps).cells
            there = self.at(without_unresolved_cells(there, prior))
            gain = end.improbability - there.improbability
            end = min(end, there, key=_improbability)
            if gain < _LEAST_GAIN:
                n_steps //= 2
            if n_steps == 0 or 0 < gain < _LEAST_GAIN or end.improbability > best + _HOPELESS:
                break
        return end

    def with_symmetry_images(self, ends: Sequence[LocalMinimum]) -> list[LocalMinimum]:
        """Ends, and those of lines from the best one's cells at other places, the best first.

        What a place changes of the signals is less than what the lattices of the search err by.
        The best line goes on at last.
        """
        ends = sorted(ends, key=_improbability)
        for _ in range(self.effort.n_rounds):
            best, rough = ends[0], replace(self.descend, exact=self.descend.slopes)
            moved = symmetry_images(best.fitted.cells, self.descend.prior)
            for descend, number in (
                (rough, self.effort.n_places_ranked),
                (self.descend, self.effort.n_places),
            ):
                moved = _most_probable(moved, self._exact_for(descend, best))[:number]
            ends += [self(cells, best.improbability) for cells in moved]
            ends = sorted(ends, key=_improbability)
            if ends[0] is best:
                break
        ends[0] = self(ends[0].fitted.cells)
        return ends

    def of_lines(self, lines: Sequence[SmoothCells]) -> list[LocalMinimum]:
        """Where lines end, the best first."""
        ends: list[LocalMinimum] = []
        for cells in lines:
            ends.append(self(cells, min(map(_improbability, ends), default=np.inf)))
        return sorted(ends, key=_improbability)

    def at(self, cells: SmoothCells) -> LocalMinimum:
        """Cells as an end, without a step."""
        target, jacobian = self.descend.target, self.descend.jacobian(cells)
        signals = self._signals(cells)
        residual = target.complete.residual_of(signals)
        narrowing = np.linalg.slogdet(np.eye(len(jacobian)) + jacobian @ jacobian.T)[1]
        fitted = Fitted(cells, whitening(target.shared) @ residual)
        return LocalMinimum(
            fitted, signals, float(narrowing), most_probable_errors(target.shared, residual)
        )

    def _signals(self, cells):
        """Signals (M,) in the limit: a few foretell what all differ by from the fine grid's."""
        target, simulated = self.descend.target, self.descend.exact.signals(cells)
        change = self.limit.signals(cells) - simulated
        return self.fine.signals(cells) + target.foretold_change(change)

    def _exact_for(self, descend, end):
        """Descents to data that are corrected for the cells of an end."""
        simulated = descend.exact.signals(end.fitted.cells)
        return replace(descend, target=descend.target.exact_for(end.signals, simulated))


def _most_probable(some, descend):
    """Cells in the order of their probability."""
    fitted = sorted((descend.fitted(cells) for cells in some), key=_improbability)
    return [one.cells for one in fitted]


_improbability = attrgetter("improbability")
