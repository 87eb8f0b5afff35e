"""Continuity: a wall goes on across the edges of its faces."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion.priors.evaluate import on_edges, sum_over_edges

# Keeps 1 - w off zero, as the product over the other faces is taken by division.
_ALMOST_ONE = 1 - 1e-6


@dataclass(frozen=True)
class Continuity:
    """Penalty weight * sum_e sum_(f at e) w_f prod_(g at e, g != f) (1 - w_g).

    Were the wall strengths independent probabilities, this is the expected number of edges
    where a single wall ends.
    """

    weight: float

    def value(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Value (V,) of wall strengths (V, F)."""
        wall = on_edges(grid, walls)
        open_part = 1 - _ALMOST_ONE * wall
        none_closed = sum_over_edges(grid, open_part.log()).exp()
        return self.weight * (none_closed * sum_over_edges(grid, wall / open_part)).sum(dim=1)

    def gauss_newton_weight(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Zero: linear in each single face."""
        return torch.zeros_like(walls)
