"""The search for smooth cells: many descents on a coarse grid, the best of them on a fine one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.cell_search.condensed import (
    CondensedTarget,
    LinearPrediction,
    most_probable_errors,
)
from dipy_spinverse.cell_search.labelled import Target
from dipy_spinverse.cell_search.smooth.budget import SmoothSearchBudget
from dipy_spinverse.cell_search.smooth.descent import (
    FittedCells,
    SmoothDescent,
    most_probable_first,
)
from dipy_spinverse.cell_search.smooth.forward import LimitModel, SmoothModel
from dipy_spinverse.cell_search.smooth.initial_cells import Examples, InitialCells
from dipy_spinverse.cell_search.smooth.level_set import (
    FieldPrior,
    SmoothCells,
    single_cell_field,
    without_unresolved_cells,
)
from dipy_spinverse.cell_search.smooth.local_minima import LimitRefinement, LocalMinimum
from dipy_spinverse.cell_search.smooth.random_cells import random_cells
from dipy_spinverse.cell_search.smooth.symmetries import Rotations, symmetry_images

# Error of condensed data, in units of the noise, on the coarse grid; that of a fine one is larger
# (benchmarks/notes/walls_off_grid.md, "Subset of measurements").
_RIDGE = 0.02
# Local minima are weighted by their probability to the power 1/4, as longer descents still change
# the differences of their logarithms (benchmarks/notes/walls_off_grid.md).
_TEMPERATURE = 4.0
_SAME_OVERLAP = 0.95  # Dice of two descents of which only one goes on
# Over the largest signal of a timing: accuracy to which signals of examples are predicted.
_TYPICAL_NOISE = 1 / 50
# Prior standard deviation of an unknown diffusivity, over its initial value; set by hand.
_DIFFUSIVITY_SD = 0.05
# Prior standard deviation of an unknown scale about its first estimate; set by hand.
SCALE_SD = 0.05


@dataclass(frozen=True, eq=False)
class SmoothVoxelData:
    """Signals of a voxel over its initial magnetisation, as far as that is known."""

    data: np.ndarray  # (M,)
    sigma: np.ndarray  # (M,) standard deviations of their errors
    rician_sigma: np.ndarray  # (M,) noise that biases the mean of magnitude data; 0 for none
    scale_of: np.ndarray  # (K, M) measurements of each unknown scale; none where S0 is known

    @property
    def unbiased(self) -> np.ndarray:
        """Data (M,) corrected for the Rician bias of their second moment."""
        return np.sqrt((self.data**2 - self.rician_sigma**2).clip(0))

    def over(self, scales: np.ndarray) -> SmoothVoxelData:
        """The data over scales (K,)."""
        scale = self.scale(scales)
        errors = self.sigma / scale, self.rician_sigma / scale
        return SmoothVoxelData(self.data / scale, *errors, self.scale_of)

    def scale(self, scales: np.ndarray) -> np.ndarray:
        """Scale (M,) of each measurement, of scales (K,)."""
        return np.where(self.scale_of.any(axis=0), scales @ self.scale_of, 1.0)

    @property
    def scale_errors(self) -> np.ndarray:
        """Changes (K, M) of the data by a standard deviation of each unknown scale."""
        return SCALE_SD * self.scale_of * self.unbiased


@dataclass(frozen=True, eq=False)
class SmoothSearchResult:
    """The most probable smooth cells of a voxel, and posterior samples."""

    best: SmoothCells
    draws: list[SmoothCells]
    signals: np.ndarray  # (M,) of the best in the limit of fine grids, as data are scaled
    scales: np.ndarray  # (K,) those that were not known
    diffusivity: float  # um^2/ms


class SmoothSearch:
    """A search for smooth cells in one box, for many voxels of an acquisition without repeats."""

    def __init__(
        self,
        acquisition: Acquisition,
        box_um: np.ndarray,
        *,
        diffusivity: float,  # um^2/ms
        seed: int,
        budget: SmoothSearchBudget,
        diffusivity_known: bool,
    ):
        self.prior, self.budget, self._seed = FieldPrior(box_um), budget, seed
        self.coarse, self.middle, self.fine, finest = (
            SmoothModel(acquisition, self.prior, cubes, diffusivity) for cubes in budget.cubes
        )
        self.limit = LimitModel(self.fine, finest)
        self._acquisition, self._diffusivity = acquisition, diffusivity
        deviations = () if diffusivity_known else (-_DIFFUSIVITY_SD, _DIFFUSIVITY_SD)
        self._other_diffusivities = [
            SmoothModel(acquisition, self.prior, budget.cubes[1], (1 + x) * diffusivity)
            for x in deviations
        ]

    def run(self, unscaled: SmoothVoxelData, n_draws: int) -> SmoothSearchResult:
        """Find the smooth cells of a voxel."""
        budget = self.budget
        scales = self.initial_cells.scales(unscaled.unbiased, unscaled.sigma, unscaled.scale_of)
        voxel = unscaled.over(scales)
        target, fitted = self._on_coarse_grids(voxel)
        if len(target.shared):
            # Scales are linearised again, about the better values that are known by now.
            residual = target.complete.residual_of(self.middle.signals(fitted[0].cells))
            scales = _updated(scales, most_probable_errors(target.shared, residual))
            voxel = unscaled.over(scales)
            target = self.target(voxel, fitted[0].cells)
        refine = self.refinement(target)
        fitted = _descended(refine.descend, fitted[: budget.n_selected[1]], budget.n_steps[2])
        minima = refine.all_of([x.cells for x in fitted[: budget.n_selected[2]]])
        minima = refine.with_symmetry_images(minima)
        draws = self._draws(minima, self._descent(target, self.middle, self.middle), n_draws)
        best, n_scales = minima[0], len(scales)
        scales, error = _updated(scales, best.shared), best.shared[n_scales:]
        signals = best.signals + error @ (target.shared[n_scales:] * voxel.sigma)
        return SmoothSearchResult(
            best=best.fitted.cells,
            draws=draws,
            signals=unscaled.scale(scales) * signals,
            scales=scales,
            diffusivity=float(self._diffusivity * (1 + _DIFFUSIVITY_SD * error.sum())),
        )

    def _on_coarse_grids(self, voxel):
        """Condensed data, and distinct cells fitted to them on the coarse and middle grid."""
        budget, args = self.budget, (voxel.unbiased, voxel.sigma)
        initial = self.initial_cells.nearest(*args, budget.n_nearest)
        initial += self.initial_cells.combined(*args, budget.n_combined)
        target = self.target(voxel, initial[0])
        coarse = self._descent(target, self.coarse, self.coarse)
        middle = self._descent(target, self.middle, self.middle)
        fitted = _descended(coarse, initial, budget.n_steps[0])[: budget.n_selected[0]]
        fitted = _descended(middle, fitted, budget.n_steps[1])
        images = map(middle.fitted, symmetry_images(fitted[0].cells, self.prior))
        images = most_probable_first(images)[: budget.n_images[0]]
        fitted += _descended(middle, images, budget.n_steps[1])
        return target, self._distinct(most_probable_first(fitted))

    def refinement(self, target: CondensedTarget) -> LimitRefinement:
        """The last steps of a search in a target."""
        fine = self._descent(target, self.fine, self.middle)
        limit = self.limit.of_measurements(target.rows)
        return LimitRefinement(self.fine, limit, fine, self.budget)

    def _descent(self, target, signal_model, slope_model):
        """Steps by the signals of one grid and their derivatives on another."""
        models = (model.of_measurements(target.rows) for model in (signal_model, slope_model))
        return SmoothDescent(target, *models, self.prior)

    def _distinct(self, fitted):
        """Fitted cells but for those that equal better ones, or their point reflections."""
        inside = [self.prior.on_raster(x.cells.z) > 0 for x in fitted]
        chosen: list[int] = []
        for k, region in enumerate(inside):
            overlaps = [
                max(_dice(region, inside[n]), _dice(region, np.flip(inside[n]))) for n in chosen
            ]
            if max(overlaps, default=0.0) < _SAME_OVERLAP:
                chosen.append(k)
        return [fitted[k] for k in chosen]

    def target(self, voxel: SmoothVoxelData, cells: SmoothCells) -> CondensedTarget:
        """The condensed data, with shared errors linearised about such cells."""
        complete = Target(self.coarse.simulator, voxel.data, voxel.sigma, voxel.rician_sigma)
        by_diffusivity = [model.signals(cells) for model in self._other_diffusivities]
        shared = np.vstack([voxel.scale_errors, *np.diff(by_diffusivity, axis=0) / 2])

        def simulator_of(rows):
            return self.coarse.of_measurements(rows).simulator

        examples = self.examples.signals[: self.budget.n_complete]
        return CondensedTarget(
            complete, simulator_of, examples, self.budget.n_condensed, _RIDGE, shared
        )

    @cached_property
    def initial_cells(self) -> InitialCells:
        """Initial cells of searches."""
        rotations = Rotations(self._acquisition, self.prior.box_um)
        return InitialCells(self.examples, rotations, self.prior)

    @cached_property
    def examples(self) -> Examples:
        """Random cells and their signals on the coarse grid, most predicted from a few."""
        rng, budget, basis = np.random.default_rng(self._seed), self.budget, self.prior.raster[1]
        z = np.array([random_cells(rng, self.prior) for _ in range(budget.n_examples)])
        log_permeability = rng.standard_normal(len(z))
        cells = [single_cell_field(*x) for x in zip(z, log_permeability, strict=True)]
        complete = np.array([self.coarse.signals(x) for x in cells[: budget.n_complete]])
        noise = self._typical_noise(complete)
        predict = LinearPrediction(
            self.coarse.simulator, complete, noise, budget.n_condensed, _RIDGE
        )
        few = self.coarse.of_measurements(predict.rows)
        signals = np.array([few.signals(x) for x in cells[budget.n_complete :]])
        predicted = predict(signals.reshape(-1, len(predict.rows))) * noise
        no_cells = self.prior.coefficients_of(np.full(len(basis), -self.prior.length))
        return Examples(
            z @ basis.T + self.prior.mean,
            log_permeability,
            np.concatenate([complete, predicted]),
            self.coarse.signals(single_cell_field(no_cells)),
        )

    def _typical_noise(self, signals):
        """Typical noise (M,) of measurements with signals (N, M)."""
        timing, mean = self._acquisition.timing_index, signals.mean(axis=0)
        largest = np.array([mean[timing == k].max() for k in range(timing.max() + 1)])
        return _TYPICAL_NOISE * largest[timing]

    def _draws(self, minima: list[LocalMinimum], descend: SmoothDescent, number: int):
        """Posterior samples around the local minima, in proportion to their probability. Errors
        are as large as the residual of the best, should that exceed the noise."""
        rng = np.random.default_rng(self._seed)
        error = max(float(np.sqrt((minima[0].fitted.residual ** 2).mean())), 1.0)
        costs = np.array([x.neg2_log_evidence for x in minima])
        weights = np.exp((costs.min() - costs) / (2 * _TEMPERATURE))
        numbers = rng.multinomial(number, weights / weights.sum())
        return [
            descend.posterior_sample(rng, x.fitted.cells, self.budget.n_sample_steps, error)
            for x, n in zip(minima, numbers, strict=True)
            for _ in range(n)
        ]


def _descended(descend, initial: Sequence[SmoothCells | FittedCells], n_steps):
    """Fitted cells after descents, the most probable first."""
    cells = [x.cells if isinstance(x, FittedCells) else x for x in initial]
    cells = [without_unresolved_cells(x, descend.prior) for x in cells]
    fitted = [descend(descend.fitted(x), n_steps) for x in cells]
    return most_probable_first(fitted)


def _updated(scales, shared):
    """Scales (K,), changed by the first of shared errors, in standard deviations."""
    return scales * (1 + SCALE_SD * shared[: len(scales)])


def _dice(region_a, region_b):
    return 2 * (region_a & region_b).sum() / max(region_a.sum() + region_b.sum(), 1)
