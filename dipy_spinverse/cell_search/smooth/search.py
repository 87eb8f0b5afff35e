"""The search for smooth cells: many starts on a coarse grid, the best of them on a fine one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.cell_search.condensed import CondensedTarget, Foretold
from dipy_spinverse.cell_search.labelled import Target
from dipy_spinverse.cell_search.smooth.descent import SmoothDescent
from dipy_spinverse.cell_search.smooth.forward import (
    SmoothCells,
    SmoothModel,
    as_one,
    taken_apart,
)
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior
from dipy_spinverse.cell_search.smooth.proposals import Examples, Proposals
from dipy_spinverse.cell_search.smooth.random_cells import random_cells
from dipy_spinverse.cell_search.smooth.rotations import Rotations
from dipy_spinverse.voxels.rician import rician_mean

# Error of condensed data, in units of the noise, on the coarse grid: on a fine one it is more.
_RIDGE = 0.02
# Of the difference of two ends that descents which go on for long still take back.
_UNFINISHED = 10.0
_HELD = 0.3  # deviation of a field far from walls in draws, in lengths of the prior
_FIRST_DAMPING, _LATER_DAMPING = 10.0, 1.0


# Of noise at which shapes are learned, over the signal without diffusion weighting.
_TYPICAL_NOISE = 1 / 50


@dataclass(frozen=True)
class SmoothEffort:
    """How much a search for smooth cells does."""

    coarse: int = 5  # cubes along the box, for the starts
    middle: int = 6  # for derivatives
    fine: int = 9  # for signals
    finest: int = 12  # that corrects these, and judges what is found
    n_examples: int = 2000  # random cells, simulated once for all voxels
    n_complete: int = 200  # of these with all measurements
    n_condensed: int = 96  # measurements that are simulated
    n_nearest: int = 4  # starts that are examples
    n_pairs: int = 12  # starts that are two of them beside each other
    n_steps_coarse: int = 15
    n_better: int = 8  # starts that go on to the middle grid
    n_steps_middle: int = 6
    n_good: int = 5  # that go on with the signals of the fine grid
    n_steps_fine: int = 10
    n_lines: int = 3  # that the finest grid corrects
    n_steps_last: int = 6
    n_rounds_of_draws: int = 3


DEFAULT_EFFORT = SmoothEffort()


@dataclass(frozen=True, eq=False)
class SmoothFound:
    """The most probable smooth cells of a voxel, others in proportion to their probability.

    Attributes
    ----------
    best : SmoothCells
    draws : list of SmoothCells
    signals : ndarray (M,)
        Of the best, on the finest grid.
    n_steps : int
        Steps on the fine grid.
    """

    best: SmoothCells
    draws: list[SmoothCells]
    signals: np.ndarray
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
    """

    def __init__(
        self,
        acquisition: Acquisition,
        box_um: np.ndarray,
        *,
        diffusivity: float,
        seed: int,
        effort: SmoothEffort = DEFAULT_EFFORT,
    ):
        self.prior, self.effort, self._seed = FieldPrior(box_um), effort, seed
        self.coarse, self.middle, self.fine, self.finest = (
            SmoothModel(acquisition, self.prior, cubes, diffusivity)
            for cubes in (effort.coarse, effort.middle, effort.fine, effort.finest)
        )
        self._acquisition = acquisition

    def run(
        self, data: np.ndarray, sigma: np.ndarray, rician: np.ndarray, n_draws: int
    ) -> SmoothFound:
        """Find the smooth cells of a voxel; arguments as :meth:`CellSearch.run`."""
        rng, effort = np.random.default_rng(self._seed), self.effort
        target = self._target(data, sigma, rician)
        coarse, middle, fine = (
            model.of_measurements(target.rows) for model in (self.coarse, self.middle, self.fine)
        )
        unlifted = np.sqrt((data**2 - rician**2).clip(0))
        starts = self.proposals.nearest(unlifted, sigma, effort.n_nearest)
        starts += self.proposals.pairs(unlifted, sigma, effort.n_pairs)
        stages = (
            (coarse, coarse, effort.n_steps_coarse, effort.n_better, _FIRST_DAMPING),
            (middle, middle, effort.n_steps_middle, effort.n_good, _LATER_DAMPING),
            (fine, middle, effort.n_steps_fine, effort.n_lines, _LATER_DAMPING),
        )
        cells = starts
        for exact, slopes, n_steps, n_left, damping in stages:
            descend = SmoothDescent(target, exact, slopes, self.prior)
            lines = [descend(descend.fitted(start), n_steps, damping) for start in cells]
            cells = [line.cells for line in sorted(lines, key=_improbability)[:n_left]]
        ends = [self._finished(target, line, middle, fine) for line in cells]
        ends.sort(key=lambda end: end.improbability)
        draws = self._draws(ends, target, middle, n_draws, rng)
        n_steps = effort.n_steps_coarse + effort.n_steps_middle + effort.n_steps_fine
        return SmoothFound(ends[0].cells, draws, ends[0].signals, n_steps + effort.n_steps_last)

    def refined(self, data, sigma, rician, cells: SmoothCells) -> SmoothCells:
        """Cells after the last steps of a search that would have found them."""
        target = self._target(data, sigma, rician)
        middle, fine = (x.of_measurements(target.rows) for x in (self.middle, self.fine))
        descend = SmoothDescent(target, fine, middle, self.prior)
        cells = descend(descend.fitted(cells), self.effort.n_steps_fine, _LATER_DAMPING).cells
        return self._finished(target, cells, middle, fine).cells

    def improbability(self, data, sigma, rician, cells: SmoothCells) -> float:
        """Minus twice the log probability of cells, but for a constant, on the finest grid."""
        residual = (data - rician_mean(self.finest.signals(cells), rician)) / sigma
        return float(residual @ residual + cells.unknowns @ cells.unknowns)

    def _finished(self, target, cells, middle, fine):
        """The end of a line: after the last steps, corrected by the finest grid."""
        target = target.exact_for(self.finest.signals(cells), fine.signals(cells))
        descend = SmoothDescent(target, fine, middle, self.prior)
        start = descend.fitted(taken_apart(cells, self.prior))
        cells = descend(start, self.effort.n_steps_last, _LATER_DAMPING).cells
        signals, complete = self.finest.signals(cells), target.complete
        residual = complete.data / complete.sigma - complete.expected(signals)
        return _End(cells, signals, residual, descend.jacobian(cells))

    def _target(self, data, sigma, rician):
        complete = Target(self.coarse.simulator, data, sigma, rician)

        def simulator_of(rows):
            return self.coarse.of_measurements(rows).simulator

        examples = self.examples.signals[: self.effort.n_complete]
        return CondensedTarget(complete, simulator_of, examples, self.effort.n_condensed, _RIDGE)

    @cached_property
    def proposals(self) -> Proposals:
        """Where searches start."""
        rotations = Rotations(self._acquisition, self.prior.box_um)
        return Proposals(self.examples, rotations, self.prior)

    @cached_property
    def examples(self) -> Examples:
        """Random cells and their signals on the coarse grid, of most from a few measurements."""
        rng, effort, basis = np.random.default_rng(self._seed), self.effort, self.prior.raster[1]
        z = np.array([random_cells(rng, self.prior) for _ in range(effort.n_examples)])
        leaks = rng.standard_normal(len(z))
        cells = [as_one(*one) for one in zip(z, leaks, strict=True)]
        complete = np.array([self.coarse.signals(x) for x in cells[: effort.n_complete]])
        foretold = Foretold(
            self.coarse.simulator, complete, self._noise_of(complete), effort.n_condensed, _RIDGE
        )
        part = self.coarse.of_measurements(foretold.rows)
        rest = np.array([part.signals(x) for x in cells[effort.n_complete :]])
        rest = rest.reshape(-1, len(foretold.rows)) @ foretold.slopes + foretold.constant
        signals = np.concatenate([complete, rest * self._noise_of(complete)])
        nothing = self.prior.field_of(np.full(len(basis), -self.prior.length))
        empty = self.coarse.signals(as_one(nothing))
        return Examples(z @ basis.T + self.prior.mean, leaks, signals, empty)

    def _noise_of(self, signals):
        """Noise (M,) to be expected beside signals (N, M)."""
        timing, mean = self._acquisition.timing_index, signals.mean(axis=0)
        largest = np.array([mean[timing == k].max() for k in range(timing.max() + 1)])
        return _TYPICAL_NOISE * largest[timing]

    def _draws(self, ends, target, middle, number, rng):
        """Cells drawn from the posterior: of the ends by their probability."""
        apart = np.array([end.improbability for end in ends])
        chance = np.exp((apart.min() - apart) / (2 * _UNFINISHED))
        of_each = rng.multinomial(number, chance / chance.sum())
        return [
            draw
            for end, n in zip(ends, of_each, strict=True)
            for draw in self._like(end, target, middle, n, rng)
        ]

    def _like(self, end, target, middle, number, rng):
        """Cells drawn from the posterior around an end.

        Walls move, none appear: there derivatives would not know of them. What the middle grid
        says of a draw beyond its derivatives is made good.
        """
        cells, basis = end.cells, self.prior.raster[1]
        far = np.abs(basis @ cells.z + self.prior.mean) > self.prior.length / 2
        held = np.zeros((far.sum(), len(cells.unknowns)))
        held[:, : len(cells.z)] = basis[far] / (_HELD * self.prior.length)
        jacobian = end.jacobian
        precision = np.eye(len(cells.unknowns)) + jacobian.T @ jacobian + held.T @ held
        root = np.linalg.cholesky(precision)
        gain = np.linalg.solve(precision, jacobian.T)
        at_end = target.expected(middle.signals(cells))
        for _ in range(number):
            change = np.linalg.solve(root.T, rng.standard_normal(len(root)))
            state = cells.moved(change)
            for _ in range(self.effort.n_rounds_of_draws):
                found = target.expected(middle.signals(state)) - at_end
                state = state.moved(gain @ (jacobian @ change - found))
            yield state


@dataclass(frozen=True, eq=False)
class _End:
    """Where a line of the search ends.

    Attributes
    ----------
    cells : SmoothCells
    signals, residual : ndarray (M,)
        On the finest grid; what they leave of the data, over its errors.
    jacobian : ndarray (m, n + C)
        Derivatives of the condensed data.
    """

    cells: SmoothCells
    signals: np.ndarray
    residual: np.ndarray
    jacobian: np.ndarray

    @property
    def improbability(self) -> float:
        """Minus twice the log probability, but for a constant."""
        unknowns = self.cells.unknowns
        return float(self.residual @ self.residual + unknowns @ unknowns)


def _improbability(fitted):
    return fitted.improbability
