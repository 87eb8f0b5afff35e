"""Sum of priors with its gradient and Gauss-Newton weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from dipy_spinverse.grid import TetrahedralGrid


@lru_cache(maxsize=8)
def edge_incidence(
    grid: TetrahedralGrid, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Edge and face indices (n,) of all pairs of an edge and a face that it belongs to."""
    entries = grid.edge_faces.tocoo()
    return (
        torch.as_tensor(entries.row, device=device).long(),
        torch.as_tensor(entries.col, device=device).long(),
    )


def sum_over_edges(grid: TetrahedralGrid, values: torch.Tensor) -> torch.Tensor:
    """Sums (V, E) over the faces of each edge of values (V, n) of its pairs with faces."""
    edge, _ = edge_incidence(grid, values.device)
    return values.new_zeros(len(values), len(grid.edges)).index_add(1, edge, values)


def on_edges(grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
    """Values (V, n) of faces (V, F), repeated for each edge that they belong to."""
    return walls[:, edge_incidence(grid, walls.device)[1]]


def evaluate_priors(
    priors: Sequence, grid: TetrahedralGrid, scaled: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Value (V,), gradient (V, F) with respect to s, and Gauss-Newton weight (V, F) of priors."""
    with torch.enable_grad():
        walls = (1 - scaled).detach().requires_grad_()
        value = sum((prior.value(grid, walls) for prior in priors), walls[:, 0] * 0)
        (gradient,) = torch.autograd.grad(value.sum(), walls)
    weight = sum(
        (prior.gauss_newton_weight(grid, walls.detach()) for prior in priors),
        torch.zeros_like(scaled),
    )
    return value.detach(), -gradient, weight
