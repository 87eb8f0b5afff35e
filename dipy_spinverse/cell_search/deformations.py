"""Other labels near a state: smooth deformations of its cells, and flips of single tetrahedra."""

from __future__ import annotations

import numpy as np
from scipy.optimize import lsq_linear
from scipy.spatial import cKDTree

from dipy_spinverse.cell_search.labelled import Cells, Flips, Target, stepped_leaks
from dipy_spinverse.grid import TetrahedralGrid

# Lengths, in steps between tetrahedra, over which deformations are smooth; their standard
# deviation, in such steps, before the data are seen, and the largest.
_SMOOTH_LENGTHS = (1.4, 2.2, 3.6, 6.3)
_AMPLITUDES, _LARGEST = (0.3, 0.6, 1.0), 4.0
_STEP_LENGTHS = (0.5, 1.0, 2.0)
_N_FEATURES = 256
_N_DRAWN = 3
_NUMBERS_FLIPPED = (1, 2, 4, 8, 16)
_FLIP_DAMPING = 0.3


class Deformations:
    """Random smooth displacement fields of walls, as a Gaussian process over a grid [1]_.

    References
    ----------
    .. [1] Random Fourier features: Rahimi and Recht, NeurIPS 20 (2007)
    """

    def __init__(self, grid: TetrahedralGrid, seed: int):
        rng = np.random.default_rng(seed)
        self._points = grid.centroids
        self._step = np.linalg.norm(grid.displacements, axis=1).mean()
        self._features = []
        for length in _SMOOTH_LENGTHS:
            waves = rng.standard_normal((3, _N_FEATURES)) / (length * self._step)
            phases = rng.uniform(0, 2 * np.pi, _N_FEATURES)
            waves = np.cos(self._points @ waves + phases)
            self._features.append(waves * np.sqrt(2 / _N_FEATURES))

    def _signed_distance(self, labels):
        """Of each tetrahedron to the walls, in steps between tetrahedra; positive inside."""
        distance = np.empty(len(labels))
        for side in (False, True):
            other = cKDTree(self._points[labels != side])
            distance[labels == side] = other.query(self._points[labels == side])[0]
        return np.where(labels, 1, -1) * (distance / self._step - 0.5)

    def candidates(
        self, target: Target, state: Cells, flips: Flips, scale: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels (N, T) and leaks (N, 2) that may explain the data better.

        Parameters
        ----------
        target, state, flips
            The data, and the state to start from.
        scale : float
            Error of the linear extrapolation from flips, in units of the errors of the data.
        rng : Generator
        """
        residual = target.residual(state)
        distance = self._signed_distance(state.labels)
        # An outward step of the wall by one tetrahedron flips those outside of it.
        outward = np.where(state.labels[flips.tetrahedra], -0.5, 0.5)
        by_step, by_leak = flips.changes.T * outward, flips.leak_changes.T
        labels, leaks = [], []
        for kind in rng.choice(len(self._features), 2, replace=False):
            features = self._features[kind]
            by_weight = np.hstack([by_step @ features[flips.tetrahedra], by_leak])
            precision = by_weight @ by_weight.T + scale**2 * np.eye(len(residual))
            to_weights = np.linalg.solve(precision, by_weight).T
            best = to_weights @ residual
            steps = [length * best for length in _STEP_LENGTHS]
            for _ in range(_N_DRAWN):
                drawn = rng.choice(_AMPLITUDES) * rng.standard_normal(len(best))
                steps.append(drawn + to_weights @ (residual - by_weight @ drawn))
            for step in steps:
                displacement = (features @ step[:-2]).clip(-_LARGEST, _LARGEST)
                labels.append(distance + displacement > 0)
                leaks.append(stepped_leaks(state.leaks, step[-2:]))
        labels += _flipped(state, flips, residual, scale)
        leaks += [stepped_leaks(state.leaks, best[-2:])] * (len(labels) - len(leaks))
        return np.array(labels), np.array(leaks)


def _flipped(state, flips, residual, scale):
    """Labels with the flips that fit the residual best, from one to many."""
    n_flips = len(flips.tetrahedra)
    system = np.vstack([flips.changes.T / scale, _FLIP_DAMPING * np.eye(n_flips)])
    share = lsq_linear(system, np.append(residual / scale, np.zeros(n_flips)), (0, 1)).x
    order = flips.tetrahedra[np.argsort(-share)]
    result = []
    for number in _NUMBERS_FLIPPED:
        if number <= (share > 1e-3).sum():
            labels = state.labels.copy()
            labels[order[:number]] ^= True
            result.append(labels)
    return result
