"""Labels of tetrahedra, their expected data, and how these change with single labels."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch

from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import PartialVolumeSimulator
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.voxels.rician import rician_mean

# Prior standard deviations of the relative transmissibilities of walls and of open faces. Set by
# hand; permeabilities of 0.003 to 0.2 um/ms are recovered (benchmarks/results/recovery_unseen.md).
TRANSMISSIBILITY_SD = np.array([0.05, 0.01])
# Number of leading cells whose sensitivities stand for those of all; set by hand.
N_TYPICAL = 3
# Of the difference quotient of the Rician mean, over the initial magnetisation; set by hand.
_SIGNAL_STEP = 1e-6


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """Which tetrahedra are inside of cells, and the data that these predict."""

    labels: np.ndarray  # (T,) of bool
    transmissibility: np.ndarray  # (2,) relative, of walls and of other faces
    expected: np.ndarray  # (M,) mean of the data, in units of their errors


@dataclass(frozen=True, eq=False)
class SimulatedCells:
    """Labels (N, T) of cells and their signals (N, M)."""

    labels: np.ndarray
    signals: np.ndarray


class Target:
    """Data that cells have to explain, with the forward model and the errors of the data.

    Data (M,) are relative to the initial magnetisation. The noise level `rician_sigma` (M,) biases
    their mean, 0 for none; degrees of freedom are those of the estimate of `sigma` (M,), infinite
    where it is known.
    """

    def __init__(
        self,
        simulator: PartialVolumeSimulator,
        data: np.ndarray,
        sigma: np.ndarray,
        rician_sigma: np.ndarray,
        degrees_of_freedom: float = np.inf,
    ):
        self.simulator, self.grid = simulator, simulator.grid
        self.data, self.sigma, self.rician_sigma = data, sigma, rician_sigma
        self.degrees_of_freedom = degrees_of_freedom

    def of_measurements(self, rows: np.ndarray, simulator: PartialVolumeSimulator) -> Target:
        """The same for some of the measurements, which `simulator` simulates."""
        subset = self.data[rows], self.sigma[rows], self.rician_sigma[rows]
        return Target(simulator, *subset, self.degrees_of_freedom)

    def cells(self, labels: np.ndarray, transmissibility: np.ndarray) -> list[LabelledCells]:
        """Cells of labels (N, T) and relative transmissibilities (2,) or (N, 2)."""
        transmissibility = np.broadcast_to(transmissibility, (len(labels), 2))
        expected = self.expected(self.simulate(labels, transmissibility))
        return [LabelledCells(*x) for x in zip(labels, transmissibility, expected, strict=True)]

    def simulate(self, labels: np.ndarray, transmissibility: np.ndarray) -> np.ndarray:
        """Signals (N, M) without noise."""
        tau = torch.as_tensor(face_transmissibility(self.grid, labels, transmissibility))
        return self.simulator.signals(tau).numpy().astype(float)

    def linear(
        self, fractions: np.ndarray, transmissibility: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expected data (M,) in units of their errors, and their derivatives (M, T + 2)."""
        signals, *jacobian = self.simulator.partial_sensitivities(fractions, transmissibility)
        difference = self.expected(signals + _SIGNAL_STEP) - self.expected(signals)
        return self.expected(signals), (difference / _SIGNAL_STEP)[:, None] * np.hstack(jacobian)

    def expected(self, signals: np.ndarray) -> np.ndarray:
        """Mean of the data, in units of their errors, for signals (N, M) without noise."""
        return rician_mean(signals, self.rician_sigma) / self.sigma

    def residual(self, cells: LabelledCells) -> np.ndarray:
        """Data minus expectation, in units of the errors."""
        return self.data / self.sigma - cells.expected

    def residual_of(self, signals: np.ndarray) -> np.ndarray:
        """Data minus expectation of signals (M,) without noise, in units of the errors."""
        return self.data / self.sigma - self.expected(signals)

    def reduced_chi_square(self, cells: LabelledCells) -> float:
        """Mean squared residual in units of the errors: 1 for noise only."""
        return float((self.residual(cells) ** 2).mean())

    def explained_by(self, cells: LabelledCells) -> bool:
        """Whether the residual is consistent with the errors of the data."""
        return self.reduced_chi_square(cells) < 1 + self.chi_square_tolerance

    @property
    def chi_square_tolerance(self) -> float:
        """Two standard deviations of the reduced chi-square, of data and noise estimate."""
        return 2 * np.sqrt(2 / len(self.data) + 2 / self.degrees_of_freedom)

    def noisier(self, rng: np.random.Generator) -> Target:
        """The same with a second realisation of the noise added to the data."""
        result = copy(self)
        result.data = self.data + self.sigma * rng.standard_normal(len(self.data))
        return result

    def exact_at(self, cells: LabelledCells) -> Target:
        """The same, with the least approximation for cells similar to these."""
        return self


def face_transmissibility(grid: TetrahedralGrid, labels, transmissibility) -> np.ndarray:
    """Relative transmissibilities (N, F): those of walls where labels (N, T) differ."""
    of_walls, of_open_faces = np.atleast_2d(transmissibility).T
    return np.where(walls_of(grid, labels), of_walls[:, None], of_open_faces[:, None])


def walls_of(grid: TetrahedralGrid, labels: np.ndarray) -> np.ndarray:
    """Which faces (N, F) are walls: those between different labels (N, T)."""
    row, column = grid.face_tetrahedra.T
    return labels[:, row] != labels[:, column]


def at_walls(grid: TetrahedralGrid, labels: np.ndarray) -> np.ndarray:
    """Indices of tetrahedra with a wall, or inside of a cell at the outer box."""
    walls = walls_of(grid, labels[None])[0]
    adjacent = np.zeros(len(labels), dtype=bool)
    adjacent[grid.face_tetrahedra[walls].ravel()] = True
    outer = grid.outer_tetrahedra
    adjacent[outer] |= labels[outer]
    return np.flatnonzero(adjacent)


@dataclass(frozen=True, eq=False)
class LabelChanges:
    """First-order effects of changing the labels of single tetrahedra at the walls."""

    tetrahedra: np.ndarray  # (m,)
    effects: np.ndarray  # (m, M) on the expected data
    slopes: np.ndarray  # (2, M) derivatives by the relative transmissibilities


def label_changes(
    target: Target, labels: np.ndarray, transmissibility: np.ndarray
) -> LabelChanges:
    """Effects of changing the labels of all tetrahedra at the walls of labels (T,)."""
    fractions, tetrahedra = labels.astype(float), at_walls(target.grid, labels)
    slopes = target.linear(fractions, transmissibility)[1].T
    effects = slopes[tetrahedra] * (1 - 2 * fractions[tetrahedra])[:, None]
    return LabelChanges(tetrahedra, effects, slopes[-2:])
