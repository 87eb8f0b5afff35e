"""Weighted points of many voxels, and the kernels from which both samplers draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lgamma, log, pi

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import chi2, qmc
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Particles:
    """Weighted points (N, V, D) of V voxels, and the amplitudes (N, V, K) drawn with them.

    `target` and `proposal` (N, V) are logarithms of the densities of the posterior and the points.
    """

    points: Tensor
    amplitudes: Tensor
    target: Tensor
    proposal: Tensor

    def __getitem__(self, index) -> Particles:
        return Particles(*(array[index] for array in vars(self).values()))

    def copy(self) -> Particles:
        """A copy that does not share memory."""
        return Particles(*(array.clone() for array in vars(self).values()))

    def put(self, index, particles: Particles) -> None:
        """Overwrite some."""
        for array, values in zip(vars(self).values(), vars(particles).values(), strict=True):
            array[index] = values

    @staticmethod
    def concatenated(sets: list[Particles]) -> Particles:
        """All particles of several sets."""
        columns = zip(*(vars(particles).values() for particles in sets), strict=True)
        return Particles(*(torch.cat(column) for column in columns))


LogTarget = Callable[[Tensor, Tensor, np.random.Generator], Particles]
"""Particles at points (N, V, D) in the voxels of given numbers (V,)."""


@dataclass(frozen=True, eq=False)
class StudentMixture:
    """Equal mixture of Student t kernels at centres (C, V, D), all of the same shape.

    `factor` (V, D, D) is the Cholesky factor of a kernel's scatter matrix. Heavier tails than the
    posterior's keep importance weights bounded; 6 degrees of freedom are chosen by hand.
    """

    centres: Tensor
    factor: Tensor
    degrees: float = 6.0

    def of_voxels(self, index) -> StudentMixture:
        """That of some of the voxels."""
        return StudentMixture(self.centres[:, index], self.factor[index], self.degrees)

    def samples(self, cube: np.ndarray) -> Tensor:
        """Samples (N, V, D) from uniform numbers (N, D + 1)."""
        scale = np.sqrt(self.degrees / chi2.ppf(cube[:, -1:], self.degrees))
        steps = torch.tensor(scale * ndtri(cube[:, :-1]))
        kernel = torch.arange(len(cube)) % len(self.centres)
        return self.centres[kernel] + torch.einsum("vpq,nq->nvp", self.factor, steps)

    def log_density(self, points: Tensor) -> Tensor:
        """Logarithm (N, V) of the density at points (N, V, D)."""
        n = points.shape[2]
        mean = self.centres.mean(dim=0)
        white, centres = (
            torch.linalg.solve_triangular(self.factor, (x - mean).permute(1, 2, 0), upper=False)
            for x in (points, self.centres)
        )
        square = (white**2).sum(dim=1)[:, :, None] + (centres**2).sum(dim=1)[:, None]
        square = (square - 2 * white.mT @ centres).clamp_min(0)
        kernels = -0.5 * (self.degrees + n) * torch.log1p(square / self.degrees)
        constant = lgamma(0.5 * (self.degrees + n)) - lgamma(0.5 * self.degrees)
        constant -= 0.5 * n * log(pi * self.degrees) + log(len(self.centres))
        volume = torch.log(torch.diagonal(self.factor, dim1=1, dim2=2)).sum(dim=1)
        return torch.logsumexp(kernels, dim=2).T + constant - volume


def uniform_cube(n: int, n_dimensions: int, rng: np.random.Generator) -> np.ndarray:
    """Quasi-random numbers (n, D + 1) for `StudentMixture.samples`."""
    sobol = qmc.Sobol(n_dimensions + 1, rng=rng).random_base2((n - 1).bit_length())
    return sobol[:n].clip(1e-6, 1 - 1e-6)


def resampled(log_weights: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """Rows (n, V) in proportion to weights (N, V), systematically and in random order."""
    position = torch.tensor((np.arange(n) + rng.random()) / n)
    total = torch.cumsum(torch.softmax(log_weights, dim=0), dim=0).T.contiguous()
    rows = torch.searchsorted(total, position.expand(len(total), -1).contiguous())
    return rows.clamp(max=len(log_weights) - 1).T[rng.permutation(n)]


def effective_size(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size (V,) of weights (N, V)."""
    return 1 / (torch.softmax(log_weights, dim=0) ** 2).sum(dim=0)


def largest_power(log_weights: Tensor, n: float, limit: Tensor | float = 1.0) -> Tensor:
    """Largest power (V,) up to `limit` of the weights that leaves an effective size of n."""
    limits = torch.ones_like(log_weights[0]) * limit
    low, high = torch.zeros_like(limits), limits
    for _ in range(50):  # bisection to rounding
        middle = 0.5 * (low + high)
        large = effective_size(middle * log_weights) >= n
        low, high = torch.where(large, middle, low), torch.where(large, high, middle)
    return torch.where(effective_size(limits * log_weights) >= n, limits, low)


def kernel_factor(covariance: Tensor, n: Tensor | int) -> Tensor:
    """Cholesky factor (V, D, D) of kernels around n points, by Silverman's rule."""
    n_dimensions = covariance.shape[1]
    # Few distinct points may lie in a plane.
    variance = torch.diagonal(covariance, dim1=1, dim2=2)
    covariance = covariance + torch.diag_embed(1e-4 * variance + 1e-20)
    width = (4 / (n_dimensions + 2) / n) ** (1 / (n_dimensions + 4))
    return torch.as_tensor(width)[..., None, None] * torch.linalg.cholesky_ex(covariance)[0]
