"""The likeliest cell: Levenberg-Marquardt from several starts, on a coarse and a finer mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dipy_spinverse.cell_shapes.unknowns import CellShape, ShapeSignals, SimulatedCell
from dipy_spinverse.inversion.levenberg_marquardt import Damping, levenberg_marquardt
from dipy_spinverse.voxels.rician import (
    log_likelihoods,
    rician_information,
    rician_target,
)

_DAMPING = Damping(initial=1e-2, minimum=1e-9, maximum=1e5, growth=4.0, acceleration=2.0)
_EASIER = 0.2  # damping after a step that helps
# A step that gains less, in -ln(probability), or this share of it, is the last.
_LEAST_GAIN, _LEAST_SHARE = 0.1, 1e-3
_SCALE_SD = 0.5  # of the logarithm of sizes beforehand
_TURNED = 0.1  # precision of rotations, 1/rad^2: any
_MIRRORED = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])


@dataclass(frozen=True, eq=False)
class ShapeLinearisation:
    """A linear model of signals near a cell, what it is fitted to, and the prior there.

    Attributes
    ----------
    jacobian : ndarray (M, U)
    signals, target, weights : ndarray (M,)
        There, what they should be, and the inverse variances of the latter.
    pull : ndarray (U,)
    prior : ndarray (U, U)
        Gradient and curvature of the prior.
    """

    jacobian: np.ndarray
    signals: np.ndarray
    target: np.ndarray
    weights: np.ndarray
    pull: np.ndarray
    prior: np.ndarray

    @property
    def gradient(self) -> np.ndarray:
        """(U,) of the objective."""
        return self.pull + self.jacobian.T @ (self.weights * (self.signals - self.target))

    @cached_property
    def curvature(self) -> np.ndarray:
        """(U, U), of Gauss and Newton."""
        return self.prior + self.jacobian.T @ (self.weights[:, None] * self.jacobian)

    @property
    def determined(self) -> np.ndarray:
        """How far (U,) the data, not the prior, determine each unknown, 0 to 1; the sum are
        degrees of freedom."""
        return 1 - np.diag(np.linalg.solve(self.curvature, self.prior))


@dataclass(frozen=True, eq=False)
class Objective:
    """-ln(probability) of cells, given the signals of a voxel, over that of the data themselves.

    Attributes
    ----------
    forward : ShapeSignals
    data : ndarray (M,)
        Over S0.
    sigma : float
        Noise.
    rician : bool
    """

    forward: ShapeSignals
    data: np.ndarray
    sigma: float
    rician: bool

    @property
    def spread(self) -> float:
        """Standard deviation of noise and of what the mesh makes wrong, together."""
        return float(np.hypot(self.sigma, self.forward.mesh_error))

    def __call__(self, cell: SimulatedCell | None) -> float:
        if cell is None:
            return np.inf
        data, signals, spread = self._tensors(cell)
        _, flatness = self.forward.thinned(cell.points)
        scale = cell.shape.log_scale
        prior = self.beyond(cell.shape) + (scale / _SCALE_SD) ** 2 + flatness @ flatness
        likelihood = log_likelihoods(data, signals, spread, self.rician)
        return prior / 2 + float(log_likelihoods(data, data, spread, self.rician) - likelihood)

    def target(self, cell: SimulatedCell) -> tuple[np.ndarray, np.ndarray]:
        """What a linear model near a cell is to be fitted to (M,), and its weights (M,)."""
        data, signals, spread = self._tensors(cell)
        information = torch.ones_like(signals)
        if self.rician:
            information = rician_information(signals / spread[:, None])
            score = rician_target(data, signals, spread) - signals
            data = signals + score / information
        return data[0].numpy(), information[0].numpy() / self.spread**2

    def beyond(self, shape: CellShape) -> float:
        """Squared distance from the prior mean, in standard deviations of the prior."""
        theta = shape.theta - self.forward.space.prior_mean
        return float(theta @ self.forward.space.prior_precision @ theta)

    def prior(self, cell: SimulatedCell, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient (U,) and curvature (U, U) of what is known of shapes beforehand, and of the
        barrier against flat tetrahedra; fields (F, N, 3) are displacements by the unknowns."""
        shape, k = cell.shape, len(fields)
        theta, scale = shape.theta - self.forward.space.prior_mean, shape.log_scale
        n = len(theta)
        first, scaled = n + 3, not self.forward.space.has_scale
        curvature = np.zeros((k + len(shape.log_S0),) * 2)
        curvature[:n, :n] = self.forward.space.prior_precision
        curvature[range(n, first), range(n, first)] = _TURNED
        gradient = np.zeros(len(curvature))
        gradient[:n] = curvature[:n, :n] @ theta
        if scaled:
            curvature[first, first] = 1 / _SCALE_SD**2
            gradient[first] = scale / _SCALE_SD**2
        _, flatness = self.forward.thinned(cell.points)
        flatter = self.forward.thinning(cell, fields)
        gradient[:k] += flatter.T @ flatness
        curvature[:k, :k] += flatter.T @ flatter
        return gradient, curvature

    def linearised(self, cell: SimulatedCell) -> ShapeLinearisation:
        """Near a cell."""
        fields = self.forward.fields(cell)
        jacobian = self.forward.jacobian(cell, fields)
        target, prior = self.target(cell), self.prior(cell, fields)
        return ShapeLinearisation(jacobian, cell.signals, *target, *prior)

    def _tensors(self, cell):
        arrays = self.data[None], cell.signals[None], np.array([self.spread])
        return tuple(torch.as_tensor(x) for x in arrays)


def minimise(
    objective: Objective, starts: Sequence[SimulatedCell], max_steps: int
) -> tuple[list[SimulatedCell], np.ndarray, np.ndarray]:
    """Damped Gauss-Newton steps from each start; a step into inverted tetrahedra is not taken.

    Returns
    -------
    cells : list of SimulatedCell
    values : ndarray (S,)
        Of the objective.
    stopped : ndarray (S,) of bool
        By themselves.
    """
    cells = list(starts)
    values = torch.tensor([objective(cell) for cell in cells], dtype=torch.float64)
    linearised: dict[int, ShapeLinearisation] = {}

    def advance(rows, damping):
        better, small = np.zeros((2, len(rows)), dtype=bool)
        for k, (row, level) in enumerate(zip(rows.tolist(), damping.tolist(), strict=True)):
            if row not in linearised:
                linearised[row] = objective.linearised(cells[row])
            near = linearised[row]
            gradient, curvature = near.gradient, near.curvature
            damped = curvature + level * np.diag(np.diag(curvature))
            step = -np.linalg.solve(damped, gradient)
            forward = objective.forward
            trial = forward.at(forward.moved(cells[row].shape, step))
            value = objective(trial)
            gain = float(values[row]) - value
            # nothing to be gained where the steps promise nothing
            promised = -gradient @ step / 2
            small[k] = promised < _LEAST_GAIN
            if gain > 0 and trial is not None:
                better[k] = True
                small[k] = gain < _LEAST_GAIN + _LEAST_SHARE * abs(value)
                cells[row], values[row] = trial, value
                del linearised[row]
        return torch.as_tensor(better), torch.as_tensor(small), torch.tensor(_EASIER)

    stopped, _ = levenberg_marquardt(advance, values, _DAMPING, max_steps)
    return cells, values.numpy(), stopped.numpy()


def initial_cells(
    objective: Objective, frame: np.ndarray, log_S0: np.ndarray
) -> list[SimulatedCell]:
    """Each start of the shape space, turned into the axes of a diffusion tensor.

    Of the four ways that differ by more than the point reflection, which signals cannot tell, and
    of the start as it is, which may be a shape that was found before, the likeliest one.

    Parameters
    ----------
    frame : ndarray (3, 3)
        Rows are axes, that of the largest diffusivity last.
    """
    forward, found = objective.forward, []
    for theta in np.asarray(forward.space.initial_shapes(), dtype=float):
        straight = CellShape(theta, Rotation.identity(), 0.0, log_S0)
        own = np.linalg.eigh(np.cov(forward.points(straight).T))[1].T
        turned = [np.eye(3), *(frame.T @ (signs[:, None] * own) for signs in _MIRRORED)]
        ways = []
        for matrix in turned:
            rotation = Rotation.from_matrix(matrix * np.sign(np.linalg.det(matrix)))
            cell = forward.at(replace(straight, rotation=rotation))
            if cell is not None:
                ways.append((objective(cell), cell))
        if ways:
            found.append(min(ways, key=lambda way: way[0])[1])
    return found
