"""Binarisation: a face is a wall or open, not in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipy_spinverse.grid import TetrahedralGrid


@dataclass(frozen=True)
class Binarisation:
    """Penalty weight * sum_f w_f (1 - w_f), largest half way between wall and open."""

    weight: float

    def value(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Value (V,) of wall strengths (V, F)."""
        return self.weight * (walls * (1 - walls)).sum(dim=1)

    def gauss_newton_weight(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Zero: the penalty is concave, its tangent is the convex bound."""
        return torch.zeros_like(walls)
