"""Sparse walls: each wall costs its area."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipy_spinverse.grid import TetrahedralGrid


@dataclass(frozen=True)
class WallArea:
    """Penalty weight * sum_f w_f A_f / mean(A).

    Linear, so that it opens faces about which the data say nothing and leaves the others.
    """

    weight: float

    def value(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Value (V,) of wall strengths (V, F)."""
        areas = torch.as_tensor(grid.face_areas / grid.face_areas.mean()).to(walls)
        return self.weight * (walls * areas).sum(dim=1)

    def gauss_newton_weight(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Zero: a linear function has no curvature."""
        return torch.zeros_like(walls)
