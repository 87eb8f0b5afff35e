"""Code shared by shape spaces that move the vertices of a fixed template."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from dipy_spinverse.cell_shapes.templates import Template


class TemplateSpace:
    """A shape space with a fixed template, a Gaussian prior and bounds around its mean."""

    BOUND_SDS: ClassVar[float]  # distance of the bounds from the prior mean, standard deviations
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
        reach = self.BOUND_SDS * np.sqrt(np.diag(self.prior_covariance))
        return self.prior_mean[:, None] + reach[:, None] * [-1, 1]

    @cached_property
    def prior_precision(self) -> np.ndarray:
        return np.linalg.inv(self.prior_covariance)

    def remeshed(self, theta: np.ndarray) -> tuple[TemplateSpace, np.ndarray]:
        """The same space: its parameters belong to its template."""
        return self, theta


def displaced(template: Template, modes: np.ndarray, coefficients: torch.Tensor) -> torch.Tensor:
    """Vertices (N, 3) moved by modes (N, K) with coefficients (3K,) of x, y, z in turn."""
    return torch.as_tensor(template.points) + torch.as_tensor(modes) @ coefficients.reshape(-1, 3)
