"""Gauss-Newton in the shares of tetrahedra inside of cells: smooth changes of shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from dipy_spinverse.cell_search.effort import StepPrior
from dipy_spinverse.cell_search.labelled import TRANSMISSIBILITY_SD, Target
from dipy_spinverse.grid import TetrahedralGrid

# Chosen on the shapes of benchmarks/shapes.py.
_BLUR = 1.06  # of cells to start from, in distances of neighbouring tetrahedra
_SHARE_SD = 0.3  # prior standard deviation of a change of share at walls
_FAR_FROM_WALLS = 0.1  # that of tetrahedra without walls around, relative to it
_LINEAR_ERRORS = (1.0, 0.5, 0.3, 0.3, 0.2, 0.1)  # of steps, relative to the residual
_SHORTER = 0.4  # of a step that goes too far
_FORCE_PER_STEP = 0.15  # growth of the force away from shares between 0 and 1
_MOST_ON_BOUNDS = 5  # times that shares which leave 0 to 1 are held there


@dataclass(frozen=True, eq=False)
class PartialCells:
    """Share (T,) of each tetrahedron inside of cells, and leaks (2,)."""

    share: np.ndarray
    leaks: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Which tetrahedra (T,) are inside for the most part, or more than any other."""
        return self.share > min(0.5, np.nextafter(self.share.max(), 0))


class Descent:
    """Steps that bring cells of a grid closer to data."""

    def __init__(self, grid: TetrahedralGrid, prior: StepPrior):
        self._points, self._prior = grid.centroids, prior
        self._step = np.linalg.norm(grid.displacements, axis=1).mean()
        tree, width = cKDTree(self._points), _BLUR * self._step
        near = tree.sparse_distance_matrix(tree, 3.5 * width, output_type="coo_matrix").tocsr()
        near.data = np.exp(-0.5 * (near.data / width) ** 2)
        near.setdiag(1.0)
        self._blur = near.multiply(1 / near.sum(axis=1)).tocsr()

    def blurred(self, labels: np.ndarray, leaks: np.ndarray) -> PartialCells:
        """Cells from which steps may start, of labels (T,)."""
        return PartialCells(self._blur @ labels.astype(float), leaks)

    def __call__(
        self,
        target: Target,
        cells: PartialCells,
        rng: np.random.Generator,
        n_steps: int,
        disturbance: float = 0.0,
    ) -> PartialCells:
        """Cells after some steps.

        Parameters
        ----------
        target : Target
        cells : PartialCells
        rng : Generator
        n_steps : int
        disturbance : float
            Of the shape before the first step, as far as the data do not speak against it;
            relative to its prior standard deviation.
        """
        here = self._linearised(target, cells)
        if disturbance:
            root = self._prior_root(here, rng)
            drawn = disturbance * (root @ rng.standard_normal(len(root)))
            here = self._linearised(target, here.moved(self._step_of(here, root, drawn, 1.0)[0]))
        for k in range(n_steps):
            root = self._prior_root(here, rng)
            force = np.append(_FORCE_PER_STEP * k * (2 * here.share - 1), [0, 0])
            relative = _LINEAR_ERRORS[min(k, len(_LINEAR_ERRORS) - 1)]
            step, metric = self._step_of(here, root, root @ (root.T @ force), relative)
            there = self._linearised(target, here.moved(step))
            if _squares(there.residual, metric) > _squares(here.residual, metric):
                there = self._linearised(target, here.moved(_SHORTER * step))
            here = there
        return here.cells

    def _linearised(self, target, cells):
        expected, jacobian = target.linear(cells.share, cells.leaks)
        residual = target.data / target.sigma - expected
        active = np.flatnonzero(np.abs(jacobian[:, :-2]).sum(axis=0))
        return _Linear(cells, residual, active, jacobian[:, np.append(active, [-2, -1])])

    def _step_of(self, here, root, wanted, relative_error):
        """A step, and the covariance of residuals in whose metric it should be shorter."""
        size = np.sqrt((here.residual**2).mean())
        error = np.hypot(relative_error * size, 1.0)
        step = _bounded_step(here.jacobian, here.residual, root, error, wanted, here.share)
        by_root = here.jacobian @ root
        return step, by_root @ by_root.T + error**2 * np.eye(len(by_root))

    def _prior_root(self, here, rng):
        """Root of the covariance of a change of active shares, and of the leaks."""
        share = here.cells.share
        walls = np.minimum(8 * (self._blur @ (share * (1 - share))), 1)[here.active]
        sd = _SHARE_SD * (_FAR_FROM_WALLS + (1 - _FAR_FROM_WALLS) * walls)
        points = self._points[here.active] / (self._step * rng.choice(self._prior.lengths))
        squares = (points**2).sum(axis=1)
        apart = squares[:, None] + squares - 2 * points @ points.T
        covariance = np.exp(-0.5 * apart) + self._prior.independent * np.eye(len(sd))
        root = np.zeros((len(sd) + 2,) * 2)
        root[:-2, :-2] = sd[:, None] * np.linalg.cholesky(covariance)
        root[[-2, -1], [-2, -1]] = TRANSMISSIBILITY_SD
        return root


@dataclass(frozen=True, eq=False)
class _Linear:
    """Cells, the residual (M,), and its derivatives (M, A + 2) by active shares and leaks."""

    cells: PartialCells
    residual: np.ndarray
    active: np.ndarray
    jacobian: np.ndarray

    @property
    def share(self):
        return self.cells.share[self.active]

    def moved(self, step):
        share = self.cells.share.copy()
        share[self.active] = (self.share + step[:-2]).clip(0, 1)
        return PartialCells(share, (self.cells.leaks + step[-2:]).clip(0, 1))


def _squares(residual, covariance):
    return residual @ np.linalg.solve(covariance, residual)


def _bounded_step(jacobian, residual, root, error, wanted, share):
    """Step nearest to the one wanted that explains the residual, shares within 0 and 1."""
    step = np.zeros(len(wanted))
    free = np.ones(len(wanted), dtype=bool)
    for _ in range(_MOST_ON_BOUNDS):
        by_root = jacobian[:, free] @ root[free]
        rest = residual - jacobian[:, ~free] @ step[~free] - jacobian[:, free] @ wanted[free]
        system = by_root @ by_root.T + error**2 * np.eye(len(rest))
        step[free] = wanted[free] + root[free] @ (by_root.T @ np.linalg.solve(system, rest))
        bounded = step[:-2].clip(-share, 1 - share)
        outside = (bounded != step[:-2]) & free[:-2]
        if not outside.any():
            break
        step[:-2] = np.where(outside, bounded, step[:-2])
        free[:-2] &= ~outside
    return step
