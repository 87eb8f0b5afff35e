"""Weighted points of many voxels, and what both ways to draw do with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Particles:
    """Members of V voxels.

    Attributes
    ----------
    points : Tensor (N, V, D)
    amplitudes : Tensor (N, V, K)
        What was drawn with each point.
    target, start : Tensor (N, V)
        Logarithms of the densities: of what is to be drawn, and of what points are drawn from.
    """

    points: Tensor
    amplitudes: Tensor
    target: Tensor
    start: Tensor

    def __getitem__(self, index) -> Particles:
        return Particles(*(each[index] for each in vars(self).values()))

    def copy(self) -> Particles:
        """Members that do not change with these."""
        return Particles(*(each.clone() for each in vars(self).values()))

    def put(self, index, other: Particles) -> None:
        """Overwrite members."""
        for own, new in zip(vars(self).values(), vars(other).values(), strict=True):
            own[index] = new

    def joined(self, other: Particles) -> Particles:
        """With the members of another one."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Particles(*(torch.cat(pair) for pair in pairs))


LogTarget = Callable[[Tensor, Tensor, np.random.Generator], Particles]
"""Population of points (N, V, D) in the voxels of given numbers (V,)."""


def chosen(log_weights: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """Rows (n, V) of members, in proportion to their weights and in random order."""
    position = torch.tensor((np.arange(n) + rng.random()) / n)
    total = torch.cumsum(torch.softmax(log_weights, dim=0), dim=0).T.contiguous()
    rows = torch.searchsorted(total, position.expand(len(total), -1).contiguous())
    return rows.clamp(max=len(log_weights) - 1).T[rng.permutation(n)]


def largest_power(log_weights: Tensor, n: float, most: Tensor | float = 1.0) -> Tensor:
    """Largest power (V,) up to `most` of the weights that leaves n members effective."""
    high = torch.ones_like(log_weights[0]) * most
    low, everything = torch.zeros_like(high), high

    def leaves_enough(power):
        return 1 / (torch.softmax(power * log_weights, dim=0) ** 2).sum(dim=0) >= n

    for _ in range(50):
        middle = 0.5 * (low + high)
        enough = leaves_enough(middle)
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(leaves_enough(everything), everything, low)


def kernel_factor(covariance: Tensor, n: Tensor | int) -> Tensor:
    """Cholesky factor (V, D, D) of the kernels of n members: Silverman's share of theirs."""
    n_dimensions = covariance.shape[1]
    # Few distinct members may lie in a plane.
    spread = torch.diagonal(covariance, dim1=1, dim2=2)
    covariance = covariance + torch.diag_embed(1e-4 * spread + 1e-20)
    width = (4 / (n_dimensions + 2) / n) ** (1 / (n_dimensions + 4))
    return torch.as_tensor(width)[..., None, None] * torch.linalg.cholesky_ex(covariance)[0]
