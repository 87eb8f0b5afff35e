"""A prior of one's own: walls lie along a known axis, as that of a bundle of fibres."""

from dataclasses import dataclass

import numpy as np
import torch

from dipy_spinverse import (
    Acquisition,
    FaceInversion,
    SpinverseModel,
    TetrahedralGrid,
    bcc_grid,
    simulate,
)
from dipy_spinverse.inversion import WallArea
from dipy_spinverse.substrates.membranes import cylinders


@dataclass(frozen=True)
class WallsAlong:
    """Penalty weight * sum_f w_f |n_f . axis|, n_f the unit normal of face f."""

    weight: float
    axis: tuple[float, float, float]

    def value(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        across = torch.as_tensor(np.abs(grid.face_normals @ self.axis)).to(walls)
        return self.weight * (walls * across).sum(dim=1)

    def gauss_newton_weight(self, grid: TetrahedralGrid, walls: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(walls)  # a linear function has no curvature


# Cylinders along z, and four directions that are too few to say so.
rng, axis, b = np.random.default_rng(0), (0.0, 0.0, 1.0), np.repeat([0, 1, 3], [1, 4, 4])
directions = rng.standard_normal((4, 3))
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
directions = np.vstack([np.zeros(3), directions, directions])
acquisition = Acquisition(b, directions, small_delta=8, big_delta=40)
fine, grid = bcc_grid(9, 15 / 9), bcc_grid(3, 5.0)
signals = simulate(acquisition, fine, cylinders(fine, [0, 0, 0], 4.5, axis=axis))
signals = np.abs(signals + rng.normal(scale=0.02, size=len(acquisition)))
normals_along = np.abs(grid.face_normals @ axis) > 0.1
across = []
for priors in [WallArea(0.1)], [WallArea(0.1), WallsAlong(1.0, axis)]:
    model = SpinverseModel(acquisition, grid=grid, inversion=FaceInversion(priors=priors))
    fit = model.fit(signals, sigma=0.02, n_fields=0, n_draws=0)
    across.append(int((normals_along & (fit.permeability < 0.1)).sum()))
assert across[0] > 5 > across[1]
