"""Laplace approximation of the posterior of the unknowns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr

# Prior precision of a face: that of a scaled transmissibility uniform in [0, 1].
_UNIFORM_PRECISION = 12.0


@dataclass(frozen=True, eq=False)
class Laplace:
    """Gaussian posterior around an estimate: covariance C - C J^T (J C J^T + I)^-1 J C.

    J (V, M, N) are derivatives of the signals over the noise, C (V, N) prior variances; `factor`
    (V, M, M) is the Cholesky factor of J C J^T + I.
    """

    weighted_jacobian: torch.Tensor
    variance: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def at(cls, unknowns, weighted_jacobian, residual, bounds) -> Laplace:
        """Laplace approximation at an estimate.

        An unknown at a bound with a gradient g towards it has, in addition to the uniform prior,
        the exponential one exp(-|g| distance), with variance 1/g^2.
        """
        gradient = torch.einsum("vmn,vm->vn", weighted_jacobian, residual)
        lower, upper = bounds
        at_bound = ((unknowns <= lower) & (gradient > 0)) | ((unknowns >= upper) & (gradient < 0))
        precision = _UNIFORM_PRECISION + torch.where(at_bound, gradient**2, 0.0)
        scaled = weighted_jacobian / precision.sqrt()[:, None]
        identity = torch.eye(residual.shape[1], dtype=residual.dtype, device=residual.device)
        matrix = torch.einsum("vmn,vkn->vmk", scaled, scaled) + identity
        return cls(weighted_jacobian, 1 / precision, torch.linalg.cholesky(matrix))

    def standard_deviation(self) -> torch.Tensor:
        """Posterior standard deviations (V, N)."""
        prior_covariance = self.weighted_jacobian * self.variance[:, None]
        reduction_factor = torch.linalg.solve_triangular(
            self.factor, prior_covariance, upper=False
        )
        return (self.variance - reduction_factor.square().sum(dim=1)).clamp_min(0).sqrt()

    def n_determined(self) -> torch.Tensor:
        """Degrees of freedom (V,) that the data determine: trace of J C J^T (J C J^T + I)^-1."""
        n_signals = self.factor.shape[-1]
        identity = torch.eye(n_signals, dtype=self.factor.dtype, device=self.factor.device)
        inverse = torch.linalg.solve_triangular(
            self.factor, identity.expand_as(self.factor), upper=False
        )
        return n_signals - inverse.square().sum(dim=(1, 2))


def probability_below(threshold: float, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Probability that a normal variable, truncated to [0, 1], is below a threshold."""
    mean, sd = np.asarray(mean), np.maximum(np.asarray(sd), 1e-6)
    at_threshold, at_zero, at_one = (ndtr((edge - mean) / sd) for edge in (threshold, 0.0, 1.0))
    return np.clip((at_threshold - at_zero) / (at_one - at_zero), 0, 1)
