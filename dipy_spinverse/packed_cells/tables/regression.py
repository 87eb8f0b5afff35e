"""Gaussian process regression of many outputs with one kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

# Of the variance, which keeps the covariance positive.
_JITTER = 1e-7


@dataclass(frozen=True, eq=False)
class Regression:
    """Posterior mean of a Gaussian process with a squared exponential kernel.

    Attributes
    ----------
    inputs : ndarray (N, K)
    weights : ndarray (N, P)
        Of the kernels at `inputs`.
    scales : ndarray (K,)
        Correlation lengths.
    variance, noise : float
        Of the process and of the outputs, the outputs being of unit variance.
    left_out_errors : ndarray (N, P)
        Errors at each input, predicted from all others.
    """

    inputs: np.ndarray
    weights: np.ndarray
    scales: np.ndarray
    variance: float
    noise: float
    left_out_errors: np.ndarray

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs (L, P) at other inputs (L, K)."""
        return _kernel(inputs, self.inputs, self.scales, self.variance) @ self.weights


def regress(inputs: np.ndarray, outputs: np.ndarray) -> Regression:
    """Regression of outputs (N, P) on inputs (N, K), with the kernel that makes them likeliest.

    The likelihood of the outputs is that of independent draws, each with its own variance.
    """
    size = outputs.std(axis=0)
    size[size == 0] = 1
    scaled = outputs / size
    n_inputs = inputs.shape[1]

    def cost(log_parameters):
        try:
            factor = _factor(inputs, log_parameters)
        except np.linalg.LinAlgError:
            return 1e12
        data = 0.5 * (scaled * cho_solve(factor, scaled)).sum()
        return data + scaled.shape[1] * np.log(np.diag(factor[0])).sum()

    start = np.r_[np.zeros(n_inputs + 1), -4.0]
    bounds = [(-4, 6)] + [(-2.5, 3.5)] * n_inputs + [(-12, 1)]
    best = minimize(cost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 30}).x
    factor = _factor(inputs, best)
    weights = cho_solve(factor, scaled)
    inverse_diagonal = np.diag(cho_solve(factor, np.eye(len(inputs))))
    return Regression(
        inputs=inputs,
        weights=weights * size,
        scales=np.exp(best[1:-1]),
        variance=float(np.exp(best[0])),
        noise=float(np.exp(best[-1])),
        left_out_errors=weights * size / inverse_diagonal[:, None],
    )


def _factor(inputs, log_parameters):
    variance = np.exp(log_parameters[0])
    covariance = _kernel(inputs, inputs, np.exp(log_parameters[1:-1]), variance)
    covariance[np.diag_indices_from(covariance)] += np.exp(log_parameters[-1]) + variance * _JITTER
    return cho_factor(covariance, lower=True)


def _kernel(first, second, scales, variance):
    a, b = first / scales, second / scales
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return variance * np.exp(-0.5 * np.maximum(square, 0))
