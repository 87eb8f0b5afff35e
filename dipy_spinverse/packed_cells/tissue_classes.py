"""Classes of tissue, their parameters and prior.

Every parameter is a function of a z that is standard normal a priori; u is its normal probability,
uniform between 0 and 1:

- radius: log-normal about a typical one, 2 um unless said, by a factor of 3, from 0.1 to 60 um
- fraction of the bodies within their own tissue: uniform from 0.05 to 0.8 (spheres 0.66)
- permeability: log-uniform from 0.0005 to 0.5 um/ms; cells of a voxel differ in it by a factor
  that is log-normal about 1 by e (``maps.with_unequal_membranes``)
- dispersion in either direction: its cube root uniform, 0.0005 (parallel to 2 degrees) to 0.95
- half the angle between crossing axes: uniform from 10 to 45 degrees; their shares: uniform
- share of sphere tissue in a mixture, whose membranes all have one permeability: uniform
- diffusivity outside, where not given: log-normal about 1.1 um^2/ms by a factor of 1.8, which
  holds white matter in vivo (1.7 to 2.2) and fixed (0.3 to 0.8); inside it is that outside times
  a log-normal factor about 0.95 by 1.3. Spheres cannot determine both: there the prior speaks.
- free water, the dot (water that does not move), and the hindered pool: shares of what those
  before leave, u^5, u^6 / 2 and u^10, most of which are close to 0
- diffusivity of free water, where nothing explains a voxel with that given: log-normal about it by
  a factor of 1.3
- where there are several echo times, how much faster the water in tissue relaxes than free water:
  log-normal about 0.015 / ms by a factor of 2
- diffusivities of the hindered pool in the three directions of the frame: log-normal about 0.8
  um^2/ms by a factor of 1.8

The frame is uniform over rotations: a vector of rotation from a voxel's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from dipy_spinverse.packed_cells.emulator import RANGES
from dipy_spinverse.packed_cells.interpolation import DIFFUSIVITY_RANGE, RATIO_RANGE
from dipy_spinverse.packed_cells.orientations import log_haar, rotation_of

CLASSES = ("cylinders", "crossing", "spheres", "mixture", "no cells")
# On request: parallel cylinders along the voxel's own direction, which is not fitted.
ALIGNED = "aligned cylinders"
LEAST_DISPERSION, LARGEST_DISPERSION = 0.0005, 0.95
LARGEST_Z = 5.0
TYPICAL_RADIUS, _RADIUS_SPREAD = 2.0, np.log(3.0)
_OUTSIDE, _OUTSIDE_SPREAD = np.log(1.1), np.log(1.8)
_RATIO, _RATIO_SPREAD = np.log(0.95), np.log(1.3)
_HINDERED, _HINDERED_SPREAD = np.log(0.8), np.log(1.8)
_RELAXATION, _RELAXATION_SPREAD = np.log(0.015), np.log(2.0)
# Logarithm of the diffusivity of free water over that given.
LOG_FREE_RATIO, _FREE_EXCESS_SPREAD = "free_excess", np.log(1.3)
# Of shares: the largest, and the power of u.
_SHARES = {"free_water": (1.0, 5), "dot": (0.5, 6), "hindered": (1.0, 10)}

_CYLINDER = ("radius", "fraction", "permeability")
_SPHERE = ("sphere_radius", "sphere_fraction", "sphere_permeability")
_HINDERED_TENSOR = ("hindered_1", "hindered_2", "hindered_along")
_DIFFUSIVITIES = ("diffusivity_outside", "diffusivity_inside")
ROTATION = ("rotation_1", "rotation_2", "rotation_3")
_OWN = {
    "cylinders": (*_CYLINDER, "dispersion_1", "dispersion_2"),
    "crossing": (*_CYLINDER, "dispersion_1", "half_angle", "crossing_share"),
    "spheres": _SPHERE,
    "mixture": (
        *_CYLINDER, "dispersion_1", "dispersion_2", *_SPHERE[:2], "sphere_share",
    ),
    "no cells": (),
    ALIGNED: _CYLINDER,
}  # fmt: skip


@dataclass(frozen=True)
class TissueClass:
    """Names of the parameters of a class, in order; the rotation of its frame is last.

    `typical_radius` of its bodies, um, is the median of the prior.
    """

    name: str
    parameters: tuple[str, ...]
    typical_radius: float = TYPICAL_RADIUS

    @property
    def n_parameters(self) -> int:
        """Number of unknowns, P."""
        return len(self.parameters)

    def columns(self, *names: str) -> list[int]:
        """Places of parameters."""
        return [self.parameters.index(name) for name in names]

    @property
    def has_cylinders(self) -> bool:
        """Whether there are cylinders."""
        return "fraction" in self.parameters

    @property
    def has_spheres(self) -> bool:
        """Whether there are spheres."""
        return "sphere_fraction" in self.parameters

    @property
    def turns(self) -> bool:
        """Whether its frame is unknown."""
        return ROTATION[0] in self.parameters

    def moved(self, z: np.ndarray, frames: np.ndarray, step: np.ndarray):
        """Places (N, P) and frames after steps (N, P), the rotations taken up by the frames."""
        at = z + step
        if self.turns:
            at[:, -3:] = 0
            frames = rotation_of(step[:, -3:]) @ frames
        return at, frames

    @property
    def of_unknown_water(self) -> TissueClass:
        """The same where the diffusivity of free water is unknown, too."""
        names, n = self.parameters, self.scalar.stop
        return replace(self, parameters=(*names[:n], LOG_FREE_RATIO, *names[n:]))

    @property
    def of_known_water(self) -> TissueClass:
        """The same where that is known."""
        names = tuple(name for name in self.parameters if name != LOG_FREE_RATIO)
        return replace(self, parameters=names)

    def like(self, other: TissueClass, places: np.ndarray) -> np.ndarray:
        """Places (..., P) with what they share with those of another class, and else 0."""
        shared = [name for name in self.parameters if name in other.parameters]
        found = np.zeros((*places.shape[:-1], self.n_parameters))
        found[..., self.columns(*shared)] = places[..., other.columns(*shared)]
        return found

    @property
    def scalar(self) -> slice:
        """Columns of all but the rotation."""
        return slice(0, self.n_parameters - 3 * self.turns)


def tissue_class(
    name: str, diffusivity_known: bool, relaxes: bool = False,
    typical_radius: float = TYPICAL_RADIUS,
) -> TissueClass:  # fmt: skip
    """One of `CLASSES` or `ALIGNED`, with diffusivities that are known or not.

    `relaxes`: whether the share of free water depends on the echo time.
    """
    parameters = _OWN[name] + ("free_water", "dot")
    parameters += ("relaxation",) if relaxes else ()
    if not diffusivity_known:
        parameters += _DIFFUSIVITIES[:1] if name == "no cells" else _DIFFUSIVITIES
    if name != "no cells":
        parameters += ("hindered", *_HINDERED_TENSOR)
        parameters += () if name == ALIGNED else ROTATION
    return TissueClass(name, parameters, typical_radius)


def parameter_values(tissue: TissueClass, z: np.ndarray) -> dict[str, np.ndarray]:
    """Values (N,) of the parameters but the rotation at places (N, P)."""
    return {name: found[0] for name, found in parameter_values_and_slopes(tissue, z).items()}


def parameter_values_and_slopes(
    tissue: TissueClass, z: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same, each with its slopes (N,) by the own z."""
    z = np.clip(z, -LARGEST_Z, LARGEST_Z)
    u = ndtr(z)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for k, name in enumerate(tissue.parameters[tissue.scalar]):
        kind = name.removeprefix("sphere_")
        shape = "sphere" if name.startswith("sphere") else "cylinder"
        x, dx = u[:, k], density[:, k]
        if kind == "radius":
            value = tissue.typical_radius * np.exp(_RADIUS_SPREAD * z[:, k])
            found[name] = _within(value, RANGES[kind], _RADIUS_SPREAD)
        elif kind == "permeability":
            low, high = RANGES[kind]
            value = low * (high / low) ** x
            found[name] = value, value * np.log(high / low) * dx
        elif kind == "fraction":
            low, high = RANGES["fraction"][shape]
            found[name] = _uniform(low, high, x, dx)
        elif kind in ("share", "crossing_share"):
            found[name] = x, dx
        elif kind == "half_angle":
            found[name] = _uniform(np.radians(10), np.radians(45), x, dx)
        elif kind.startswith("dispersion"):
            width = LARGEST_DISPERSION - LEAST_DISPERSION
            odi = LEAST_DISPERSION + width * x**3
            slope = 3 * width * x**2 * dx / np.cos(np.pi / 2 * odi) ** 2 * np.pi / 8
            found[name] = diffusion_of(odi), slope
        elif name in _SHARES:
            most, power = _SHARES[name]
            found[name] = most * x**power, most * power * x ** (power - 1) * dx
        elif name == "diffusivity_outside":
            value = np.exp(_OUTSIDE + _OUTSIDE_SPREAD * z[:, k])
            found[name] = _within(value, DIFFUSIVITY_RANGE, _OUTSIDE_SPREAD)
        elif name == "diffusivity_inside":
            ratio = np.exp(_RATIO + _RATIO_SPREAD * z[:, k])
            ratio, slope = _within(ratio, RATIO_RANGE, _RATIO_SPREAD)
            inside = found["diffusivity_outside"][0] * ratio
            limited, by_z = _within(inside, DIFFUSIVITY_RANGE, 1.0)
            found[name] = limited, by_z * slope / ratio
        elif name == LOG_FREE_RATIO:
            found[name] = _FREE_EXCESS_SPREAD * z[:, k], np.full(len(z), _FREE_EXCESS_SPREAD)
        elif name == "relaxation":
            value = np.exp(_RELAXATION + _RELAXATION_SPREAD * z[:, k])
            found[name] = value, _RELAXATION_SPREAD * value
        else:
            value = np.exp(_HINDERED + _HINDERED_SPREAD * z[:, k])
            found[name] = value, _HINDERED_SPREAD * value
    return found


def _uniform(low, high, u, density):
    return low + (high - low) * u, (high - low) * density


def _within(value, limits, spread):
    inside = np.clip(value, *limits)
    return inside, np.where(inside == value, spread * value, 0.0)


def diffusion_of(odi: np.ndarray) -> np.ndarray:
    """t of axes, whose narrow distributions are those of Watson with this dispersion index."""
    return np.tan(np.pi / 2 * np.asarray(odi)) / 4


def dispersion_of(diffusion: np.ndarray) -> np.ndarray:
    """Orientation dispersion index 2/pi arctan(1/kappa) of :func:`diffusion_of`."""
    return 2 / np.pi * np.arctan(4 * np.asarray(diffusion))


def log_prior(tissue: TissueClass, z: np.ndarray) -> np.ndarray:
    """Logarithm of the prior density (N,) in z; -inf beyond a rotation by pi."""
    scalar = z[:, tissue.scalar]
    density = -0.5 * (scalar**2).sum(axis=1) - 0.5 * np.log(2 * np.pi) * scalar.shape[1]
    return density + log_haar(z[:, -3:]) if tissue.turns else density
