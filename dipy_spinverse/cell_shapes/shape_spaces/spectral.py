"""Shapes as sums of the smoothest functions on a template's surface."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from dipy_spinverse.cell_shapes.shape_spaces.gaussian import GaussianSpace
from dipy_spinverse.cell_shapes.synthetic_axons import FAMILIES, LENGTH, RADIUS, draw_axons
from dipy_spinverse.cell_shapes.templates import Template, cylinder_mesh

_N_MODES = 30
_N_AXONS = 150  # of each family, for the prior
_BEYOND_UM = 0.15  # what the prior allows beyond the made-up axons, of the smoothest mode


@dataclass(frozen=True, eq=False, repr=False)
class SpectralSpace(GaussianSpace):
    """Displacements of a template by eigenfunctions of its cotangent Laplacian.

    Vertices inside follow those on the surface by harmonic functions. Build one with
    `spectral_space`.

    Attributes
    ----------
    template : Template
    moves : ndarray (N, K)
        Of all vertices, by each of the K smoothest functions on the surface.
    prior_mean, prior_covariance : ndarray (3K,), (3K, 3K)
        Of x, y and z of the first function, of the second, ...; um.

    Examples
    --------
    >>> space = spectral_space()
    >>> space
    SpectralSpace(90 parameters, 370 vertices)
    >>> space.vertices(torch.zeros(90, dtype=torch.float64)).shape
    torch.Size([370, 3])
    """

    template: Template
    moves: np.ndarray
    prior_mean: np.ndarray
    prior_covariance: np.ndarray

    has_scale = True
    FARTHEST = 8.0

    def initial_shapes(self) -> np.ndarray:
        """Either way along the likeliest three changes (6, P)."""
        variances, ways = np.linalg.eigh(self.prior_covariance)
        ways = (np.sqrt(variances) * ways)[:, :-4:-1].T
        return self.prior_mean + np.concatenate([ways, -ways])

    def vertices(self, theta: torch.Tensor) -> torch.Tensor:
        """Positions (N, 3), um; differentiable by theta (P,)."""
        points = torch.as_tensor(self.template.points)
        return points + torch.as_tensor(self.moves) @ theta.reshape(-1, 3)

    def remeshed(self, theta: np.ndarray) -> tuple[SpectralSpace, np.ndarray]:
        """The same: other templates have other modes; give `spectral_space(fine=True)`."""
        return self, theta


def spectral_space(fine: bool = False) -> SpectralSpace:
    """Spectral coefficients of a cylinder, whose prior is that of made-up axons.

    Parameters
    ----------
    fine : bool, optional
        With 793 vertices instead of 370.

    Examples
    --------
    >>> spectral_space(fine=True)
    SpectralSpace(90 parameters, 793 vertices)
    """
    return _spectral_space((4, 13) if fine else (3, 10))


@cache
def _spectral_space(size):
    reference = cylinder_mesh(*size)
    template = Template(reference.points * [RADIUS, RADIUS, LENGTH / 2], reference.tetrahedra)
    rates, modes = template.surface_modes(_N_MODES)
    rng = np.random.default_rng(0)
    axons = [axon for family in FAMILIES for axon in draw_axons(family, _N_AXONS, rng)]
    _, areas = template.laplacian
    changes = [
        axon.positions(reference.points[template.surface]) - template.points[template.surface]
        for axon in axons
    ]
    project = modes.T * (areas / areas.sum())
    coefficients = np.array([(project @ change).ravel() for change in changes])
    beyond = np.repeat(_BEYOND_UM * rates[0] / rates, 3)
    return SpectralSpace(
        template,
        template.harmonic_extension @ modes,
        coefficients.mean(axis=0),
        np.cov(coefficients.T) + np.diag(beyond**2),
    )
