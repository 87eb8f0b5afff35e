"""Shapes decoded from the 16 numbers of a spectral auto-encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from dipy_spinverse.cell_shapes.shape_spaces.protocol import TemplateSpace, displaced
from dipy_spinverse.cell_shapes.synthetic_axons import LENGTH, RADIUS
from dipy_spinverse.cell_shapes.templates import Template, cylinder_mesh

SIZE = (4, 13)  # rings and layers of the template that the network was fitted to
N_MODES = 100  # of the surface, whose coefficients the network decodes


@dataclass(frozen=True, eq=False, repr=False)
class LatentSpace(TemplateSpace):
    """Shapes of the volume of the template, decoded by a network from a latent vector.

    The network gives spectral coefficients of the template's surface; vertices inside follow by
    harmonic functions. Build one with `latent_space`.
    """

    template: Template
    displacement_modes: np.ndarray  # (N, K), of all vertices
    weights: tuple[np.ndarray, ...]  # of the decoder's layers, the last one linear
    biases: tuple[np.ndarray, ...]  # to 3K coefficients in um
    prior_mean: np.ndarray  # (16,), of the shapes that the network was fitted to
    prior_covariance: np.ndarray  # (16, 16)
    typical_shapes: np.ndarray  # (S, 16), medoids of clusters of these

    has_scale = False
    BOUND_SDS = 5.0  # of the training shapes

    def initial_shapes(self) -> np.ndarray:
        """Typical training shapes (S, 16)."""
        return self.typical_shapes

    def vertices(self, theta: torch.Tensor) -> torch.Tensor:
        """Positions (N, 3), um; differentiable by theta (16,)."""
        x = theta
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ torch.as_tensor(weight) + torch.as_tensor(bias)
            if k < len(self.weights) - 1:
                x = torch.nn.functional.silu(x)
        return displaced(self.template, self.displacement_modes, x)


@cache
def latent_space(path: str | Path | None = None) -> LatentSpace:
    """Latent space of a spectral auto-encoder of synthetic axons.

    Parameters
    ----------
    path : str or Path, optional
        Of a network by ``benchmarks/make_shape_autoencoder.py``, instead of the one that comes
        with the package, which was trained on all families of axons.
    """
    if path is None:
        path = str(files("dipy_spinverse.cell_shapes.shape_spaces") / "autoencoder.npz")
    with np.load(path, allow_pickle=False) as file:
        if "layers" not in file:
            raise ValueError(
                f"path is {path}, which contains {sorted(file)[:4]}; give a file that "
                "benchmarks/make_shape_autoencoder.py wrote."
            )
        layers = range(int(file["layers"]))
        template, (_, modes) = straight_template(*SIZE, N_MODES)
        return LatentSpace(
            template,
            template.harmonic_extension @ modes,
            tuple(file[f"weight_{k}"].astype(float) for k in layers),
            tuple(file[f"bias_{k}"].astype(float) for k in layers),
            *(file[name].astype(float) for name in ("mean", "covariance", "starts")),
        )


def straight_template(
    n_rings: int, n_layers: int, n_modes: int
) -> tuple[Template, tuple[np.ndarray, np.ndarray]]:
    """Straight cylinder, and rates and smoothest functions (S, n) of its surface."""
    reference = cylinder_mesh(n_rings, n_layers)
    template = Template(reference.points * [RADIUS, RADIUS, LENGTH / 2], reference.tetrahedra)
    return template, template.surface_modes(n_modes)
