"""What shape spaces share whose prior is Gaussian with a given mean and covariance."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np

from dipy_spinverse.cell_shapes.templates import Template


class GaussianSpace:
    """A shape space whose bounds lie `FARTHEST` standard deviations of its prior away."""

    FARTHEST: ClassVar[float]
    template: Template
    prior_mean: np.ndarray
    prior_covariance: np.ndarray

    def __repr__(self) -> str:
        n_vertices = len(self.template.points)
        return f"{type(self).__name__}({self.n_parameters} parameters, {n_vertices} vertices)"

    @property
    def n_parameters(self) -> int:
        return len(self.prior_mean)

    @property
    def bounds(self) -> np.ndarray:
        reach = self.FARTHEST * np.sqrt(np.diag(self.prior_covariance))
        return self.prior_mean[:, None] + reach[:, None] * [-1, 1]

    @cached_property
    def prior_precision(self) -> np.ndarray:
        return np.linalg.inv(self.prior_covariance)
