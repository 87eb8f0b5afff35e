"""Shapes whose vertices all move, smoothly along the surface."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dipy_spinverse.cell_shapes.shape_spaces.protocol import TemplateSpace, displaced
from dipy_spinverse.cell_shapes.templates import Template

# Bounds in standard deviations of the prior; chosen by hand, wide.
_BOUND_SDS = 5.0


@dataclass(frozen=True, eq=False, repr=False)
class FreeVertices(TemplateSpace):
    """Displacements of every vertex on a surface, with a smooth prior.

    To refine a shape that was estimated in a smaller space, given as the template. The prior is a
    Matern field on the surface; vertices inside follow by harmonic functions.
    """

    template: Template
    prior_std_um: float = 0.2  # of the displacements
    correlation_length_um: float = 1.5  # over which their covariance decays

    has_scale = True

    @property
    def bounds(self) -> np.ndarray:
        reach = _BOUND_SDS * self.prior_std_um
        return np.tile([-reach, reach], (self.n_parameters, 1))

    @property
    def prior_mean(self) -> np.ndarray:  # type: ignore[override]
        return np.zeros(3 * len(self.template.surface))

    @cached_property
    def prior_precision(self) -> np.ndarray:
        laplacian, areas = self.template.laplacian
        kappa = 1 / self.correlation_length_um
        operator = kappa**2 * np.diag(areas) + laplacian
        # variance of (kappa^2 - Laplacian)^-1 white noise in the plane
        variance = 1 / (4 * np.pi * kappa**2)
        per_axis = operator @ (operator / areas[:, None]) * variance / self.prior_std_um**2
        return np.kron(per_axis, np.eye(3))

    @cached_property
    def prior_covariance(self) -> np.ndarray:  # type: ignore[override]
        return np.linalg.inv(self.prior_precision)

    def initial_shapes(self) -> np.ndarray:
        """The shape itself (1, P)."""
        return self.prior_mean[None]

    def vertices(self, theta: torch.Tensor) -> torch.Tensor:
        """Positions (N, 3), um; differentiable by theta (P,)."""
        return displaced(self.template, self.template.harmonic_extension, theta)
