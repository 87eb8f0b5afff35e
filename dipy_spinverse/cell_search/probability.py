"""How probable labels are, given noisy data, and more probable ones by annealing."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.labelled import LEAK_SD, Cells, Target, flips_of
from dipy_spinverse.cell_search.metropolis import walk
from dipy_spinverse.cell_search.smoothness import Smoothness

# Most flips of a candidate, until the linear model is made anew.
_MOST_FLIPS = (1, 2, 4, 8, 16)
# Leaks, too, are found by linear steps, as long as the mean squared residual gains this.
_MOST_LEAK_STEPS, _LEAST_LEAK_GAIN = 3, 0.1
_SWEEPS, _HOTTEST, _COLDEST, _MOST_ROUNDS, _LEAST_GAIN = 60, 3.0, 0.05, 4, 0.01


class Posterior:
    """Log probability of cells: of their residual, whatever their leaks, and of their shape.

    Parameters
    ----------
    smoothness : Smoothness
    target : Target
    typical : list of Cells
        Whose sensitivities to the leaks stand for those of all.
    """

    def __init__(self, smoothness: Smoothness, target: Target, typical: list[Cells]):
        self._smoothness = smoothness
        slopes = [flips_of(target, cells.labels, cells.leaks).leak_slopes for cells in typical]
        by_leak = np.mean(slopes, axis=0) * LEAK_SD[:, None]
        covariance = np.eye(by_leak.shape[1]) + by_leak.T @ by_leak
        self._whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T

    def __call__(self, target: Target, cells: Cells) -> float:
        """Log probability, but for a constant."""
        return self._value(self._rest(target, cells), cells.labels)

    def _rest(self, target, cells):
        return target.residual(cells) @ self._whitening

    def _value(self, rest, labels):
        return -0.5 * rest @ rest + self._smoothness(labels)

    def annealed(
        self, target: Target, cells: Cells, rng: np.random.Generator, hottest: float = _HOTTEST
    ) -> Cells:
        """More probable cells: flips of tetrahedra at the walls, and the likeliest leaks."""
        value = self(target, cells)
        for _ in range(_MOST_ROUNDS):
            linear = _LinearFlips(self, target, cells)
            n_moves = _SWEEPS * len(linear.tetrahedra)
            temperatures = np.geomspace(hottest, _COLDEST, n_moves)
            candidates = [linear.annealed(rng, temperatures, most) for most in _MOST_FLIPS]
            candidates = [flipped for flipped in candidates if linear.labels(flipped).any()]
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


def with_likeliest_leaks(target: Target, cells: Cells) -> Cells:
    """The same labels, with leaks that explain the residual best."""
    for _ in range(_MOST_LEAK_STEPS):
        slopes = flips_of(target, cells.labels, cells.leaks).leak_slopes
        leaks = _likeliest_leaks(cells.leaks, slopes, target.residual(cells))
        there = target.cells(cells.labels[None], leaks)[0]
        gain = target.chi_square(cells) - target.chi_square(there)
        if gain > 0:
            cells = there
        if gain < _LEAST_LEAK_GAIN:
            break
    return cells


def _likeliest_leaks(leaks, slopes, residual):
    by_leak = slopes * LEAK_SD[:, None]
    step = np.linalg.solve(by_leak @ by_leak.T + np.eye(2), by_leak @ residual)
    return (leaks + LEAK_SD * step).clip(0, 1)


class _LinearFlips:
    """Flips of the tetrahedra at the walls of cells, whose changes of the signals add up."""

    def __init__(self, posterior, target, cells):
        self._posterior, self._cells = posterior, cells
        flips = flips_of(target, cells.labels, cells.leaks)
        self.tetrahedra = flips.tetrahedra
        self._residual, self._exact_changes = target.residual(cells), flips.changes
        self._rest = posterior._rest(target, cells)
        self._changes = flips.changes @ posterior._whitening
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
        n_moves, smoothness = len(temperatures), self._posterior._smoothness
        return walk(
            self._cells.labels.copy(), self._rest.copy(), self._changes, self.tetrahedra,
            *smoothness.neighbours, smoothness.even,
            rng.integers(len(self.tetrahedra), size=n_moves),
            temperatures * np.log(rng.random(n_moves)), most,
        )  # fmt: skip
