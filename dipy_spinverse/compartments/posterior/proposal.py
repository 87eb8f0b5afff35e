"""A distribution that is simple to draw from, of the points of many voxels."""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma, log, pi

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import chi2, qmc
from torch import Tensor

_DEGREES = 6.0  # of freedom


def uniform_cube(n: int, n_dimensions: int, rng: np.random.Generator) -> np.ndarray:
    """Quasi-random numbers (n, D + 1) for the samples of proposals."""
    sobol = qmc.Sobol(n_dimensions + 1, rng=rng).random_base2((n - 1).bit_length())
    return sobol[:n].clip(1e-6, 1 - 1e-6)


@dataclass(frozen=True, eq=False)
class StudentMixture:
    """Student t kernels of the same shape around centres.

    Attributes
    ----------
    centres : Tensor (C, V, D)
    factor : Tensor (V, D, D)
        Cholesky factor of a kernel's scatter.
    """

    centres: Tensor
    factor: Tensor

    def of_voxels(self, index) -> StudentMixture:
        """Some of the voxels."""
        return StudentMixture(self.centres[:, index], self.factor[index])

    def samples(self, cube: np.ndarray) -> Tensor:
        """Samples (N, V, D) from uniform numbers (N, D + 1)."""
        scale = np.sqrt(_DEGREES / chi2.ppf(cube[:, -1:], _DEGREES))
        steps = torch.tensor(scale * ndtri(cube[:, :-1]))
        which = torch.arange(len(cube)) % len(self.centres)
        return self.centres[which] + torch.einsum("vpq,nq->nvp", self.factor, steps)

    def log_density(self, points: Tensor) -> Tensor:
        """Logarithm (N, V) of the density at points (N, V, D)."""
        n = points.shape[2]
        middle = self.centres.mean(dim=0)
        white, at = (
            torch.linalg.solve_triangular(
                self.factor, (each - middle).permute(1, 2, 0), upper=False
            )
            for each in (points, self.centres)
        )
        square = (white**2).sum(dim=1)[:, :, None] + (at**2).sum(dim=1)[:, None]
        square = (square - 2 * white.mT @ at).clamp_min(0)
        kernels = -0.5 * (_DEGREES + n) * torch.log1p(square / _DEGREES)
        constant = lgamma(0.5 * (_DEGREES + n)) - lgamma(0.5 * _DEGREES)
        constant -= 0.5 * n * log(pi * _DEGREES) + log(len(self.centres))
        volume = torch.log(torch.diagonal(self.factor, dim1=1, dim2=2)).sum(dim=1)
        return torch.logsumexp(kernels, dim=2).T + constant - volume
