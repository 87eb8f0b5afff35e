"""The protocol of shape spaces."""

from __future__ import annotations

from typing import Protocol

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
        ...

    def vertices(self, theta: torch.Tensor) -> torch.Tensor:
        """Positions (N, 3), um, of the template's vertices; differentiable by theta (P,)."""
        ...

    def remeshed(self, theta: np.ndarray) -> tuple[ShapeSpace, np.ndarray]:
        """The space on a template suited to a shape, and the shape in it."""
        ...
