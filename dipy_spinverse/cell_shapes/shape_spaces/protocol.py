"""The protocol of shape spaces, and a base class of them."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Protocol, Self

import numpy as np
import torch

from dipy_spinverse.cell_shapes.templates import Template


class ShapeSpace(Protocol):
    """Shapes of a closed cell up to its position and orientation.

    Attributes
    ----------
    template : Template
        At the prior mean.
    n_parameters : int
        P.
    bounds : ndarray (P, 2)
    prior_mean, prior_covariance, prior_precision : ndarray (P,), (P, P), (P, P)
        Of the Gaussian prior of shapes.
    has_scale : bool
        Whether size is among the parameters.
    """

    @property
    def template(self) -> Template: ...
    @property
    def n_parameters(self) -> int: ...
    @property
    def bounds(self) -> np.ndarray: ...
    @property
    def prior_mean(self) -> np.ndarray: ...
    @property
    def prior_covariance(self) -> np.ndarray: ...
    @property
    def prior_precision(self) -> np.ndarray: ...
    @property
    def has_scale(self) -> bool: ...

    def initial_shapes(self) -> np.ndarray:
        """Initial shapes (S, P) of a search."""

    def vertices(self, theta: torch.Tensor) -> torch.Tensor:
        """Positions (N, 3), um, of the template's vertices; differentiable by theta (P,)."""

    def remeshed(self, theta: np.ndarray) -> tuple[ShapeSpace, np.ndarray]:
        """The space on a template suited to a shape, and the shape in it."""


class TemplateSpace:
    """What shape spaces share: here with a fixed template and bounds around the prior mean."""

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

    def remeshed(self, theta: np.ndarray) -> tuple[Self, np.ndarray]:
        """The same space: its parameters belong to its template."""
        return self, theta


def displaced(template: Template, modes: np.ndarray, coefficients: torch.Tensor) -> torch.Tensor:
    """Vertices (N, 3) moved by modes (N, K) with coefficients (3K,) of x, y, z in turn."""
    return torch.as_tensor(template.points) + torch.as_tensor(modes) @ coefficients.reshape(-1, 3)
