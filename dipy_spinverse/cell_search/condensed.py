"""Noisy data condensed to a few measurements from which the others follow linearly."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import numpy as np
from scipy.linalg import qr

from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import PartialVolumeSimulator
from dipy_spinverse.cell_search.labelled import LabelledCells, Target
from dipy_spinverse.voxels.rician import rician_mean

# Error of the regression, in units of the noise, that is not resolved: small relative to
# the noise.
_RIDGE = 0.05
_RICIAN_ITERATIONS = 3  # of a fixed-point iteration for the bias; set by hand


def whitening(errors: np.ndarray) -> np.ndarray:
    """(I + E^T E)^(-1/2) (M, M), which makes data white that have independent errors of variance 1
    and the effects E (k, M) of errors shared by measurements, one standard deviation each."""
    directions, size, _ = np.linalg.svd(errors.T, full_matrices=False)
    reduction = 1 - 1 / np.sqrt(1 + size**2)
    return np.eye(errors.shape[1]) - (directions * reduction) @ directions.T


def most_probable_errors(errors: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Shared errors (k,), in standard deviations, estimated from a residual (M,)."""
    return np.linalg.solve(np.eye(len(errors)) + errors @ errors.T, errors @ residual)


class LinearPrediction:
    """All measurements, in units of their noise, predicted linearly from some `number` of them.
    Fitted to signals (N, M) of examples up to an error of `ridge`, in units of the noise."""

    def __init__(self, simulator, examples, sigma, number, ridge):
        mean = examples.mean(axis=0)
        scaled = (examples - mean) / sigma
        order = qr(scaled, mode="r", pivoting=True)[1]
        self.rows = rows = simulator.fill_registers(order, number)
        predictors = scaled[:, rows]
        gram = predictors.T @ predictors + len(predictors) * ridge**2 * np.eye(len(rows))
        self.slopes = np.linalg.solve(gram, predictors.T @ scaled) / sigma[rows, None]
        self.constant = mean / sigma - mean[rows] @ self.slopes

    def __call__(self, signals: np.ndarray) -> np.ndarray:
        """All signals (N, M), in units of the noise, from the few (N, n)."""
        return self.constant + signals @ self.slopes


_JITTER = 1e-12  # of the trace: far above rounding, far below errors of predictions


class CondensedTarget(Target):
    """Noisy data of which a few measurements are simulated, as others are linear functions of
    them.

    The likelihood is that of all data, as accurate as the prediction. `simulator_of` makes the
    simulator of measurements of some indices; `shared` (k, M) are effects on the data of errors
    that measurements share, one standard deviation each.
    """

    def __init__(
        self,
        complete: Target,
        simulator_of: Callable[[np.ndarray], PartialVolumeSimulator],
        examples: np.ndarray,
        number: int,
        ridge: float = _RIDGE,
        shared: np.ndarray | None = None,
    ):
        self.complete, sigma = complete, complete.sigma
        self._predict = LinearPrediction(complete.simulator, examples, sigma, number, ridge)
        self.rows = self._predict.rows
        gram = self._predict.slopes @ self._predict.slopes.T
        # Measurements that vary alike in all examples leave it singular, to rounding.
        self._root = np.linalg.cholesky(gram + _JITTER * np.trace(gram) * np.eye(len(gram)))
        self._whitening = np.eye(len(self.rows))
        zeros = np.zeros(len(self.rows))
        super().__init__(simulator_of(self.rows), zeros, zeros + 1, zeros)
        bias = 0.0
        for _ in range(_RICIAN_ITERATIONS):
            few = np.linalg.solve(self._root.T, self._condensed(bias))
            signals = (self._predict(few) * sigma).clip(0)
            bias = (rician_mean(signals, complete.rician_sigma) - signals) / sigma
        self.shared = np.zeros((0, len(complete.data))) if shared is None else shared / sigma
        condensed = np.linalg.solve(self._root, self._predict.slopes @ self.shared.T).T
        self._whitening = whitening(condensed)
        self.data = self._condensed(bias)

    def _condensed(self, error):
        """The condensed data, corrected for an error (M,) of their prediction."""
        residual = self.complete.data / self.complete.sigma - error - self._predict.constant
        return self._whitening @ np.linalg.solve(self._root, self._predict.slopes @ residual)

    def exact_at(self, cells: LabelledCells) -> CondensedTarget:
        """The same, exact for these cells and more accurate for similar ones."""
        signals = self.complete.simulate(cells.labels[None], cells.transmissibility[None])[0]
        return self.exact_for(signals, signals[self.rows])

    def exact_for(self, signals: np.ndarray, simulated: np.ndarray) -> CondensedTarget:
        """The same, exact for signals (M,), of which a coarse grid gives `simulated` (n,)."""
        result = copy(self)
        result.data = self._condensed(self.complete.expected(signals) - self._predict(simulated))
        return result

    def predicted_change(self, change: np.ndarray) -> np.ndarray:
        """Changes (M,) of all signals, from changes (n,) of those that are simulated."""
        return change @ self._predict.slopes * self.complete.sigma

    def linear(
        self, fractions: np.ndarray, transmissibility: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expected condensed data (n,), and their derivatives (n, T + 2)."""
        signals, *jacobian = self.simulator.partial_sensitivities(fractions, transmissibility)
        return self.expected(signals), self._whitening @ self._root.T @ np.hstack(jacobian)

    def expected(self, signals: np.ndarray) -> np.ndarray:
        """Expected condensed data, for signals (N, n) without noise."""
        return signals @ self._root @ self._whitening
