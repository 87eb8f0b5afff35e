"""Labels of tetrahedra, the signals that they predict, and a misfit that counts wrong labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dipy_spinverse.bloch_torrey import Simulator
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion.noise import rician_mean

# Prior standard deviations of the relative transmissibilities of walls and of open faces.
_LEAK_SD = np.array([0.01, 0.01])
# Flips of a typical state count as this many independent wrong labels.
_WRONG_LABELS = 100.0


@dataclass(frozen=True, eq=False)
class Cells:
    """Which tetrahedra are inside of cells, and what that predicts.

    Attributes
    ----------
    labels : ndarray (T,) of bool
    leaks : ndarray (2,)
        Relative transmissibility of the walls, and of the other faces.
    signals : ndarray (M,)
    """

    labels: np.ndarray
    leaks: np.ndarray
    signals: np.ndarray


class Target:
    """Data to be explained by labels, and the means to compare with them.

    Parameters
    ----------
    simulator : Simulator
    data, sigma : ndarray (M,)
        Signals relative to the initial magnetisation, and standard deviations of their errors.
    rician : ndarray (M,)
        Noise level that lifts the mean of magnitude data; 0 for none.
    """

    def __init__(self, simulator: Simulator, data, sigma, rician):
        self.simulator, self.grid = simulator, simulator.grid
        self.sigma, self._rician = sigma, rician
        self.data = data
        self.n_simulated = 0
        self._sides = torch.as_tensor(self.grid.face_tetrahedra)

    def of_measurements(self, rows: np.ndarray, simulator: Simulator) -> Target:
        """The same for some of the measurements, which `simulator` simulates."""
        return Target(simulator, self.data[rows], self.sigma[rows], self._rician[rows])

    def cells(self, labels: np.ndarray, leaks: np.ndarray) -> list[Cells]:
        """States of labels (N, T) with leaks (2,) or (N, 2)."""
        leaks = np.broadcast_to(leaks, (len(labels), 2))
        signals = self.expected(self.simulate(labels, leaks))
        return [Cells(*state) for state in zip(labels, leaks, signals, strict=True)]

    def simulate(self, labels: np.ndarray, leaks: np.ndarray) -> np.ndarray:
        """Signals (N, M) without noise."""
        self.n_simulated += len(labels)
        transmissibility = torch.as_tensor(face_transmissibility(self.grid, labels, leaks))
        return self.simulator.signals(transmissibility).numpy().astype(float)

    def expected(self, signals: np.ndarray) -> np.ndarray:
        """Mean of the data, in units of their errors, given signals (N, M) without noise."""
        return rician_mean(signals, self._rician) / self.sigma

    def residual(self, cells: Cells) -> np.ndarray:
        """Data minus expectation, in units of the errors."""
        return self.data / self.sigma - cells.signals

    def chi_square(self, cells: Cells) -> float:
        """Mean squared residual in units of the errors: 1 for noise only."""
        return float((self.residual(cells) ** 2).mean())


def face_transmissibility(grid: TetrahedralGrid, labels, leaks) -> np.ndarray:
    """Relative transmissibilities (N, F): those of walls where labels (N, T) differ."""
    leaks = np.asarray(leaks)
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
class Flips:
    """What changes when single tetrahedra at the walls change sides.

    Attributes
    ----------
    tetrahedra : ndarray (m,)
    changes : ndarray (m, M)
        Of the expected data.
    leak_changes : ndarray (2, M)
        By one prior standard deviation of the leaks.
    """

    tetrahedra: np.ndarray
    changes: np.ndarray
    leak_changes: np.ndarray


def flips_of(target: Target, states: list[Cells]) -> list[Flips]:
    """Flips of all tetrahedra at the walls of each state, simulated together."""
    labels, leaks, chosen = [], [], []
    for state in states:
        tetrahedra = at_walls(target.grid, state.labels)
        changed = np.repeat(state.labels[None], len(tetrahedra) + 2, axis=0)
        changed[np.arange(len(tetrahedra)), tetrahedra] ^= True
        changed_leaks = np.repeat(state.leaks[None], len(changed), axis=0)
        changed_leaks[[-2, -1], [0, 1]] += _inwards(state.leaks)
        labels.append(changed)
        leaks.append(changed_leaks)
        chosen.append(tetrahedra)
    expected = target.expected(target.simulate(np.concatenate(labels), np.concatenate(leaks)))
    result, first = [], 0
    for state, tetrahedra in zip(states, chosen, strict=True):
        n = len(tetrahedra)
        changes = expected[first : first + n + 2] - state.signals
        by_leaks = changes[n:] * np.sign(_inwards(state.leaks))[:, None]
        result.append(Flips(tetrahedra, changes[:n], by_leaks))
        first += n + 2
    return result


def _inwards(leaks):
    """Steps of one prior standard deviation that stay in [0, 1]."""
    return np.where(leaks < 0.5, _LEAK_SD, -_LEAK_SD)


def stepped_leaks(leaks: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Leaks after a step in units of their prior standard deviations, within their bounds."""
    return (leaks + _LEAK_SD * step).clip(0, 1)


class Misfit:
    """Squared residual in a metric in which each wrong label counts about the same.

    The residual r of a state with n wrong labels at its walls has the covariance of n flips: with
    that of typical flips, r^T (c D^T D / m + s^2 I)^-1 r grows with their number, where the plain
    sum of squares is ruled by few directions of large signal.

    Parameters
    ----------
    flips : sequence of Flips
    scale : float or ndarray (M,)
        Error s of what flips cannot explain, in units of the errors of the data.
    """

    def __init__(self, flips, scale):
        changes = np.concatenate([flip.changes for flip in flips])
        covariance = _WRONG_LABELS / len(changes) * changes.T @ changes
        for flip in flips:
            covariance += flip.leak_changes.T @ flip.leak_changes / len(flips)
        covariance[np.diag_indices_from(covariance)] += scale**2
        self.root = np.linalg.cholesky(np.linalg.inv(covariance))

    def __call__(self, residuals: np.ndarray) -> np.ndarray:
        """Misfits (N,) of residuals (N, M)."""
        return ((residuals @ self.root) ** 2).sum(axis=1)
