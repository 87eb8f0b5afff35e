"""A prior of one's own: walls lie along a known axis, as that of a bundle of fibres."""

from dataclasses import dataclass

import numpy as np
import torch

from dipy_spinverse import Acquisition, SpinverseModel, TetrahedralGrid, bcc_grid, simulate
from dipy_spinverse.inversion import WallArea
from dipy_spinverse.inversion.protocols import Prior
from dipy_spinverse.substrates.walls_of_bodies import cylinders


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


axis, b = (0.0, 0.0, 1.0), np.repeat([0.0, 1.0, 3.0], [1, 12, 12])
vectors = np.random.default_rng(0).standard_normal((12, 3))
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
directions = np.vstack([np.zeros(3), vectors, vectors])
acquisition = Acquisition(b, directions, small_delta=8, big_delta=40)
fine, grid = bcc_grid(9, 15 / 9), bcc_grid(3, 5.0)
signals = simulate(acquisition, fine, cylinders(fine, [0, 0, 0], 4.5, axis=axis))



signals = signals + np.random.default_rng(1).normal(scale=0.04, size=b.size)
for w in (0, 0.5, 2.0, 10.0):
    model = SpinverseModel(acquisition, grid=grid, priors=[WallArea(0.1), WallsAlong(w, axis)])
    fit = model.fit(signals, sigma=0.04, n_fields=0, n_draws=0)
    n = np.abs(grid.face_normals @ axis)
    print(w, fit.residual_rms, fit.wall_probability @ n, [((fit.permeability < k)@(n>.1), (fit.permeability < k)@(n<.1)) for k in (0.02,0.1,0.5,2)], fit.wall_orientation, fit.surface_to_volume)
