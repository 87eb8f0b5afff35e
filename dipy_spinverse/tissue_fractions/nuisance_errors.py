"""Errors of tissue constants and of B1 as independent standard normal variables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.shared_parameters import SharedParameters

_LEAST_VARIANCE = 1e-12  # relative, of constants: smaller errors change no signal


@dataclass(frozen=True, eq=False)
class NuisanceErrors:
    """Linear effect of independent errors of standard deviation 1 on constants and B1.

    The first P are errors of constants, with the errors of B1 that correlate with them. One more
    is the residual error of B1: in one voxel a single number, whatever polynomials it is made of.

    Attributes
    ----------
    of_constants : Tensor (4 T, P)
        Of logarithms of constants.
    of_b1 : Tensor (N, P)
        Of the polynomial coefficients of B1.
    residual_b1 : Tensor (N, N)
        Covariance of the polynomial coefficients of B1, given constants.
    b1_scatter : float
        Standard deviation of B1 about its polynomials.
    """

    of_constants: Tensor
    of_b1: Tensor
    residual_b1: Tensor
    b1_scatter: float

    @classmethod
    def from_shared(cls, shared: SharedParameters) -> NuisanceErrors:
        """From the posterior covariance of shared parameters."""
        covariance, n_constants = shared.covariance, len(shared.covariance) - len(shared.b1)
        values, vectors = torch.linalg.eigh(covariance[:n_constants, :n_constants])
        relevant = values > _LEAST_VARIANCE
        std, axes = values[relevant].sqrt(), vectors[:, relevant]
        of_b1 = covariance[n_constants:, :n_constants] @ axes / std
        residual_b1 = covariance[n_constants:, n_constants:] - of_b1 @ of_b1.T
        return cls(axes * std, of_b1, residual_b1, shared.b1_scatter)

    @property
    def number(self) -> int:
        """Of errors."""
        b1_varies = self.b1_scatter > 0 or bool((self.residual_b1 != 0).any())
        return self.of_constants.shape[1] + b1_varies

    def of_b1_in(self, basis: Tensor) -> Tensor:
        """Effect (V, number) on relative B1 in voxels with polynomials `basis` (V, N)."""
        variance = torch.einsum("vi,ij,vj->v", basis, self.residual_b1, basis).clamp_min(0)
        residual = torch.sqrt(variance + self.b1_scatter**2)
        return torch.cat([basis @ self.of_b1, residual[:, None]], dim=1)[:, : self.number]
