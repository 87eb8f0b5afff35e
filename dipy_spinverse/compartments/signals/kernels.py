"""Signals of compartments by the angle between the gradient and their axis.

Built-in kernels attenuate the signal as

    E = exp(-perpendicular - difference cos^2)

with the cosine between the gradient and the axis: diffusion is Gaussian, or in the Gaussian
phase approximation (GPA) of restricted diffusion with finite pulses, whose logarithm is quadratic
in the gradient too. `perpendicular` is minus the logarithm of the attenuation perpendicular to the
axis, `difference` that along the axis less it. A :class:`CustomKernel` is any function of cos^2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.compartments.signals.encoding import Encoding
from dipy_spinverse.compartments.signals.restricted import restricted

# Gauss-Hermite nodes of a gamma distribution of diameters.
_N_DIAMETERS = 9


@dataclass(frozen=True, eq=False)
class Kernel:
    """Exponents (V, S) of each shell; see the module."""

    perpendicular: Tensor
    difference: Tensor

    def at(self, square: Tensor) -> Tensor:
        """Attenuation (V, S, Q) at cos^2 (Q,)."""
        return torch.exp(-self.perpendicular[..., None] - self.difference[..., None] * square)

    def averaged(self, order: Tensor | float) -> Kernel:
        """With the exponent averaged over directions of order <P_2(cos)>, (V, 1) or (S,).

        So a tensor is averaged over axes, and so a b-tensor of shape b_Delta = `order` over the
        directions of linear ones.
        """
        mean = self.perpendicular + self.difference * (1 - order) / 3
        return Kernel(mean, self.difference * order)


@dataclass(frozen=True, eq=False)
class BuiltInKernel:
    """A kernel of `KERNELS`, with the attributes of a `CustomKernel`.

    ``exponents(encoding, *arguments)`` is its :class:`Kernel` for linear encoding.
    """

    name: str
    arguments: tuple[str, ...]
    exponents: Callable[..., Kernel]
    oriented: bool = False
    timed: bool = False

    def __call__(self, encoding: Encoding, **arguments: Tensor) -> Kernel:
        """With the values of its arguments, for the b-tensors of the encoding."""
        kernel = self.exponents(encoding, **arguments)
        return kernel if encoding.linear else kernel.averaged(encoding.anisotropy)


@dataclass(frozen=True, eq=False)
class CustomKernel:
    """A kernel with its own parameters, for :class:`Compartment`.

    Attributes
    ----------
    name : str
    arguments : tuple of str
    signal : callable
        ``signal(encoding, square, **arguments)``: attenuation (V, S, Q), 1 without diffusion, of
        linear encoding with cos^2 `square` (Q,) between gradient and axis; of a kernel without
        axis (V, S, 1). `encoding` has `b`, `q`, `small_delta` and `big_delta` of each shell (S,)
        in ms/um^2, rad/um and ms; arguments are tensors (V,). Made of torch operations, so that
        `signals` is differentiable, and smooth in cos^2, as signals without dispersion are
        interpolated between 64 values of it.
    oriented : bool
        Whether it depends on its axis.
    timed : bool
        Whether it depends on the pulses beyond b.

    Examples
    --------
    Diffusion along an axis with kurtosis:

    >>> import torch
    >>> def curved(encoding, square, *, diffusivity, kurtosis):
    ...     bd = encoding.b[:, None] * diffusivity[:, None, None] * square
    ...     return torch.exp(-bd + kurtosis[:, None, None] * bd**2 / 6)
    >>> kernel = CustomKernel("curved stick", ("diffusivity", "kurtosis"), curved)
    """

    name: str
    arguments: tuple[str, ...]
    signal: Callable[..., Tensor]
    oriented: bool = True
    timed: bool = False

    def __call__(self, encoding: Encoding, **arguments: Tensor) -> CustomSignal:
        """With the values of its arguments."""
        return CustomSignal(self, encoding, arguments)


@dataclass(frozen=True, eq=False)
class CustomSignal:
    """A `CustomKernel` with its arguments; as `Kernel`."""

    kernel: CustomKernel
    encoding: Encoding
    arguments: Mapping[str, Tensor]

    def at(self, square: Tensor) -> Tensor:
        """Attenuation (V, S, Q) at cos^2 (Q,)."""
        return self.kernel.signal(self.encoding, square, **self.arguments)


# Diffusivities (V,) are in um^2/ms, diameters (V,) in um.
def _stick(encoding, diffusivity):
    parallel = encoding.b * diffusivity[:, None]
    return Kernel(torch.zeros_like(parallel), parallel)


def _zeppelin(encoding, parallel, perpendicular):
    exponent = encoding.b * perpendicular[:, None]
    return Kernel(exponent, encoding.b * parallel[:, None] - exponent)


def _ball(encoding, diffusivity):
    exponent = encoding.b * diffusivity[:, None]
    return Kernel(exponent, torch.zeros_like(exponent))


def _dot(encoding):
    """Immobile water."""
    zero = encoding.b.new_zeros(1, len(encoding.b))
    return Kernel(zero, zero)


def _cylinder(encoding, diffusivity, diameter):
    """Free along its axis; across it van Gelderen et al., J. Magn. Reson. B 103 (1994) 255,
    https://doi.org/10.1006/jmrb.1994.1038."""
    exponent = restricted(encoding, diffusivity, diameter, "cylinder")
    return Kernel(exponent, encoding.b * diffusivity[:, None] - exponent)


def _slab(encoding, diffusivity, diameter):
    """Between planes, `diameter` apart, whose normal is the axis; along them free. Neuman,
    J. Chem. Phys. 60 (1974) 4508, https://doi.org/10.1063/1.1680931."""
    free = encoding.b * diffusivity[:, None]
    return Kernel(free, restricted(encoding, diffusivity, diameter, "slab") - free)


def _sphere(encoding, diffusivity, diameter):
    """Murday and Cotts, J. Chem. Phys. 48 (1968) 4938, https://doi.org/10.1063/1.1668160."""
    exponent = restricted(encoding, diffusivity, diameter, "sphere")
    return Kernel(exponent, torch.zeros_like(exponent))


KERNELS = {
    kernel.name: kernel
    for kernel in (
        BuiltInKernel("stick", ("diffusivity",), _stick, oriented=True),
        BuiltInKernel("zeppelin", ("parallel", "perpendicular"), _zeppelin, oriented=True),
        BuiltInKernel("cylinder", ("diffusivity", "diameter"), _cylinder, True, timed=True),
        BuiltInKernel("slab", ("diffusivity", "diameter"), _slab, True, timed=True),
        BuiltInKernel("ball", ("diffusivity",), _ball),
        BuiltInKernel("dot", (), _dot),
        BuiltInKernel("sphere", ("diffusivity", "diameter"), _sphere, timed=True),
    )
}


def _gamma_cylinders(encoding, square, *, diffusivity, diameter, spread):
    """Volume-weighted; `spread` is the standard deviation of the diameters over their mean."""
    points, weights = np.polynomial.hermite_e.hermegauss(_N_DIAMETERS)
    # Volumes go with the square: of a gamma distribution of shape k, one of shape k + 2.
    shape = 1 / spread.clamp_min(1e-3) ** 2 + 2
    scale = diameter / (shape - 2)
    total = torch.zeros((), dtype=diameter.dtype)
    for point, weight in zip(points, weights / weights.sum(), strict=True):
        # The cube root of a gamma variable is nearly normal: Wilson and Hilferty, PNAS 17 (1931)
        # 684, https://doi.org/10.1073/pnas.17.12.684
        root = 1 - 1 / (9 * shape) + point / (3 * torch.sqrt(shape))
        size = scale * shape * root.clamp_min(0.01) ** 3
        total = total + weight * _cylinder(encoding, diffusivity, size).at(square)
    return total


def _changing_spheres(encoding, square, *, diffusivity, diameter, growth):
    """Impermeable spheres whose diameter is multiplied by `growth` when Delta doubles: apparent
    sizes, if water crosses the membranes. `diameter` is that at the mean logarithm of Delta."""
    if (growth == 1).all():
        return _sphere(encoding, diffusivity, diameter).at(square)
    doublings = torch.log2(encoding.big_delta)
    doublings = doublings - doublings[encoding.b > 0].mean()
    total = torch.zeros((), dtype=encoding.b.dtype)
    for value in doublings.unique():
        signal = _sphere(encoding, diffusivity, diameter * growth**value).at(square)
        total = total + signal * (doublings == value)[:, None]
    return total


CHANGING_SPHERES = CustomKernel(
    "sphere", ("diffusivity", "diameter", "growth"), _changing_spheres, oriented=False, timed=True
)
GAMMA_CYLINDERS = CustomKernel(
    "gamma cylinders", ("diffusivity", "diameter", "spread"), _gamma_cylinders, timed=True
)
