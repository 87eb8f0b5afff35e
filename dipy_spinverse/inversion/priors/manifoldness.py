"""Manifoldness: an edge carries no walls or two."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion.priors.evaluate import on_edges, sum_over_edges


@dataclass(frozen=True)
class Manifoldness:
    """Penalty weight * sum_e softmin(c_e^2, (c_e - 2)^2), c_e the walls that meet at edge e.

    softmin(a, b) = -T ln((exp(-a/T) + exp(-b/T)) / (1 + exp(-4/T))) is 0 at 0 and 2 walls.
    """

    weight: float
    temperature: float = 0.5

    def value(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Value (V,) of wall strengths (V, F)."""
        count = sum_over_edges(grid, on_edges(grid, walls))
        both = torch.stack([count**2, (count - 2) ** 2])
        soft_min = -self.temperature * torch.logsumexp(-both / self.temperature, dim=0)
        at_zero = torch.log1p(torch.exp(walls.new_tensor(-4 / self.temperature)))
        return self.weight * (soft_min + self.temperature * at_zero).sum(dim=1)

    def gauss_newton_weight(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Curvature 2 of either parabola, on each of a face's three edges."""
        return torch.full_like(walls, 6 * self.weight)
