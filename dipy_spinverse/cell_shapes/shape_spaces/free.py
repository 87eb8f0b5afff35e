"""Shapes whose vertices all move, each much as its neighbours do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dipy_spinverse.cell_shapes.templates import Template


@dataclass(frozen=True, eq=False)
class FreeVertices:
    """Displacements of every vertex on a surface, smooth beforehand.

    To refine a shape that was estimated in a smaller space. The prior is a Matern field on the
    surface with a covariance that decays over `correlation_length_um`; vertices inside follow by
    harmonic functions.

    Attributes
    ----------
    template : Template
        The shape to refine.
    prior_std_um, correlation_length_um : float
        Standard deviation of the displacements beforehand, and the length over which they are
        alike.

    Examples
    --------
    >>> from dipy_spinverse.cell_shapes.templates import cylinder_mesh
    >>> FreeVertices(cylinder_mesh(3, 10), prior_std_um=0.1, correlation_length_um=0.5)
    FreeVertices(654 parameters, 370 vertices)
    """

    template: Template
    prior_std_um: float = 0.2
    correlation_length_um: float = 1.5

    has_scale = True

    def __repr__(self) -> str:
        return (
            f"FreeVertices({self.n_parameters} parameters, {len(self.template.points)} vertices)"
        )

    @property
    def n_parameters(self) -> int:
        return 3 * len(self.template.surface)

    @property
    def bounds(self) -> np.ndarray:
        return np.tile([-5 * self.prior_std_um, 5 * self.prior_std_um], (self.n_parameters, 1))

    @property
    def prior_mean(self) -> np.ndarray:
        return np.zeros(self.n_parameters)

    @cached_property
    def prior_precision(self) -> np.ndarray:
        laplacian, areas = self.template.laplacian
        kappa = 1 / self.correlation_length_um
        operator = kappa**2 * np.diag(areas) + laplacian
        # variance of (kappa^2 - Laplacian)^-1 white noise in the plane
        variance = 1 / (4 * np.pi * kappa**2)
        each = operator @ (operator / areas[:, None]) * variance / self.prior_std_um**2
        return np.kron(each, np.eye(3))

    @cached_property
    def prior_covariance(self) -> np.ndarray:
        return np.linalg.inv(self.prior_precision)

    def initial_shapes(self) -> np.ndarray:
        """The shape itself (1, P)."""
        return self.prior_mean[None]

    def vertices(self, theta: torch.Tensor) -> torch.Tensor:
        """Positions (N, 3), um; differentiable by theta (P,)."""
        points = torch.as_tensor(self.template.points)
        return points + torch.as_tensor(self.template.harmonic_extension) @ theta.reshape(-1, 3)

    def remeshed(self, theta: np.ndarray) -> tuple[FreeVertices, np.ndarray]:
        """The same: its template is the shape to refine, whose vertices inside follow."""
        return self, theta
