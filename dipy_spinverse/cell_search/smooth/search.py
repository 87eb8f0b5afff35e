"""The search for smooth cells: many starts on a coarse grid, the best of them on a fine one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.cell_search.bodies import random_depth
from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.labelled import Target
from dipy_spinverse.cell_search.smooth.descent import Fitted, SmoothDescent
from dipy_spinverse.cell_search.smooth.forward import (
    SmoothCells,
    SmoothModel,
    as_one,
    taken_apart,
)
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior

# Error of condensed data, in units of the noise, on the coarse grid: on a fine one it is more.
_RIDGE = 0.02


@dataclass(frozen=True)
class SmoothEffort:
    """How much a search for smooth cells does."""

    coarse: int = 5  # cubes along the box, for the starts
    middle: int = 6  # for derivatives
    fine: int = 9  # for signals
    finest: int = 12  # that corrects these, and judges what is found
    n_bodies: int = 250  # random ones, simulated once for all voxels
    n_condensed: int = 96  # measurements that are simulated
    n_starts: int = 12
    n_steps_coarse: int = 6
    n_steps_middle: int = 3
    n_lines: int = 4  # starts that go on with the signals of the fine grid
    n_steps_fine: int = 3
    n_steps_last: int = 5
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
    lines : list of Fitted
        What the search ended in along its way.
    """

    best: SmoothCells
    draws: list[SmoothCells]
    signals: np.ndarray
    n_steps: int
    lines: list[Fitted]


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
        roughly, better, exactly = (
            SmoothDescent(target, *models, self.prior)
            for models in ((coarse, coarse), (middle, middle), (fine, middle))
        )
        lines = [
            roughly(roughly.fitted(as_one(self.library[0][k])), effort.n_steps_coarse)
            for k in self._starts(target, data, sigma)
        ]
        lines = [better(better.fitted(x.cells), effort.n_steps_middle, 3) for x in lines]
        lines.sort(key=_improbability)
        lines = [exactly.fitted(x.cells) for x in lines[: effort.n_lines]]
        lines = [exactly(x, effort.n_steps_fine, 3) for x in lines]
        lines.sort(key=_improbability)
        best, exactly = self._finished(target, lines[0].cells, middle, fine)
        jacobian, n_steps = exactly.jacobian(best.cells), effort.n_steps_last
        draws = self._draws(best, target, middle, jacobian, n_draws, rng)
        n_steps += effort.n_lines * effort.n_steps_fine
        signals = self.finest.signals(best.cells)
        return SmoothFound(best.cells, draws, signals, n_steps, lines)

    def refined(self, data, sigma, rician, cells: SmoothCells) -> Fitted:
        """Cells after the last steps of a search that would have found them."""
        target = self._target(data, sigma, rician)
        middle, fine = (x.of_measurements(target.rows) for x in (self.middle, self.fine))
        return self._finished(target, cells, middle, fine)[0]

    def _finished(self, target, cells, middle, fine):
        """Cells after the last steps, and what made them: corrected by the finest grid."""
        target = target.exact_for(self.finest.signals(cells), fine.signals(cells))
        exactly = SmoothDescent(target, fine, middle, self.prior)
        start = exactly.fitted(taken_apart(cells, self.prior))
        return exactly(start, self.effort.n_steps_last, 4), exactly

    def _target(self, data, sigma, rician):
        complete = Target(self.coarse.simulator, data, sigma, rician)

        def simulator_of(rows):
            return self.coarse.of_measurements(rows).simulator

        examples, number = self.library[1], self.effort.n_condensed
        return CondensedTarget(complete, simulator_of, examples, number, _RIDGE)

    @cached_property
    def library(self):
        """Unknowns (N, n) of random bodies, and their signals (N, M) on the coarse grid."""
        rng, points = np.random.default_rng(self._seed), self.prior.raster[0]
        corners = -self.prior.box_um / 2, self.prior.box_um / 2
        bodies: list[np.ndarray] = []
        while len(bodies) < self.effort.n_bodies:
            depth = random_depth(rng, points, corners)
            if 0.04 < (depth > 0).mean() < 0.4:
                bodies.append(self.prior.field_of(depth))
        signals = [self.coarse.signals(as_one(z)) for z in bodies]
        return np.array(bodies), np.array(signals)

    def _starts(self, target, data, sigma):
        """Indices of the random bodies that agree best with the data."""
        signals = self.library[1]
        residual = (target.complete.expected(signals)) - data / sigma
        return np.argsort((residual**2).sum(axis=1))[: self.effort.n_starts]

    def _draws(self, best, target, middle, jacobian, number, rng):
        """Cells drawn from the posterior, by randomised maximum likelihood.

        The signals are those of the middle grid, corrected by what it errs by for the best.
        """
        cells, here, m = best.cells, best.cells.unknowns, len(best.residual)
        gain = np.linalg.solve(jacobian @ jacobian.T + np.eye(m), jacobian).T
        at_best = target.expected(middle.signals(cells))
        draws = []
        for _ in range(number):
            start, noise = rng.standard_normal(len(here)), rng.standard_normal(m)
            state, change = cells, np.zeros(m)
            for _ in range(self.effort.n_rounds_of_draws):
                rest = best.residual + noise - change + jacobian @ (state.unknowns - start)
                state = cells.moved(start + gain @ rest - here)
                change = target.expected(middle.signals(state)) - at_best
            draws.append(state)
        return draws


def _improbability(fitted):
    return fitted.improbability
