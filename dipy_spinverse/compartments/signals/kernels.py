"""Signals of compartments by the angle between the gradient and their axis.

Those here attenuate the signal as

    E = exp(-across - excess cos^2)

with the cosine between the gradient and the axis: diffusion is Gaussian, or in the Gaussian
phase approximation (GPA) of restricted diffusion with finite pulses, whose logarithm is quadratic
in the gradient too. `across` is the logarithm of the attenuation perpendicular to the axis,
`excess` what comes to it along the axis. A kernel of one's own is any function of cos^2:
:class:`CustomKernel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dipy_spinverse.compartments.signals.encoding import Encoding
from dipy_spinverse.compartments.signals.restricted import CYLINDER, SPHERE, restricted


@dataclass(frozen=True, eq=False)
class Kernel:
    """Logarithms of attenuation (V, S) of each shell; see the module."""

    across: Tensor
    excess: Tensor

    def at(self, square: Tensor) -> Tensor:
        """Attenuation (V, S, Q) at cos^2 (Q,)."""
        return torch.exp(-self.across[..., None] - self.excess[..., None] * square)

    def averaged(self, order: Tensor) -> Kernel:
        """With the exponent averaged over directions of order <P_2(cos)>, (V, 1) or (S,).

        So a tensor is averaged over axes, and so a b-tensor of shape b_Delta = `order` over the
        directions of linear ones.
        """
        return Kernel(self.across + self.excess * (1 - order) / 3, self.excess * order)


@dataclass(frozen=True, eq=False)
class CustomKernel:
    """A kernel of one's own, with its own parameters, for :class:`Compartment`.

    Attributes
    ----------
    name : str
    arguments : tuple of str
    signal : callable
        ``signal(encoding, square, **arguments)``: attenuation (V, S, Q), 1 without diffusion, of
        linear encoding with cos^2 `square` (Q,) between gradient and axis; of a kernel without
        axis (V, S, 1). `encoding` has `b`, `q`, `small_delta` and `big_delta` of each shell (S,)
        in ms/um^2, rad/um and ms; arguments are tensors (V,). Of torch operations, so that fits
        have its derivatives.
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
    """An `CustomKernel` with its arguments; as `Kernel`."""

    kernel: CustomKernel
    encoding: Encoding
    arguments: Mapping[str, Tensor]

    def at(self, square: Tensor) -> Tensor:
        """Attenuation (V, S, Q) at cos^2 (Q,)."""
        return self.kernel.signal(self.encoding, square, **self.arguments)


def stick_kernel(encoding: Encoding, diffusivity: Tensor) -> Kernel:
    """Cylinder of no radius.

    Parameters
    ----------
    encoding : Encoding
    diffusivity : Tensor (V,)
        um^2/ms.
    """
    along = _gaussian(encoding, diffusivity)
    return Kernel(torch.zeros_like(along), along)


def zeppelin_kernel(encoding: Encoding, parallel: Tensor, perpendicular: Tensor) -> Kernel:
    """Axisymmetric Gaussian diffusion.

    Parameters
    ----------
    encoding : Encoding
    parallel, perpendicular : Tensor (V,)
        Diffusivities in um^2/ms.
    """
    across = _gaussian(encoding, perpendicular)
    return Kernel(across, _gaussian(encoding, parallel) - across)


def cylinder_kernel(encoding: Encoding, diffusivity: Tensor, diameter: Tensor) -> Kernel:
    """Impermeable cylinder: free along its axis, restricted across it.

    Across, the Gaussian phase approximation with finite pulses [1]_.

    Parameters
    ----------
    encoding : Encoding
    diffusivity : Tensor (V,)
        um^2/ms, along the axis and inside.
    diameter : Tensor (V,)
        um.

    References
    ----------
    .. [1] van Gelderen, DesPres, van Zijl and Moonen, J. Magn. Reson. B 103 (1994) 255,
       https://doi.org/10.1006/jmrb.1994.1038
    """
    across = restricted(encoding, diffusivity, diameter, CYLINDER)
    return Kernel(across, _gaussian(encoding, diffusivity) - across)


def ball_kernel(encoding: Encoding, diffusivity: Tensor) -> Kernel:
    """Isotropic Gaussian diffusion with `diffusivity` (V,) in um^2/ms."""
    across = _gaussian(encoding, diffusivity)
    return Kernel(across, torch.zeros_like(across))


def dot_kernel(encoding: Encoding) -> Kernel:
    """Water that does not move."""
    still = encoding.b.new_zeros(1, len(encoding.b))
    return Kernel(still, still)


def sphere_kernel(encoding: Encoding, diffusivity: Tensor, diameter: Tensor) -> Kernel:
    """Impermeable sphere, in the Gaussian phase approximation with finite pulses [1]_.

    Parameters
    ----------
    encoding : Encoding
    diffusivity : Tensor (V,)
        um^2/ms.
    diameter : Tensor (V,)
        um.

    References
    ----------
    .. [1] Murday and Cotts, J. Chem. Phys. 48 (1968) 4938, https://doi.org/10.1063/1.1668160
    """
    across = restricted(encoding, diffusivity, diameter, SPHERE)
    return Kernel(across, torch.zeros_like(across))


def _gaussian(encoding, diffusivity):
    return encoding.b * diffusivity[:, None]


KERNELS: dict[str, Callable[..., Kernel]] = {
    "stick": stick_kernel,
    "zeppelin": zeppelin_kernel,
    "cylinder": cylinder_kernel,
    "ball": ball_kernel,
    "dot": dot_kernel,
    "sphere": sphere_kernel,
}
ARGUMENTS = {
    "stick": ("diffusivity",),
    "zeppelin": ("parallel", "perpendicular"),
    "cylinder": ("diffusivity", "diameter"),
    "ball": ("diffusivity",),
    "dot": (),
    "sphere": ("diffusivity", "diameter"),
}
ORIENTED = ("stick", "zeppelin", "cylinder")
TIMED = ("cylinder", "sphere")
