"""Priors: penalties on walls, in units of -ln(probability).

Each is a small frozen dataclass with a `weight` and two methods on wall strengths w = 1 - s of
V fields: ``value(grid, walls)`` (V,), and ``gauss_newton_weight(grid, walls)`` (V, F), a diagonal
approximation >= 0 of the curvature. `evaluate_priors` adds up several priors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from dipy_spinverse.grid import TetrahedralGrid

__all__ = ["Binarisation", "Continuity", "Manifoldness", "WallArea", "evaluate_priors"]

# Keeps 1 - w above zero, as the product over other faces is computed by division.
_ALMOST_ONE = 1 - 1e-6


def _zero(self: object, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
    """Curvature of a penalty without any, or that is not convex."""
    return torch.zeros_like(walls)


@dataclass(frozen=True)
class WallArea:
    """Penalty weight * sum_f w_f A_f / mean(A): the wall area.

    Linear, so that it opens faces that the data do not determine and leaves the others.
    """

    weight: float

    def value(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Value (V,) of wall strengths (V, F)."""
        areas = torch.as_tensor(grid.face_areas / grid.face_areas.mean()).to(walls)
        return self.weight * (walls * areas).sum(dim=1)

    gauss_newton_weight = _zero  # linear


@dataclass(frozen=True)
class Binarisation:
    """Penalty weight * sum_f w_f (1 - w_f), largest half way between wall and open."""

    weight: float

    def value(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Value (V,) of wall strengths (V, F)."""
        return self.weight * (walls * (1 - walls)).sum(dim=1)

    gauss_newton_weight = _zero  # concave: the tangent is the convex bound


@dataclass(frozen=True)
class Continuity:
    """Penalty weight * sum_e sum_(f at e) w_f prod_(g at e, g != f) (1 - w_g).

    If wall strengths were independent probabilities, this would be the expected number of edges
    at which a single wall ends.
    """

    weight: float

    def value(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Value (V,) of wall strengths (V, F)."""
        open_part = 1 - _ALMOST_ONE * walls
        all_open = _sum_over_edges(grid, open_part.log()).exp()
        return self.weight * (all_open * _sum_over_edges(grid, walls / open_part)).sum(dim=1)

    gauss_newton_weight = _zero  # linear in each single face


@dataclass(frozen=True)
class Manifoldness:
    """Penalty weight * sum_e softmin(c_e^2, (c_e - 2)^2), c_e the walls that meet at edge e.

    softmin(a, b) = -T ln((exp(-a/T) + exp(-b/T)) / (1 + exp(-4/T))) is 0 at 0 and 2 walls.
    """

    weight: float
    temperature: float = 0.5

    def value(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Value (V,) of wall strengths (V, F)."""
        count = _sum_over_edges(grid, walls)
        parabolas = torch.stack([count**2, (count - 2) ** 2])
        soft_min = -self.temperature * torch.logsumexp(-parabolas / self.temperature, dim=0)
        at_zero = torch.log1p(torch.exp(walls.new_tensor(-4 / self.temperature)))
        return self.weight * (soft_min + self.temperature * at_zero).sum(dim=1)

    def gauss_newton_weight(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        """Curvature 2 of either parabola, on each of a face's three edges."""
        return torch.full_like(walls, 6 * self.weight)


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


@lru_cache(maxsize=8)
def _edge_incidence(grid, device):
    """Edge and face indices (n,) of all pairs of an edge and a face that it belongs to."""
    entries = grid.edge_faces.tocoo()
    return tuple(
        torch.as_tensor(index, device=device).long() for index in (entries.row, entries.col)
    )


def _sum_over_edges(grid, values):
    """Sums (V, E) over the faces of each edge of values (V, F)."""
    edge, face = _edge_incidence(grid, values.device)
    return values.new_zeros(len(values), len(grid.edges)).index_add(1, edge, values[:, face])
