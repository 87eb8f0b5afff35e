"""Where lines of the search end: as the limit of fine grids has it, and at other places, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np

from dipy_spinverse.cell_search.smooth.descent import Fitted, SmoothDescent
from dipy_spinverse.cell_search.smooth.effort import SmoothEffort
from dipy_spinverse.cell_search.smooth.elsewhere import elsewhere
from dipy_spinverse.cell_search.smooth.forward import LimitModel, SmoothCells, taken_apart

_LEAST_GAIN = 1.0  # of minus twice the log probability, that another correction may bring


@dataclass(frozen=True, eq=False)
class End:
    """Where a line of the search ends.

    Attributes
    ----------
    fitted : Fitted
        To all data, in the limit of fine grids.
    signals : ndarray (M,)
        There.
    """

    fitted: Fitted
    signals: np.ndarray

    @property
    def improbability(self) -> float:
        """Minus twice the log probability, but for a constant."""
        return self.fitted.improbability


@dataclass(frozen=True, eq=False)
class Ending:
    """The last steps of lines.

    Parameters
    ----------
    limit : LimitModel
    descend : SmoothDescent
        On a fine grid.
    effort : SmoothEffort
    """

    limit: LimitModel
    descend: SmoothDescent
    effort: SmoothEffort

    def __call__(self, cells: SmoothCells) -> End:
        """The best end of a line after some steps, corrected by the limit each time.

        A correction belongs to one shape, so steps far from it can lead away from the data.
        """
        complete, ends = self.descend.target.complete, []
        cells = taken_apart(cells, self.descend.prior)
        signals = self.limit.signals(cells)
        for _ in range(self.effort.n_corrections):
            descend = self._exact_for(cells, signals)
            cells = descend(descend.fitted(cells), self.effort.n_steps_last).cells
            signals = self.limit.signals(cells)
            residual = complete.data / complete.sigma - complete.expected(signals)
            ends.append(End(Fitted(cells, residual), signals))
            if len(ends) > 1 and ends[-1].improbability > ends[-2].improbability - _LEAST_GAIN:
                break
        return min(ends, key=_improbability)

    def elsewhere(self, ends: Sequence[End]) -> list[End]:
        """Ends, and those of lines from the best one's cells at other places, the best first.

        What a place changes of the signals is less than what the lattices of the search err by.
        """
        ends = sorted(ends, key=_improbability)
        for _ in range(self.effort.n_rounds):
            best, prior = ends[0], self.descend.prior
            descend = self._exact_for(best.fitted.cells, best.signals)
            moved = [descend.fitted(cells) for cells in elsewhere(best.fitted.cells, prior)]
            moved = sorted(moved, key=_improbability)[: self.effort.n_places]
            ends = sorted([*ends, *(self(x.cells) for x in moved)], key=_improbability)
            if ends[0] is best:
                break
        return ends

    def _exact_for(self, cells, signals):
        """Descents to data that are corrected for cells of these signals."""
        simulated = self.descend.exact.signals(cells)
        return replace(self.descend, target=self.descend.target.exact_for(signals, simulated))


_improbability = attrgetter("improbability")
