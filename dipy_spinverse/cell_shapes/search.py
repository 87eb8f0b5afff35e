"""The most probable cell, by Levenberg-Marquardt, and posterior samples around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
_EASIER = 0.2  # factor of the damping after a step that lowers the objective
# A step that lowers -ln(probability) by less than this, or by less than this fraction, is the
# last: well below the change of 1/2 that one standard error makes.
_LEAST_GAIN, _LEAST_SHARE = 0.1, 1e-3
_SCALE_SD = 0.5  # prior standard deviation of the logarithm of the size; chosen by hand
_ROTATION_PRECISION = 0.1  # of the prior, 1/rad^2: nearly flat (standard deviation 180 degrees)
_RIDGE = 1e-14  # relative to the trace of the prior precision: makes it positive definite
_MAX_HALVINGS = 4  # of steps into inverted tetrahedra
_MIRRORED = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])


@dataclass(frozen=True, eq=False)
class ShapeLinearisation:
    """Signals linearised at a cell, the target of their fit, and the prior there."""

    jacobian: np.ndarray  # (M, U)
    signals: np.ndarray  # (M,), at the cell
    target: np.ndarray  # (M,), those to be fitted
    weights: np.ndarray  # (M,), inverse variances of the target
    pull: np.ndarray  # (U,), gradient of the prior
    prior: np.ndarray  # (U, U), curvature of the prior

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
        """Resolution (U,): 1 where data determine an unknown, 0 where the prior does.

        The sum is the effective number of parameters.
        """
        return 1 - np.diag(np.linalg.solve(self.curvature, self.prior))


@dataclass(frozen=True, eq=False)
class ShapeObjective:
    """-ln(posterior probability) of cells, relative to that of signals equal to the data."""

    forward: ShapeSignals
    data: np.ndarray  # (M,), over S0
    sigma: float
    rician: bool

    @property
    def standard_error(self) -> float:
        """Standard deviation of the noise and of the discretisation error, in quadrature."""
        return float(np.hypot(self.sigma, self.forward.mesh_error))

    def __call__(self, cell: SimulatedCell | None) -> float:
        if cell is None:
            return np.inf
        data, signals, standard_error = self._tensors(cell)
        _, flatness = self.forward.thinned(cell.points)
        scale = cell.shape.log_scale
        prior = self.prior_distance(cell.shape) + (scale / _SCALE_SD) ** 2 + flatness @ flatness
        likelihood = log_likelihoods(data, signals, standard_error, self.rician)
        return prior / 2 + float(
            log_likelihoods(data, data, standard_error, self.rician) - likelihood
        )

    def target(self, cell: SimulatedCell) -> tuple[np.ndarray, np.ndarray]:
        """Target (M,) of the linearised signals at a cell, and its weights (M,)."""
        data, signals, standard_error = self._tensors(cell)
        information = torch.ones_like(signals)
        if self.rician:
            information = rician_information(signals / standard_error[:, None])
            score = rician_target(data, signals, standard_error) - signals
            data = signals + score / information
        return data[0].numpy(), information[0].numpy() / self.standard_error**2

    def prior_distance(self, shape: CellShape) -> float:
        """Squared distance from the prior mean, in standard deviations of the prior."""
        theta = shape.theta - self.forward.space.prior_mean
        return float(theta @ self.forward.space.prior_precision @ theta)

    def prior(self, cell: SimulatedCell, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient (U,) and curvature (U, U) of the prior and of the barrier against flat
        tetrahedra; fields (F, N, 3) are displacements by the unknowns."""
        shape, k = cell.shape, len(fields)
        theta, scale = shape.theta - self.forward.space.prior_mean, shape.log_scale
        n = len(theta)
        log_scale_index, scaled = n + 3, not self.forward.space.has_scale
        curvature = np.zeros((k + len(shape.log_S0),) * 2)
        curvature[:n, :n] = self.forward.space.prior_precision
        curvature[range(n, log_scale_index), range(n, log_scale_index)] = _ROTATION_PRECISION
        gradient = np.zeros(len(curvature))
        gradient[:n] = curvature[:n, :n] @ theta
        if scaled:
            curvature[log_scale_index, log_scale_index] = 1 / _SCALE_SD**2
            gradient[log_scale_index] = scale / _SCALE_SD**2
        _, flatness = self.forward.thinned(cell.points)
        flatter = self.forward.thinning(cell, fields)
        gradient[:k] += flatter.T @ flatness
        curvature[:k, :k] += flatter.T @ flatter
        return gradient, curvature

    def linearised(self, cell: SimulatedCell) -> ShapeLinearisation:
        fields = self.forward.fields(cell)
        jacobian = self.forward.jacobian(cell, fields)
        target, prior = self.target(cell), self.prior(cell, fields)
        return ShapeLinearisation(jacobian, cell.signals, *target, *prior)

    def _tensors(self, cell):
        arrays = self.data[None], cell.signals[None], np.array([self.standard_error])
        return tuple(torch.as_tensor(x) for x in arrays)


def minimise_cells(
    objective: ShapeObjective, starts: Sequence[SimulatedCell], max_steps: int
) -> tuple[list[SimulatedCell], np.ndarray, np.ndarray]:
    """Cells, their objectives (S,), and whether each search (S,) converged, from initial cells.

    By Levenberg-Marquardt; steps into inverted tetrahedra are rejected.
    """
    cells = list(starts)
    values = torch.tensor([objective(cell) for cell in cells], dtype=torch.float64)
    linearised: dict[int, ShapeLinearisation] = {}

    def advance(rows, damping):
        improved, converged = np.zeros((2, len(rows)), dtype=bool)
        for k, (row, level) in enumerate(zip(rows.tolist(), damping.tolist(), strict=True)):
            if row not in linearised:
                linearised[row] = objective.linearised(cells[row])
            linearisation = linearised[row]
            gradient, curvature = linearisation.gradient, linearisation.curvature
            damped = curvature + level * np.diag(np.diag(curvature))
            step = -np.linalg.solve(damped, gradient)
            forward = objective.forward
            trial = forward.at(forward.moved(cells[row].shape, step))
            value = objective(trial)
            gain = float(values[row]) - value
            promised = -gradient @ step / 2
            converged[k] = promised < _LEAST_GAIN
            if gain > 0 and trial is not None:
                improved[k] = True
                converged[k] = gain < _LEAST_GAIN + _LEAST_SHARE * abs(value)
                cells[row], values[row] = trial, value
                del linearised[row]
        return torch.as_tensor(improved), torch.as_tensor(converged), torch.tensor(_EASIER)

    stopped = levenberg_marquardt(advance, values, _DAMPING, max_steps)
    return cells, values.numpy(), stopped.numpy()


def initial_cells(
    objective: ShapeObjective, frame: np.ndarray, log_S0: np.ndarray
) -> list[SimulatedCell]:
    """Each initial shape of the space, rotated into the frame of a diffusion tensor.

    Rows of the frame (3, 3) are axes, that of the largest diffusivity last. Of the four
    orientations that differ by more than a point reflection, to which signals are invariant, and
    of the unrotated shape, which may be an earlier estimate, the most probable one.
    """
    forward, cells = objective.forward, []
    for theta in np.asarray(forward.space.initial_shapes(), dtype=float):
        template_shape = CellShape(theta, Rotation.identity(), 0.0, log_S0)
        principal_axes = np.linalg.eigh(np.cov(forward.points(template_shape).T))[1].T
        frames = [np.eye(3), *(frame.T @ (signs[:, None] * principal_axes) for signs in _MIRRORED)]
        candidates = []
        for matrix in frames:
            rotation = Rotation.from_matrix(matrix * np.sign(np.linalg.det(matrix)))
            cell = forward.at(replace(template_shape, rotation=rotation))
            if cell is not None:
                candidates.append((objective(cell), cell))
        if candidates:
            cells.append(min(candidates, key=lambda candidate: candidate[0])[1])
    return cells


def posterior_cells(
    forward: ShapeSignals,
    likeliest: SimulatedCell,
    linearisation: ShapeLinearisation,
    n_draws: int,
    rng: np.random.Generator,
) -> Iterator[SimulatedCell]:
    """Posterior samples: the most probable cells for perturbed data and prior means.

    Randomised maximum likelihood (Chen and Oliver, https://doi.org/10.1007/s11004-011-9376-z).
    Each takes one Gauss-Newton step, which samples the Laplace approximation, and a second one
    with the signals computed there. They are yielded one by one: each takes tens of megabytes.
    """
    prior, weighted = linearisation.prior, linearisation.weights[:, None] * linearisation.jacobian
    covariance = np.linalg.inv(linearisation.curvature)
    # the prior of rotations and S0 is nearly flat
    root = np.linalg.cholesky(prior + _RIDGE * np.trace(prior) * np.eye(len(prior)))
    for _ in range(n_draws):
        data = linearisation.target + rng.standard_normal(len(linearisation.target)) / np.sqrt(
            linearisation.weights
        )
        pull = linearisation.pull + root @ rng.standard_normal(len(prior))
        step, cell, trials = np.zeros(len(prior)), likeliest, []
        for _ in range(2):
            gradient = weighted.T @ (data - cell.signals) - pull - prior @ step
            step, cell = _feasible(forward, likeliest.shape, step + covariance @ gradient)
            misfit = linearisation.weights @ (data - cell.signals) ** 2 / 2
            trials.append((misfit + step @ (pull + prior @ step / 2), cell))
        yield min(trials, key=lambda trial: trial[0])[1]


def _feasible(forward, shape, step):
    """A step and the cell after it, shorter where tetrahedra would be inverted."""
    for _ in range(_MAX_HALVINGS):
        cell = forward.at(forward.moved(shape, step))
        if cell is not None:
            return step, cell
        step = step / 2
    return 0 * step, forward.at(shape)
