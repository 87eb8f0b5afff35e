"""Shapes decoded from the 16 numbers of a spectral auto-encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from dipy_spinverse.cell_shapes.shape_spaces.gaussian import GaussianSpace
from dipy_spinverse.cell_shapes.synthetic_axons import LENGTH, RADIUS
from dipy_spinverse.cell_shapes.templates import Template, cylinder_mesh

SIZE = (4, 13)  # rings and layers of the template that the network was fitted to
N_MODES = 100


@dataclass(frozen=True, eq=False, repr=False)
class LatentSpace(GaussianSpace):
    """Shapes of the volume of the template, decoded by a network from a latent vector.

    The network gives spectral coefficients of the template's surface; vertices inside follow by
    harmonic functions. Build one with `latent_space`.

    Attributes
    ----------
    template : Template
    moves : ndarray (N, K)
        Of all vertices, by each of the K smoothest functions on the surface.
    weights, biases : tuple of ndarray
        Of the decoder's layers, the last one linear, to 3K coefficients in um.
    prior_mean, prior_covariance : ndarray (16,), (16, 16)
        Of the latent vectors of the shapes that the network was fitted to.
    likely : ndarray (S, 16)
        Some of these shapes, one from the middle of each cluster.

    Examples
    --------
    >>> space = latent_space()
    >>> space
    LatentSpace(16 parameters, 793 vertices)
    >>> space.vertices(torch.as_tensor(space.prior_mean)).shape
    torch.Size([793, 3])
    """

    template: Template
    moves: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    prior_mean: np.ndarray
    prior_covariance: np.ndarray
    likely: np.ndarray

    has_scale = False
    FARTHEST = 5.0

    def initial_shapes(self) -> np.ndarray:
        """Shapes (S, 16) that are typical of those that the network was fitted to."""
        return self.likely

    def vertices(self, theta: torch.Tensor) -> torch.Tensor:
        """Positions (N, 3), um; differentiable by theta (16,)."""
        coefficients = _decoded(theta, self.weights, self.biases).reshape(-1, 3)
        return torch.as_tensor(self.template.points) + torch.as_tensor(self.moves) @ coefficients

    def remeshed(self, theta: np.ndarray) -> tuple[LatentSpace, np.ndarray]:
        """The same: the network knows one template."""
        return self, theta


def latent_space(path: str | Path | None = None) -> LatentSpace:
    """Latent space of a spectral auto-encoder of made-up axons.

    Parameters
    ----------
    path : str or Path, optional
        Of a network by ``benchmarks/make_shape_autoencoder.py``, instead of that which comes with
        the package and knows all families of axons.

    Raises
    ------
    ValueError
        The file is no such network.

    Examples
    --------
    >>> latent_space().has_scale
    False
    """
    here = files("dipy_spinverse.cell_shapes.shape_spaces") / "autoencoder.npz"
    return _latent_space(str(here if path is None else path))


@cache
def _latent_space(path):
    with np.load(path, allow_pickle=False) as file:
        if "layers" not in file:
            raise ValueError(
                f"path is {path}, which holds {sorted(file)[:4]}; give a file that "
                "benchmarks/make_shape_autoencoder.py wrote."
            )
        layers = range(int(file["layers"]))
        template, modes = straight_template()
        return LatentSpace(
            template,
            template.harmonic_extension @ modes,
            tuple(file[f"weight_{k}"].astype(float) for k in layers),
            tuple(file[f"bias_{k}"].astype(float) for k in layers),
            *(file[name].astype(float) for name in ("mean", "covariance", "starts")),
        )


@cache
def straight_template() -> tuple[Template, np.ndarray]:
    """Straight cylinder, and its surface's modes (S, K), of which shapes are made."""
    reference = cylinder_mesh(*SIZE)
    template = Template(reference.points * [RADIUS, RADIUS, LENGTH / 2], reference.tetrahedra)
    return template, template.surface_modes(N_MODES)[1]


def _decoded(latent, weights, biases):
    x = latent
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ torch.as_tensor(weight) + torch.as_tensor(bias)
        if k < len(weights) - 1:
            x = torch.nn.functional.silu(x)
    return x
