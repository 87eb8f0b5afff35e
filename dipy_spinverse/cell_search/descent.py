"""Gauss-Newton in the volume fractions of tetrahedra inside of cells: smooth shape changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from dipy_spinverse.cell_search.labelled import TRANSMISSIBILITY_SD, Target
from dipy_spinverse.grid import TetrahedralGrid

# Set by hand on the shapes of benchmarks/shapes.py. Lengths are in distances of neighbouring
# tetrahedra. Without noise, shapes are recovered without smooth steps, too
# (benchmarks/results/ablation.md); with noise that was not measured.
_BLUR = 1.06  # standard deviation of the kernel that blurs labels
_LENGTHS = (0.85, 1.06, 1.27)  # correlation lengths of a step, one of which is drawn
_INDEPENDENT_VARIANCE = 0.02  # variance of a step that is not smooth, relative to the smooth part
_FRACTION_SD = 0.3  # prior standard deviation of a change of volume fraction at walls
_SD_AWAY_FROM_WALLS = 0.1  # relative to that
_MODEL_ERRORS = (1.0, 0.5, 0.3, 0.3, 0.2, 0.1)  # of the linear model, relative to the residual
_STEP_REDUCTION = 0.4  # of a step that increases the residual
_BINARY_FORCE = 0.15  # increase per step of the drift of volume fractions towards 0 and 1
_MAX_BOUND_ITERATIONS = 5  # of an active-set method for the bounds 0 and 1


@dataclass(frozen=True, eq=False)
class PartialCells:
    """Volume fraction (T,) of each tetrahedron inside of cells, and transmissibility (2,)."""

    fractions: np.ndarray
    transmissibility: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Which tetrahedra (T,) are inside by half, or more than any other."""
        return self.fractions > min(0.5, np.nextafter(self.fractions.max(), 0))


class Descent:
    """Gauss-Newton steps of the cells of a grid towards data."""

    def __init__(self, grid: TetrahedralGrid):
        self._centroids = grid.centroids
        self._spacing = np.linalg.norm(grid.displacements, axis=1).mean()
        tree, width = cKDTree(self._centroids), _BLUR * self._spacing
        kernel = tree.sparse_distance_matrix(tree, 3.5 * width, output_type="coo_matrix").tocsr()
        kernel.data = np.exp(-0.5 * (kernel.data / width) ** 2)
        kernel.setdiag(1.0)
        self._blur = kernel.multiply(1 / kernel.sum(axis=1)).tocsr()

    def blurred(self, labels: np.ndarray, transmissibility: np.ndarray) -> PartialCells:
        """Initial partial cells of labels (T,)."""
        return PartialCells(self._blur @ labels.astype(float), transmissibility)

    def __call__(
        self,
        target: Target,
        cells: PartialCells,
        rng: np.random.Generator,
        n_steps: int,
        disturbance: float = 0.0,
    ) -> PartialCells:
        """Cells after some steps, before them a random shape change to which the data are
        insensitive: `disturbance` is its standard deviation, relative to that of the prior."""
        state = self._linearised(target, cells)
        if disturbance:
            root = self._prior_root(state, rng)
            change = disturbance * (root @ rng.standard_normal(len(root)))
            state = self._linearised(target, state.moved(self._step(state, root, change, 1.0)[0]))
        for k in range(n_steps):
            root = self._prior_root(state, rng)
            force = np.append(_BINARY_FORCE * k * (2 * state.fractions - 1), [0, 0])
            model_error = _MODEL_ERRORS[min(k, len(_MODEL_ERRORS) - 1)]
            step, covariance = self._step(state, root, root @ (root.T @ force), model_error)
            candidate = self._linearised(target, state.moved(step))
            before, after = (
                x.residual @ np.linalg.solve(covariance, x.residual) for x in (state, candidate)
            )
            if after > before:
                candidate = self._linearised(target, state.moved(_STEP_REDUCTION * step))
            state = candidate
        return state.cells

    def _linearised(self, target, cells):
        expected, jacobian = target.linear(cells.fractions, cells.transmissibility)
        residual = target.data / target.sigma - expected
        active = np.flatnonzero(np.abs(jacobian[:, :-2]).sum(axis=0))
        return _LinearModel(cells, residual, active, jacobian[:, np.append(active, [-2, -1])])

    def _step(self, state, root, prior_step, model_error):
        """A step, and the covariance of residuals in whose metric these should decrease."""
        size = np.sqrt((state.residual**2).mean())
        error = np.hypot(model_error * size, 1.0)
        step = _bounded_step(state, root, error, prior_step)
        by_root = state.jacobian @ root
        return step, by_root @ by_root.T + error**2 * np.eye(len(by_root))

    def _prior_root(self, state, rng):
        """Root of the prior covariance of changes of active fractions and transmissibilities."""
        fractions = state.cells.fractions
        at_wall = np.minimum(8 * (self._blur @ (fractions * (1 - fractions))), 1)[state.active]
        sd = _FRACTION_SD * (_SD_AWAY_FROM_WALLS + (1 - _SD_AWAY_FROM_WALLS) * at_wall)
        points = self._centroids[state.active] / (self._spacing * rng.choice(_LENGTHS))
        squares = (points**2).sum(axis=1)
        squared_distance = squares[:, None] + squares - 2 * points @ points.T
        covariance = np.exp(-0.5 * squared_distance) + _INDEPENDENT_VARIANCE * np.eye(len(sd))
        root = np.zeros((len(sd) + 2,) * 2)
        root[:-2, :-2] = sd[:, None] * np.linalg.cholesky(covariance)
        root[[-2, -1], [-2, -1]] = TRANSMISSIBILITY_SD
        return root


@dataclass(frozen=True, eq=False)
class _LinearModel:
    """Cells, the residual (M,), and its jacobian (M, A + 2) in active fractions."""

    cells: PartialCells
    residual: np.ndarray
    active: np.ndarray
    jacobian: np.ndarray

    @property
    def fractions(self):
        return self.cells.fractions[self.active]

    def moved(self, step):
        fractions = self.cells.fractions.copy()
        fractions[self.active] = (self.fractions + step[:-2]).clip(0, 1)
        return PartialCells(fractions, (self.cells.transmissibility + step[-2:]).clip(0, 1))


def _bounded_step(state, root, error, prior_step):
    """Most probable step (A + 2,) about `prior_step` p, with fractions between 0 and 1: over free
    ones s = p + R (J R)^T ((J R) (J R)^T + error^2 I)^-1 (r - J p)."""
    jacobian, fractions = state.jacobian, state.fractions
    step = np.zeros(len(prior_step))
    free = np.ones(len(prior_step), dtype=bool)
    for _ in range(_MAX_BOUND_ITERATIONS):
        by_root = jacobian[:, free] @ root[free]
        residual = state.residual - jacobian[:, ~free] @ step[~free]
        residual = residual - jacobian[:, free] @ prior_step[free]
        covariance = by_root @ by_root.T + error**2 * np.eye(len(residual))
        gain = root[free] @ (by_root.T @ np.linalg.solve(covariance, residual))
        step[free] = prior_step[free] + gain
        bounded = step[:-2].clip(-fractions, 1 - fractions)
        outside = (bounded != step[:-2]) & free[:-2]
        if not outside.any():
            break
        step[:-2] = np.where(outside, bounded, step[:-2])
        free[:-2] &= ~outside
    return step
