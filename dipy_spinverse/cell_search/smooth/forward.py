"""Signals of smooth cells on a grid, and their derivatives by the parameters of the cells."""

from __future__ import annotations

from copy import copy

import numpy as np

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import WallAreaSimulator
from dipy_spinverse.cell_search.smooth.level_set import (
    LOG_PERMEABILITY_SD,
    FieldPrior,
    SmoothCells,
)
from dipy_spinverse.cell_search.smooth.volume_fractions import VolumeFractionModel
from dipy_spinverse.grid import bcc_grid

_STEPS = 4  # time steps per gradient pulse, as in the search on the lattice
_SLOPE_STEPS = 16  # nodes of derivatives in time; with 4 they err by up to 20 %
# Odds ratio of Plackett's distribution by which pools of the same side of a smooth wall meet
# (https://doi.org/10.1080/01621459.1965.10480807). By chance, 1, signals of a ring err twice as
# much (doc/method.md).
_ODDS_RATIO = 30.0


class SmoothModel:
    """Signals on a lattice of `cubes` along the shortest side of the box; diffusivity in
    um^2/ms."""

    def __init__(
        self, acquisition: BaseAcquisition, prior: FieldPrior, cubes: int, diffusivity: float
    ):
        edge = prior.box_um.min() / cubes
        grid = bcc_grid(np.round(prior.box_um / edge).astype(int), edge, "absorbing")
        self.volume_fractions = VolumeFractionModel(grid, prior)
        self.cubes, self._prior = cubes, prior
        self._acquisition, self._diffusivity = acquisition, diffusivity
        self.simulator, self._slope_simulator = self._simulators_of(acquisition)

    def _simulators_of(self, acquisition):
        """Of signals, and of derivatives."""
        grid, D = self.volume_fractions.grid, self._diffusivity
        options = {"diffusivity": D, "dtype": "float32", "odds_ratio": _ODDS_RATIO}
        return [
            WallAreaSimulator(acquisition, grid, steps=n, **options)
            for n in (_STEPS, _SLOPE_STEPS)
        ]

    def of_measurements(self, rows: np.ndarray) -> SmoothModel:
        """The same model of some of the measurements."""
        model = copy(self)
        subset = self._acquisition.subset(rows)
        model.simulator, model._slope_simulator = self._simulators_of(subset)
        return model

    def signals(self, cells: SmoothCells) -> np.ndarray:
        """Signals (M,) over the initial magnetisation of the box."""
        filled = self.volume_fractions(cells)
        walls = filled.area * cells.permeability[self.volume_fractions.index(cells)]
        return self.simulator.partial_signals(filled.fractions, walls)

    def linear(self, cells: SmoothCells) -> tuple[np.ndarray, np.ndarray]:
        """Signals (M,), and their derivatives (M, n + C) by the unknowns of cells."""
        filled, index = self.volume_fractions(cells), self.volume_fractions.index(cells)
        permeability = cells.permeability[index]
        signals, by_fraction, by_walls = self._slope_simulator.partial_sensitivities(
            filled.fractions, filled.area * permeability
        )
        by_field = np.hstack([by_fraction, by_walls * permeability]) @ filled.by_field
        by_z = by_field.astype(np.float32) @ self._prior.basis(filled.points)
        of_cells = index[:, None] == np.arange(len(cells.permeability))
        by_log_permeability = by_walls @ ((filled.area * permeability)[:, None] * of_cells)
        return signals, np.hstack([by_z, LOG_PERMEABILITY_SD * by_log_permeability])


class LimitModel:
    """Richardson extrapolation of the signals of two lattices, of errors of second order."""

    def __init__(self, coarse: SmoothModel, fine: SmoothModel):
        self._coarse, self._fine = coarse, fine
        self._weight = 1 / ((fine.cubes / coarse.cubes) ** 2 - 1)

    def of_measurements(self, rows: np.ndarray) -> LimitModel:
        """The same model of some of the measurements."""
        return LimitModel(self._coarse.of_measurements(rows), self._fine.of_measurements(rows))

    def signals(self, cells: SmoothCells) -> np.ndarray:
        """Signals (M,) over the initial magnetisation of the box."""
        fine = self._fine.signals(cells)
        return fine + self._weight * (fine - self._coarse.signals(cells))
