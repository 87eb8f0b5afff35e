"""The search for smooth cells: many starts on a coarse grid, the best of them on a fine one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.cell_search.condensed import CondensedTarget, LinearPrediction
from dipy_spinverse.cell_search.labelled import Target
from dipy_spinverse.cell_search.shared_errors import most_probable_errors
from dipy_spinverse.cell_search.smooth.descent import SmoothDescent
from dipy_spinverse.cell_search.smooth.effort import DEFAULT_EFFORT, SmoothEffort
from dipy_spinverse.cell_search.smooth.forward import (
    LimitModel,
    SmoothCells,
    SmoothModel,
    single_cell_field,
    without_unresolved_cells,
)
from dipy_spinverse.cell_search.smooth.initial_cells import Examples, InitialCells
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior
from dipy_spinverse.cell_search.smooth.local_minima import LimitRefinement
from dipy_spinverse.cell_search.smooth.posterior_samples import posterior_sample
from dipy_spinverse.cell_search.smooth.random_cells import random_cells
from dipy_spinverse.cell_search.smooth.rotations import Rotations
from dipy_spinverse.cell_search.smooth.symmetry_images import symmetry_images
from dipy_spinverse.cell_search.smooth.voxel_data import SCALE_SD, VoxelData

# Error of condensed data, in units of the noise, on the coarse grid: on a fine one it is more.
_RIDGE = 0.02
# Of the difference of two ends that descents which go on for long still take back.
_UNFINISHED = 4.0
_THE_SAME = 0.95  # overlap of two lines of which one goes on
# Over the signal without diffusion weighting: to how much of it examples are foretold.
_TYPICAL_NOISE = 1 / 50
# Relative standard deviation of a diffusivity that is not known.
_DIFFUSIVITY_SD = 0.05


@dataclass(frozen=True, eq=False)
class SmoothSearchResult:
    """The most probable smooth cells of a voxel, others in proportion to their probability.

    Attributes
    ----------
    best : SmoothCells
    draws : list of SmoothCells
    signals : ndarray (M,)
        Of the best, in the limit of fine grids, for the scales and the diffusivity found.
    scales : ndarray (K,)
        Those that were not known.
    diffusivity : float
        um^2/ms.
    n_steps : int
        Steps of a line.
    """

    best: SmoothCells
    draws: list[SmoothCells]
    signals: np.ndarray
    scales: np.ndarray
    diffusivity: float
    n_steps: int


class SmoothSearch:
    """A search for smooth cells, prepared for many voxels of one acquisition in one box.

    Parameters
    ----------
    acquisition : Acquisition
        Without repeats.
    box_um : ndarray (3,)
    diffusivity : float
        um^2/ms.
    seed : int
    effort : SmoothEffort, optional
    diffusivity_known : bool, optional
        Otherwise it may be off by 5 %, as one standard deviation.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        box_um: np.ndarray,
        *,
        diffusivity: float,
        seed: int,
        effort: SmoothEffort = DEFAULT_EFFORT,
        diffusivity_known: bool = True,
    ):
        self.prior, self.effort, self._seed = FieldPrior(box_um), effort, seed
        self.coarse, self.middle, self.fine, finest = (
            SmoothModel(acquisition, self.prior, cubes, diffusivity)
            for cubes in (effort.coarse, effort.middle, effort.fine, effort.finest)
        )
        self.limit = LimitModel(self.fine, finest)
        self._acquisition, self._diffusivity = acquisition, diffusivity
        self._slower_and_faster = [] if diffusivity_known else [
            SmoothModel(acquisition, self.prior, effort.middle, off * diffusivity)
            for off in (1 - _DIFFUSIVITY_SD, 1 + _DIFFUSIVITY_SD)
        ]  # fmt: skip

    def run(self, given: VoxelData, n_draws: int) -> SmoothSearchResult:
        """Find the smooth cells of a voxel."""
        rng, effort = np.random.default_rng(self._seed), self.effort
        scales = self.proposals.scales(given.unlifted, given.sigma, given.scale_of)
        voxel = given.over(scales)
        starts = self.proposals.nearest(voxel.unlifted, voxel.sigma, effort.n_nearest)
        starts += self.proposals.beside(voxel.unlifted, voxel.sigma, effort.n_beside)
        target = self._target(voxel, starts[0])
        coarse = self._descent(target, self.coarse, self.coarse)
        middle = self._descent(target, self.middle, self.middle)
        lines = _descended(coarse, starts, effort.n_steps_coarse)
        starts = [line.cells for line in lines[: effort.n_better]]
        lines = _descended(middle, starts, effort.n_steps_middle)
        lines = self._different(self._with_others(middle, lines))
        if len(target.shared):
            # They are linear in their errors about scales that are known better by now.
            residual = target.complete.residual_of(self.middle.signals(lines[0].cells))
            scales = _better(scales, most_probable_errors(target.shared, residual))
            voxel = given.over(scales)
            target = self._target(voxel, lines[0].cells)
            middle = self._descent(target, self.middle, self.middle)
        fine = self._descent(target, self.fine, self.middle)
        starts = [line.cells for line in lines[: effort.n_good]]
        lines = _descended(fine, starts, effort.n_steps_fine)
        end = self._ending(fine)
        ends = end.with_symmetry_images(
            end.of_lines([line.cells for line in lines[: effort.n_lines]])
        )
        draws = self._draws(ends, middle, n_draws, rng)
        n_steps = effort.n_steps_coarse + effort.n_steps_middle + effort.n_steps_fine
        n_steps += effort.n_corrections * effort.n_steps_last
        best, known = ends[0], len(scales)
        scales = _better(scales, best.shared)
        signals = best.signals + best.shared[known:] @ (target.shared[known:] * voxel.sigma)
        diffusivity = self._diffusivity * (1 + _DIFFUSIVITY_SD * best.shared[known:].sum())
        return SmoothSearchResult(
            best=best.fitted.cells,
            draws=draws,
            signals=given.scale(scales) * signals,
            scales=scales,
            diffusivity=float(diffusivity),
            n_steps=n_steps,
        )

    def refined(self, voxel: VoxelData, cells: SmoothCells) -> SmoothCells:
        """Cells after the last steps of a search that would have found them."""
        fine = self._descent(self._target(voxel, cells), self.fine, self.middle)
        line = fine(fine.fitted(cells), self.effort.n_steps_fine)
        return self._ending(fine)(line.cells).fitted.cells

    def improbability(self, voxel: VoxelData, cells: SmoothCells) -> float:
        """Minus twice the log probability of cells and those around them, but for a constant."""
        fine = self._descent(self._target(voxel, cells), self.fine, self.middle)
        return self._ending(fine).at(cells).improbability

    def _ending(self, fine):
        return LimitRefinement(
            self.fine, self.limit.of_measurements(fine.target.rows), fine, self.effort
        )

    def _descent(self, target, exact, slopes):
        """Steps by the signals of one grid and their derivatives on another."""
        models = (model.of_measurements(target.rows) for model in (exact, slopes))
        return SmoothDescent(target, *models, self.prior)

    def _with_others(self, descend, lines):
        """Lines, and those from their cells at other places, the most probable first."""
        best = [line.cells for line in lines[: self.effort.n_moved]]
        cells = [moved for x in best for moved in symmetry_images(x, self.prior)]
        moved = sorted((descend.fitted(x) for x in cells), key=_improbability)
        starts = [line.cells for line in moved[: self.effort.n_moves]]
        moved = _descended(descend, starts, self.effort.n_steps_middle)
        return sorted([*lines, *moved], key=_improbability)

    def _different(self, lines):
        """Lines without those that ended where a better one did, or at its point reflection."""
        inside = [self.prior.on_raster(line.cells.z) > 0 for line in lines]
        chosen: list[int] = []
        for k, one in enumerate(inside):
            alike = [max(_dice(one, inside[n]), _dice(one, np.flip(inside[n]))) for n in chosen]
            if max(alike, default=0.0) < _THE_SAME:
                chosen.append(k)
        return [lines[k] for k in chosen]

    def _target(self, voxel, cells):
        """The data, whose shared errors are those of such cells."""
        complete = Target(self.coarse.simulator, voxel.data, voxel.sigma, voxel.rician)
        by_diffusivity = [model.signals(cells) for model in self._slower_and_faster]
        shared = np.vstack([voxel.scale_errors, *np.diff(by_diffusivity, axis=0) / 2])

        def simulator_of(rows):
            return self.coarse.of_measurements(rows).simulator

        examples = self.examples.signals[: self.effort.n_complete]
        return CondensedTarget(
            complete, simulator_of, examples, self.effort.n_condensed, _RIDGE, shared
        )

    @cached_property
    def proposals(self) -> InitialCells:
        """Where searches start."""
        rotations = Rotations(self._acquisition, self.prior.box_um)
        return InitialCells(self.examples, rotations, self.prior)

    @cached_property
    def examples(self) -> Examples:
        """Random cells and their signals on the coarse grid, of most from a few measurements."""
        rng, effort, basis = np.random.default_rng(self._seed), self.effort, self.prior.raster[1]
        z = np.array([random_cells(rng, self.prior) for _ in range(effort.n_examples)])
        leaks = rng.standard_normal(len(z))
        cells = [single_cell_field(*one) for one in zip(z, leaks, strict=True)]
        complete = np.array([self.coarse.signals(x) for x in cells[: effort.n_complete]])
        noise, simulator = self._noise_of(complete), self.coarse.simulator
        foretold = LinearPrediction(simulator, complete, noise, effort.n_condensed, _RIDGE)
        part = self.coarse.of_measurements(foretold.rows)
        rest = np.array([part.signals(x) for x in cells[effort.n_complete :]])
        rest = rest.reshape(-1, len(foretold.rows)) @ foretold.slopes + foretold.constant
        signals = np.concatenate([complete, rest * noise])
        nothing = self.prior.field_of(np.full(len(basis), -self.prior.length))
        empty = self.coarse.signals(single_cell_field(nothing))
        return Examples(z @ basis.T + self.prior.mean, leaks, signals, empty)

    def _noise_of(self, signals):
        """Noise (M,) to be expected beside signals (N, M)."""
        timing, mean = self._acquisition.timing_index, signals.mean(axis=0)
        largest = np.array([mean[timing == k].max() for k in range(timing.max() + 1)])
        return _TYPICAL_NOISE * largest[timing]

    def _draws(self, ends, descend, number, rng):
        """Cells drawn from the posterior: of the ends by their probability.

        Errors count as large as what the best end leaves, should that be more than the noise.
        """
        error = max(float(np.sqrt((ends[0].fitted.residual ** 2).mean())), 1.0)
        apart = np.array([end.improbability for end in ends])
        chance = np.exp((apart.min() - apart) / (2 * _UNFINISHED))
        of_each = rng.multinomial(number, chance / chance.sum())
        centres = [
            end.fitted.cells for end, n in zip(ends, of_each, strict=True) for _ in range(n)
        ]
        n_steps = self.effort.n_steps_of_draws
        return [posterior_sample(rng, cells, descend, n_steps, error) for cells in centres]


def _descended(descend, starts, n_steps):
    """Where descents end, the most probable first."""
    starts = [without_unresolved_cells(start, descend.prior) for start in starts]
    lines = [descend(descend.fitted(start), n_steps) for start in starts]
    return sorted(lines, key=_improbability)


def _better(scales, shared):
    """Scales (K,), after the first of shared errors, in standard deviations."""
    return scales * (1 + SCALE_SD * shared[: len(scales)])


def _dice(one, other):
    """Overlap of two regions."""
    return 2 * (one & other).sum() / max(one.sum() + other.sum(), 1)


_improbability = attrgetter("improbability")
