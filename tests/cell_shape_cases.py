"""A small shape space and measurements for the tests of cell shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dipy_spinverse.cell_shapes.templates import Template, cylinder_mesh


@dataclass(frozen=True, eq=False)
class Lozenges:
    """Cylinders whose half axes x, y and z (um, logarithms) are free, and that may be bent."""

    template: Template
    prior_mean: np.ndarray
    prior_covariance: np.ndarray

    has_scale = True
    n_parameters = 4

    @property
    def bounds(self):
        return np.array([[-1.0, 3.0]] * 3 + [[-0.15, 0.15]])

    @property
    def prior_precision(self):
        return np.linalg.inv(self.prior_covariance)

    def initial_shapes(self):
        return self.prior_mean + [[0, 0, 0, 0.01], [0.2, 0, 0.3, 0.03]]

    def vertices(self, theta):
        points = torch.as_tensor(self.template.points) / torch.as_tensor(
            np.exp(self.prior_mean[:3])
        )
        points = points * torch.exp(theta[:3])
        aside = theta[3] * points[:, 2] ** 2
        return torch.stack([points[:, 0] + aside, points[:, 1], points[:, 2]], dim=1)

    def remeshed(self, theta):
        return self, theta


def lozenges(rings=2, layers=4, spread=1.0):
    """Around half axes of 2.5, 2.5 and 4.5 um."""
    template, mean = cylinder_mesh(rings, layers), np.log([2.5, 2.5, 4.5])
    scaled = Template(template.points * np.exp(mean), template.tetrahedra)
    return Lozenges(scaled, np.append(mean, 0.0), np.diag([spread, spread, spread, 0.05]) ** 2)
