"""Local minima of a search, in the limit of fine grids, and those of symmetry images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np

from dipy_spinverse.cell_search.condensed import most_probable_errors, whitening
from dipy_spinverse.cell_search.smooth.budget import SmoothSearchBudget
from dipy_spinverse.cell_search.smooth.descent import (
    FittedCells,
    SmoothDescent,
    most_probable_first,
)
from dipy_spinverse.cell_search.smooth.forward import LimitModel, SmoothModel
from dipy_spinverse.cell_search.smooth.level_set import (
    SmoothCells,
    split_into_cells,
    without_unresolved_cells,
)
from dipy_spinverse.cell_search.smooth.symmetries import symmetry_images

# Of twice the log posterior: least gain of another correction, and difference from the best local
# minimum at which a descent is abandoned (benchmarks/notes/walls_off_grid.md).
_MIN_GAIN, _ABANDONED = 1.0, 100.0
_N_RANKED = 12  # symmetry images that the fine grid ranks, after the middle one


@dataclass(frozen=True, eq=False)
class LocalMinimum:
    """A local minimum of minus the log posterior."""

    fitted: FittedCells  # to all data, in the limit of fine grids
    signals: np.ndarray  # (M,) in that limit
    log_volume_ratio: float  # -2 log of the volume of the posterior around it over the prior's
    shared: np.ndarray  # (k,) errors that measurements share, in standard deviations

    @property
    def neg2_log_evidence(self) -> float:
        """Minus twice the log probability of the region around the cells (Laplace)."""
        return self.fitted.neg2_log_posterior + self.log_volume_ratio


_neg2_log_evidence = attrgetter("neg2_log_evidence")


@dataclass(frozen=True, eq=False)
class LimitRefinement:
    """The last steps of descents, with signals in the limit of fine grids."""

    fine: SmoothModel  # of all measurements
    limit: LimitModel  # of those of the target
    descend: SmoothDescent  # on the fine grid
    budget: SmoothSearchBudget

    def __call__(self, cells: SmoothCells, best: float = np.inf) -> LocalMinimum:
        """The best of the states after some steps, corrected by the limit each time: fewer where
        they lead away from the data, as corrections belong to one shape. Those far above `best`
        are abandoned."""
        prior = self.descend.prior
        cells = split_into_cells(without_unresolved_cells(cells, prior), prior)
        minimum, n_steps = self.at(cells), self.budget.n_final_steps
        for _ in range(self.budget.n_corrections):
            descend = self._exact_for(self.descend, minimum)
            cells = descend(descend.fitted(minimum.fitted.cells), n_steps).cells
            candidate = self.at(without_unresolved_cells(cells, prior))
            gain = minimum.neg2_log_evidence - candidate.neg2_log_evidence
            minimum = min(minimum, candidate, key=_neg2_log_evidence)
            if gain < _MIN_GAIN:
                n_steps //= 2
            abandoned = minimum.neg2_log_evidence > best + _ABANDONED
            if n_steps == 0 or 0 < gain < _MIN_GAIN or abandoned:
                break
        return minimum

    def all_of(self, candidates: Sequence[SmoothCells]) -> list[LocalMinimum]:
        """Local minima of several cells, the best first."""
        minima: list[LocalMinimum] = []
        for cells in candidates:
            best = min(map(_neg2_log_evidence, minima), default=np.inf)
            minima.append(self(cells, best))
        return sorted(minima, key=_neg2_log_evidence)

    def with_symmetry_images(self, minima: Sequence[LocalMinimum]) -> list[LocalMinimum]:
        """Local minima, and those from symmetry images of the best one, the best first, once more
        refined. Images are ranked on the fine grid: they differ by less than errors of coarser
        ones."""
        minima = sorted(minima, key=_neg2_log_evidence)
        rough = replace(self.descend, signal_model=self.descend.slope_model)
        for _ in range(self.budget.n_image_rounds):
            best = minima[0]
            images = symmetry_images(best.fitted.cells, self.descend.prior)
            for descend, number in (rough, _N_RANKED), (self.descend, self.budget.n_images[1]):
                fitted = map(self._exact_for(descend, best).fitted, images)
                images = [x.cells for x in most_probable_first(fitted)[:number]]
            minima += [self(cells, best.neg2_log_evidence) for cells in images]
            minima = sorted(minima, key=_neg2_log_evidence)
            if minima[0] is best:
                break
        minima[0] = self(minima[0].fitted.cells)
        return minima

    def at(self, cells: SmoothCells) -> LocalMinimum:
        """Cells as a local minimum, without a step."""
        target, jacobian = self.descend.target, self.descend.jacobian(cells)
        signals = self._signals(cells)
        residual = target.complete.residual_of(signals)
        log_volume_ratio = np.linalg.slogdet(np.eye(len(jacobian)) + jacobian @ jacobian.T)[1]
        fitted = FittedCells(cells, whitening(target.shared) @ residual)
        shared = most_probable_errors(target.shared, residual)
        return LocalMinimum(fitted, signals, float(log_volume_ratio), shared)

    def _signals(self, cells):
        """Signals (M,) in the limit; their difference from the fine grid's follows from a few."""
        target, simulated = self.descend.target, self.descend.signal_model.signals(cells)
        change = self.limit.signals(cells) - simulated
        return self.fine.signals(cells) + target.predicted_change(change)

    def _exact_for(self, descend, minimum):
        """Descents to data that are corrected for the cells of a local minimum."""
        simulated = descend.signal_model.signals(minimum.fitted.cells)
        return replace(descend, target=descend.target.exact_for(minimum.signals, simulated))
