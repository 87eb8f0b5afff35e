"""Cylinders whose diameters have a gamma distribution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.compartments.signals.encoding import Encoding
from dipy_spinverse.compartments.signals.kernels import CustomKernel, cylinder_kernel

_N_SIZES = 9


def gamma_cylinders_signal(
    encoding: Encoding, square: Tensor, *, diffusivity: Tensor, diameter: Tensor, spread: Tensor
) -> Tensor:
    """Attenuation (V, S, Q), each cylinder weighted by its volume.

    Parameters
    ----------
    encoding : Encoding
    square : Tensor (Q,)
        cos^2 between gradient and cylinders.
    diffusivity : Tensor (V,)
        um^2/ms.
    diameter : Tensor (V,)
        Mean over cylinders, um.
    spread : Tensor (V,)
        Standard deviation of diameters over their mean.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(_N_SIZES)
    # Volumes go with the square: of a gamma distribution of shape k, one of shape k + 2.
    shape = 1 / spread.clamp_min(1e-3) ** 2 + 2
    scale = diameter / (shape - 2)
    total = torch.zeros((), dtype=diameter.dtype)
    for point, weight in zip(points, weights / weights.sum(), strict=True):
        # Wilson and Hilferty: the cube root is nearly normal.
        root = 1 - 1 / (9 * shape) + point / (3 * torch.sqrt(shape))
        size = scale * shape * root.clamp_min(0.01) ** 3
        total = total + weight * cylinder_kernel(encoding, diffusivity, size).at(square)
    return total


GAMMA_CYLINDERS = CustomKernel(
    "gamma cylinders",
    ("diffusivity", "diameter", "spread"),
    gamma_cylinders_signal,
    timed=True,
)
