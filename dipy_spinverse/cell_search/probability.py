"""How probable labels are, given noisy data, and more probable ones by annealing."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.effort import AnnealingEffort
from dipy_spinverse.cell_search.labelled import (
    TRANSMISSIBILITY_SD,
    LabelledCells,
    Target,
    label_changes,
)
from dipy_spinverse.cell_search.metropolis import random_moves, walk
from dipy_spinverse.cell_search.smoothness import Smoothness

# Temperatures and gains of the log probability, chosen on the shapes of benchmarks/shapes.py.
_HOTTEST = 3.0
_COLDEST = 0.05
_LEAST_GAIN = 0.01  # of a round
# Steps to the likeliest leaks, as long as the mean squared residual gains this.
_MOST_LEAK_STEPS = 3
_LEAST_LEAK_GAIN = 0.1


class LogProbability:
    """Log probability of cells: of their residual, whatever their leaks, and of their shape.

    Parameters
    ----------
    smoothness : Smoothness
    target : Target
    typical : list of Cells
        Whose sensitivities to the leaks stand for those of all.
    effort : AnnealingEffort
    """

    def __init__(
        self,
        smoothness: Smoothness,
        target: Target,
        typical: list[LabelledCells],
        effort: AnnealingEffort,
    ):
        self._smoothness, self._effort = smoothness, effort
        slopes = [
            label_changes(target, cells.labels, cells.leaks).leak_slopes for cells in typical
        ]
        by_leak = np.mean(slopes, axis=0) * TRANSMISSIBILITY_SD[:, None]
        covariance = np.eye(by_leak.shape[1]) + by_leak.T @ by_leak
        self._whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T

    def __call__(self, target: Target, cells: LabelledCells) -> float:
        """Log probability, but for a constant."""
        return self._value(self._rest(target, cells), cells.labels)

    def _rest(self, target, cells):
        return target.residual(cells) @ self._whitening

    def _value(self, rest, labels):
        return -0.5 * rest @ rest + self._smoothness(labels)

    def annealed(
        self,
        target: Target,
        cells: LabelledCells,
        rng: np.random.Generator,
        hottest: float = _HOTTEST,
    ) -> LabelledCells:
        """More probable cells: flips of tetrahedra at the walls, and the likeliest leaks."""
        value = self(target, cells)
        for _ in range(self._effort.most_rounds):
            linear = _LinearFlips(self, target, cells)
            n_moves = self._effort.n_sweeps * len(linear.tetrahedra)
            temperatures = np.geomspace(hottest, _COLDEST, n_moves)
            flips = [linear.annealed(rng, temperatures, n) for n in self._effort.numbers]
            candidates = [flipped for flipped in flips if linear.labels(flipped).any()]
            if not candidates:
                break
            states = target.cells(
                np.array([linear.labels(flipped) for flipped in candidates]),
                np.array([linear.leaks(flipped) for flipped in candidates]),
            )
            values = [self(target, state) for state in states]
            if max(values) < value + _LEAST_GAIN:
                break
            value, cells = max(values), states[np.argmax(values)]
        return with_likeliest_leaks(target, cells)


def with_likeliest_leaks(target: Target, cells: LabelledCells) -> LabelledCells:
    """The same labels, with leaks that explain the residual best."""
    for _ in range(_MOST_LEAK_STEPS):
        slopes = label_changes(target, cells.labels, cells.leaks).leak_slopes
        leaks = _likeliest_leaks(cells.leaks, slopes, target.residual(cells))
        there = target.cells(cells.labels[None], leaks)[0]
        gain = target.chi_square(cells) - target.chi_square(there)
        if gain > 0:
            cells = there
        if gain < _LEAST_LEAK_GAIN:
            break
    return cells


def _likeliest_leaks(leaks, slopes, residual):
    by_leak = slopes * TRANSMISSIBILITY_SD[:, None]
    step = np.linalg.solve(by_leak @ by_leak.T + np.eye(2), by_leak @ residual)
    return (leaks + TRANSMISSIBILITY_SD * step).clip(0, 1)


class _LinearFlips:
    """Flips of the tetrahedra at the walls of cells, whose changes of the signals add up."""

    def __init__(self, probability, target, cells):
        self._probability, self._cells = probability, cells
        flips = label_changes(target, cells.labels, cells.leaks)
        self.tetrahedra = flips.tetrahedra
        self._residual, self._exact_changes = target.residual(cells), flips.changes
        self._rest = probability._rest(target, cells)
        self._changes = flips.changes @ probability._whitening
        self._leak_slopes = flips.leak_slopes

    def labels(self, flipped):
        labels = self._cells.labels.copy()
        labels[self.tetrahedra[flipped]] ^= True
        return labels

    def leaks(self, flipped):
        """The likeliest leaks."""
        rest = self._residual - flipped @ self._exact_changes
        return _likeliest_leaks(self._cells.leaks, self._leak_slopes, rest)

    def annealed(self, rng, temperatures, most):
        """Which flip, at most so many, after Metropolis moves at some temperatures."""
        moves = random_moves(rng, len(self.tetrahedra), temperatures, most)
        labels, odds = self._cells.labels.copy(), self._probability._smoothness.log_odds
        return walk(labels, self._rest.copy(), self._changes, self.tetrahedra, odds, moves)
