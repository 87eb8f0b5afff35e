"""Shapes as sums of the smoothest functions on a template's surface."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from dipy_spinverse.cell_shapes.shape_spaces.protocol import TemplateSpace, displaced
from dipy_spinverse.cell_shapes.synthetic_axons import LENGTH, RADIUS, training_axons
from dipy_spinverse.cell_shapes.templates import Template, cylinder_mesh

# Represents synthetic axons to 0.03-0.11 um (benchmarks/results/cell_shapes/representation.md).
_N_MODES = 30
# Prior standard deviation of the smoothest mode, um, in addition to that of the synthetic axons,
# so that other shapes are possible; chosen by hand.
_EXTRA_SD_UM = 0.15


@dataclass(frozen=True, eq=False, repr=False)
class SpectralSpace(TemplateSpace):
    """Displacements of a template by eigenfunctions of its cotangent Laplacian.

    Vertices inside follow those on the surface by harmonic functions. Build one with
    `spectral_space`.
    """

    template: Template
    # (N, K), of all vertices, by the K smoothest functions on the surface
    displacement_modes: np.ndarray
    prior_mean: np.ndarray  # (3K,), um; x, y, z of the first function, then of the second, ...
    prior_covariance: np.ndarray  # (3K, 3K)

    has_scale = True
    BOUND_SDS = 8.0  # chosen by hand, wide

    def initial_shapes(self) -> np.ndarray:
        """One prior standard deviation either way along its three main axes (6, P)."""
        variances, axes = np.linalg.eigh(self.prior_covariance)
        axes = (np.sqrt(variances) * axes)[:, :-4:-1].T
        return self.prior_mean + np.concatenate([axes, -axes])

    def vertices(self, theta: torch.Tensor) -> torch.Tensor:
        """Positions (N, 3), um; differentiable by theta (P,)."""
        return displaced(self.template, self.displacement_modes, theta)


@cache
def spectral_space(fine: bool = False) -> SpectralSpace:
    """Spectral coefficients of a cylinder, whose prior is that of synthetic axons.

    With 370 vertices, or 793 where `fine`.
    """
    template, (rates, modes) = straight_template(*((4, 13) if fine else (3, 10)), _N_MODES)
    _, areas = template.laplacian
    surface = template.points[template.surface]
    unit_surface = surface / [RADIUS, RADIUS, LENGTH / 2]
    changes = [axon.positions(unit_surface) - surface for axon in training_axons()]
    project = modes.T * (areas / areas.sum())
    coefficients = np.array([(project @ change).ravel() for change in changes])
    extra_sd = np.repeat(_EXTRA_SD_UM * rates[0] / rates, 3)
    return SpectralSpace(
        template,
        template.harmonic_extension @ modes,
        coefficients.mean(axis=0),
        np.cov(coefficients.T) + np.diag(extra_sd**2),
    )


@cache
def straight_template(
    n_rings: int, n_layers: int, n_modes: int
) -> tuple[Template, tuple[np.ndarray, np.ndarray]]:
    """Straight cylinder, and rates and smoothest functions (S, n) of its surface."""
    reference = cylinder_mesh(n_rings, n_layers)
    template = Template(reference.points * [RADIUS, RADIUS, LENGTH / 2], reference.tetrahedra)
    return template, template.surface_modes(n_modes)
