"""Labels of tetrahedra, the signals that they predict, and a misfit that counts wrong labels."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve_triangular

from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import PartialVolumeSimulator
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.voxels.rician import rician_mean

# Prior standard deviations of the relative transmissibilities of walls and of open faces; chosen
# on the shapes of benchmarks/shapes.py, as is the number of cells whose flips stand for all.
TRANSMISSIBILITY_SD = np.array([0.05, 0.01])
N_TYPICAL = 3
# Relative to the trace of a covariance, which it keeps positive definite.
_ROUNDING = 1e-13
# Step of a signal, over the initial magnetisation, to see how the mean of its magnitude changes.
_STEP = 1e-6


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """Which tetrahedra are inside of cells, and what that predicts."""

    labels: np.ndarray  # (T,) of bool
    leaks: np.ndarray  # (2,) relative transmissibility of the walls, and of the other faces
    signals: np.ndarray  # (M,) mean of the data, in units of their errors


@dataclass(frozen=True, eq=False)
class SimulatedCells:
    """Labels (N, T) of cells whose signals (N, M) are known."""

    labels: np.ndarray
    signals: np.ndarray


class Target:
    """Data to be explained by labels, and the means to compare with them.

    Parameters
    ----------
    simulator : PartialVolumeSimulator
    data, sigma : ndarray (M,)
        Signals relative to the initial magnetisation, and standard deviations of their errors.
    rician : ndarray (M,)
        Noise level that lifts the mean of magnitude data; 0 for none.
    freedom : float
        Degrees of freedom of the errors, infinite where they are known.
    """

    def __init__(
        self, simulator: PartialVolumeSimulator, data, sigma, rician, freedom: float = np.inf
    ):
        self.simulator, self.grid, self.freedom = simulator, simulator.grid, freedom
        self.data, self.sigma, self.rician = data, sigma, rician

    def of_measurements(self, rows: np.ndarray, simulator: PartialVolumeSimulator) -> Target:
        """The same for some of the measurements, which `simulator` simulates."""
        part = self.data[rows], self.sigma[rows], self.rician[rows]
        return Target(simulator, *part, self.freedom)

    def cells(self, labels: np.ndarray, leaks: np.ndarray) -> list[LabelledCells]:
        """States of labels (N, T) with leaks (2,) or (N, 2)."""
        leaks = np.broadcast_to(leaks, (len(labels), 2))
        signals = self.expected(self.simulate(labels, leaks))
        return [LabelledCells(*state) for state in zip(labels, leaks, signals, strict=True)]

    def simulate(self, labels: np.ndarray, leaks: np.ndarray) -> np.ndarray:
        """Signals (N, M) without noise."""
        transmissibility = torch.as_tensor(face_transmissibility(self.grid, labels, leaks))
        return self.simulator.signals(transmissibility).numpy().astype(float)

    def linear(self, share: np.ndarray, leaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the data (M,) in units of their errors, and its derivatives (M, T + 2)."""
        signals, *jacobian = self.simulator.partial_sensitivities(share, leaks)
        slope = (self.expected(signals + _STEP) - self.expected(signals)) / _STEP
        return self.expected(signals), slope[:, None] * np.hstack(jacobian)

    def expected(self, signals: np.ndarray) -> np.ndarray:
        """Mean of the data, in units of their errors, given signals (N, M) without noise."""
        return rician_mean(signals, self.rician) / self.sigma

    def residual(self, cells: LabelledCells) -> np.ndarray:
        """Data minus expectation, in units of the errors."""
        return self.data / self.sigma - cells.signals

    def residual_of(self, signals: np.ndarray) -> np.ndarray:
        """Data minus what signals (M,) without noise make expect, in units of the errors."""
        return self.data / self.sigma - self.expected(signals)

    def chi_square(self, cells: LabelledCells) -> float:
        """Mean squared residual in units of the errors: 1 for noise only."""
        return float((self.residual(cells) ** 2).mean())

    def explained_by(self, cells: LabelledCells) -> bool:
        """Whether the residual is no more than errors of the data."""
        return self.chi_square(cells) < 1 + self.chance

    @property
    def chance(self) -> float:
        """By how much the mean squared residual differs by chance: twice its spread."""
        return 2 * np.sqrt(2 / len(self.data) + 2 / self.freedom)

    def noisier(self, rng: np.random.Generator) -> Target:
        """The same, with as much noise once more."""
        result = copy(self)
        result.data = self.data + self.sigma * rng.standard_normal(len(self.data))
        return result

    def exact_at(self, cells: LabelledCells) -> Target:
        """The same, as exact as it can be for these cells and those like them."""
        return self


def face_transmissibility(grid: TetrahedralGrid, labels, leaks) -> np.ndarray:
    """Relative transmissibilities (N, F): those of walls where labels (N, T) differ."""
    leaks = np.atleast_2d(leaks)
    return np.where(walls_of(grid, labels), leaks[:, :1], leaks[:, 1:])


def walls_of(grid: TetrahedralGrid, labels: np.ndarray) -> np.ndarray:
    """Which faces (N, F) are walls: those between different labels (N, T)."""
    first, second = grid.face_tetrahedra.T
    return labels[:, first] != labels[:, second]


def at_walls(grid: TetrahedralGrid, labels: np.ndarray) -> np.ndarray:
    """Indices of tetrahedra with a wall, or inside of a cell at the outer box."""
    walls = walls_of(grid, labels[None])[0]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[grid.face_tetrahedra[walls].ravel()] = True
    outer = grid.outer_tetrahedra
    chosen[outer] |= labels[outer]
    return np.flatnonzero(chosen)


@dataclass(frozen=True, eq=False)
class LabelChanges:
    """What changes, nearly, when single tetrahedra at the walls change sides."""

    tetrahedra: np.ndarray  # (m,)
    changes: np.ndarray  # (m, M) of the expected data: derivatives by shares, times the change
    leak_slopes: np.ndarray  # (2, M) derivatives by the leaks


def label_changes(target: Target, labels: np.ndarray, leaks: np.ndarray) -> LabelChanges:
    """Flips of all tetrahedra at the walls of labels (T,)."""
    share, tetrahedra = labels.astype(float), at_walls(target.grid, labels)
    slopes = target.linear(share, leaks)[1].T
    changes = slopes[tetrahedra] * (1 - 2 * share[tetrahedra])[:, None]
    return LabelChanges(tetrahedra, changes, slopes[-2:])


class Misfit:
    """Squared residual in a metric in which each wrong label counts about the same.

    The residual r of a state with n wrong labels at its walls has the covariance of n flips: with
    that of typical flips, r^T (c D^T D / m + s^2 I)^-1 r grows with their number, where the plain
    sum of squares is ruled by few directions of large signal.

    Parameters
    ----------
    flips : list of Flips
        Of typical cells.
    scale : float or ndarray (M,)
        Error s of what flips cannot explain, in units of the errors of the data.
    wrong_labels : float
        Weight c.
    """

    def __init__(self, flips: list[LabelChanges], scale, wrong_labels: float):
        changes = np.concatenate([flip.changes for flip in flips])
        by_leaks = (
            np.mean([flip.leak_slopes for flip in flips], axis=0) * TRANSMISSIBILITY_SD[:, None]
        )
        covariance = wrong_labels / max(len(changes), 1) * changes.T @ changes
        covariance += by_leaks.T @ by_leaks
        n_measurements = len(covariance)
        covariance[np.diag_indices(n_measurements)] += scale**2
        covariance += _ROUNDING * np.trace(covariance) * np.eye(n_measurements)
        factor = np.linalg.cholesky(covariance)
        self.root = solve_triangular(factor, np.eye(n_measurements), lower=True).T

    def __call__(self, residuals: np.ndarray) -> np.ndarray:
        """Misfits (N,) of residuals (N, M)."""
        return ((residuals @ self.root) ** 2).sum(axis=1)
