"""Tissue classes, the models that are compared: their parameters and priors.

Every parameter is a function of a coordinate z with a standard normal prior; u is the normal
cumulative probability of z, uniform between 0 and 1:

- radius: log-normal, median 2 um by default, by a factor of 3, limited to 0.1 to 60 um
- volume fraction of the bodies within their tissue: uniform from 0.05 to 0.8 (spheres 0.66)
- permeability: log-uniform from 0.0005 to 0.5 um/ms; cells of a voxel differ in it by a factor
  that is log-normal about 1 by e (``maps.with_unequal_membranes``)
- dispersion in either direction: cube root uniform, 0.0005 (parallel to 2 degrees) to 0.95
- half the angle between crossing axes: uniform from 10 to 45 degrees; their fractions: uniform
- fraction of sphere tissue in a mixture, whose membranes all have one permeability: uniform
- diffusivity outside, unless known: log-normal about 1.1 um^2/ms by a factor of 1.8, which
  includes white matter in vivo (1.7 to 2.2) and fixed (0.3 to 0.8); inside it is that outside
  times a log-normal factor about 0.95 by 1.3. Spheres do not identify both.
- free water, immobile water (the dot) and hindered water: successive fractions of the remaining
  signal, u^5, u^6 / 2 and u^10, mostly close to 0
- diffusivity of free water, in voxels without an adequate fit: log-normal about the specified one
  by a factor of 1.3
- with several echo times, the difference of the relaxation rates of tissue and free water:
  log-normal about 0.015 / ms by a factor of 2
- diffusivities of hindered water in the three directions of the frame: log-normal about 0.8
  um^2/ms by a factor of 1.8

The frame is uniform over rotations, parameterised by a rotation vector from the tensor's frame.
Fractions and radii were chosen so that credible intervals cover the truth of Monte Carlo tissue
(benchmarks/notes/emulator.md); the other numbers are chosen by hand from the ranges above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from dipy_spinverse.packed_cells.emulator import RANGES
from dipy_spinverse.packed_cells.interpolation import DIFFUSIVITY_RANGE, RATIO_RANGE
from dipy_spinverse.packed_cells.orientations import log_haar, rotation_of

CLASSES = ("cylinders", "crossing", "spheres", "mixture", "no cells")
# On request: parallel cylinders along the tensor's first eigenvector, which is not fitted.
ALIGNED = "aligned cylinders"
LEAST_DISPERSION, LARGEST_DISPERSION = 0.0005, 0.95
LARGEST_Z = 5.0
TYPICAL_RADIUS = 2.0
LOG_FREE_RATIO = "log_free_ratio"  # ln of the diffusivity of free water over the specified one
# Logarithms of medians and prior standard deviations; see above.
_LOG_NORMAL = {
    "diffusivity_outside": (np.log(1.1), np.log(1.8)),
    "diffusivity_inside": (np.log(0.95), np.log(1.3)),  # over that outside
    "relaxation": (np.log(0.015), np.log(2.0)),
    "hindered": (np.log(0.8), np.log(1.8)),
}
_RADIUS_LOG_SD, _FREE_RATIO_LOG_SD = np.log(3.0), np.log(1.3)
# Largest value of a signal fraction, and the power of u.
_FRACTIONS = {"free_water": (1.0, 5), "dot": (0.5, 6), "hindered": (1.0, 10)}

_CYLINDER = ("radius", "fraction", "permeability")
_SPHERE = ("sphere_radius", "sphere_fraction", "sphere_permeability")
_HINDERED_TENSOR = ("hindered_1", "hindered_2", "hindered_along")
_DIFFUSIVITIES = ("diffusivity_outside", "diffusivity_inside")
ROTATION = ("rotation_1", "rotation_2", "rotation_3")
_CELL_PARAMETERS = {
    "cylinders": (*_CYLINDER, "dispersion_1", "dispersion_2"),
    "crossing": (*_CYLINDER, "dispersion_1", "half_angle", "crossing_share"),
    "spheres": _SPHERE,
    "mixture": (*_CYLINDER, "dispersion_1", "dispersion_2", *_SPHERE[:2], "sphere_share"),
    "no cells": (),
    ALIGNED: _CYLINDER,
}


@dataclass(frozen=True)
class TissueClass:
    """Names of the P parameters of a class, in order; the rotation of its frame is last.

    `typical_radius` of its bodies, um, is the median of the prior.
    """

    name: str
    parameters: tuple[str, ...]
    typical_radius: float = TYPICAL_RADIUS

    @property
    def n_parameters(self) -> int:
        """Number of unknowns, P."""
        return len(self.parameters)

    @property
    def shapes(self) -> set[str]:
        """Shapes of its cells: "cylinder", "sphere"."""
        fractions = {"cylinder": "fraction", "sphere": "sphere_fraction"}
        return {shape for shape, name in fractions.items() if name in self.parameters}

    @property
    def turns(self) -> bool:
        """Whether its frame is unknown."""
        return ROTATION[0] in self.parameters

    @property
    def scalar(self) -> slice:
        """Columns of all parameters but the rotation."""
        return slice(0, self.n_parameters - 3 * self.turns)

    @property
    def of_unknown_water(self) -> TissueClass:
        """The same class with unknown diffusivity of free water."""
        names, n = self.parameters, self.scalar.stop
        return replace(self, parameters=(*names[:n], LOG_FREE_RATIO, *names[n:]))

    @property
    def of_known_water(self) -> TissueClass:
        """The same class with known diffusivity of free water."""
        names = tuple(name for name in self.parameters if name != LOG_FREE_RATIO)
        return replace(self, parameters=names)

    def columns(self, *names: str) -> list[int]:
        """Indices of parameters."""
        return [self.parameters.index(name) for name in names]

    def moved(self, z: np.ndarray, frames: np.ndarray, step: np.ndarray):
        """z (N, P) and frames after steps (N, P), whose rotations are applied to the frames."""
        z = z + step
        if self.turns:
            z[:, -3:] = 0
            frames = rotation_of(step[:, -3:]) @ frames
        return z, frames

    def like(self, other: TissueClass, z: np.ndarray) -> np.ndarray:
        """z (..., P) with the values of the parameters shared with another class, else 0."""
        shared = [name for name in self.parameters if name in other.parameters]
        result = np.zeros((*z.shape[:-1], self.n_parameters))
        result[..., self.columns(*shared)] = z[..., other.columns(*shared)]
        return result


def tissue_class(
    name: str, diffusivity_known: bool, relaxes: bool = False,
    typical_radius: float = TYPICAL_RADIUS,
) -> TissueClass:  # fmt: skip
    """One of `CLASSES` or `ALIGNED`.

    `relaxes`: whether the fraction of free water depends on the echo time.
    """
    parameters = _CELL_PARAMETERS[name] + ("free_water", "dot")
    parameters += ("relaxation",) if relaxes else ()
    if not diffusivity_known:
        parameters += _DIFFUSIVITIES[:1] if name == "no cells" else _DIFFUSIVITIES
    if name != "no cells":
        parameters += ("hindered", *_HINDERED_TENSOR)
        parameters += () if name == ALIGNED else ROTATION
    return TissueClass(name, parameters, typical_radius)


def parameter_values_and_slopes(
    tissue: TissueClass, z: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values (N,) of all parameters but the rotation, in their units, and derivatives by z."""
    z = np.clip(z, -LARGEST_Z, LARGEST_Z)
    u, density = ndtr(z), np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    values: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for k, name in enumerate(tissue.parameters[tissue.scalar]):
        if name == "diffusivity_inside":
            ratio, slope = _log_normal(name, z[:, k])
            ratio, slope = _limited(ratio, slope, RATIO_RANGE)
            inside = values["diffusivity_outside"][0] * ratio
            inside, by_inside = _limited(inside, inside, DIFFUSIVITY_RANGE)
            values[name] = inside, by_inside * slope / ratio
        else:
            values[name] = _value_and_slope(tissue, name, z[:, k], u[:, k], density[:, k])
    return values


def _value_and_slope(tissue, name, z, u, density):
    kind = name.removeprefix("sphere_")
    if kind == "radius":
        value = tissue.typical_radius * np.exp(_RADIUS_LOG_SD * z)
        return _limited(value, _RADIUS_LOG_SD * value, RANGES[kind])
    if kind == "permeability":
        low, high = RANGES[kind]
        value = low * (high / low) ** u
        return value, value * np.log(high / low) * density
    if kind == "fraction":
        shape = "sphere" if name.startswith("sphere") else "cylinder"
        return _uniform(*RANGES["fraction"][shape], u, density)
    if kind in ("share", "crossing_share"):
        return u, density
    if kind == "half_angle":
        return _uniform(np.radians(10), np.radians(45), u, density)
    if kind.startswith("dispersion"):
        width = LARGEST_DISPERSION - LEAST_DISPERSION
        odi = LEAST_DISPERSION + width * u**3
        slope = 3 * width * u**2 * density / np.cos(np.pi / 2 * odi) ** 2 * np.pi / 8
        return diffusion_of(odi), slope
    if name in _FRACTIONS:
        largest, power = _FRACTIONS[name]
        return largest * u**power, largest * power * u ** (power - 1) * density
    if name == LOG_FREE_RATIO:
        return _FREE_RATIO_LOG_SD * z, np.full(len(z), _FREE_RATIO_LOG_SD)
    if name == "diffusivity_outside":
        return _limited(*_log_normal(name, z), DIFFUSIVITY_RANGE)
    return _log_normal("hindered" if name in _HINDERED_TENSOR else name, z)


def _log_normal(name, z):
    log_median, log_sd = _LOG_NORMAL[name]
    value = np.exp(log_median + log_sd * z)
    return value, log_sd * value


def _uniform(low, high, u, density):
    return low + (high - low) * u, (high - low) * density


def _limited(value, slope, limits):
    limited = np.clip(value, *limits)
    return limited, np.where(limited == value, slope, 0.0)


def diffusion_of(odi: np.ndarray) -> np.ndarray:
    """Angular diffusion time t whose narrow distributions are Watson's of this dispersion."""
    return np.tan(np.pi / 2 * np.asarray(odi)) / 4


def dispersion_of(diffusion: np.ndarray) -> np.ndarray:
    """Orientation dispersion index 2/pi arctan(1/kappa) of :func:`diffusion_of`."""
    return 2 / np.pi * np.arctan(4 * np.asarray(diffusion))


def log_prior(tissue: TissueClass, z: np.ndarray) -> np.ndarray:
    """Logarithm of the prior density (N,) in z; -inf beyond a rotation by pi."""
    scalar = z[:, tissue.scalar]
    density = -0.5 * (scalar**2).sum(axis=1) - 0.5 * np.log(2 * np.pi) * scalar.shape[1]
    return density + log_haar(z[:, -3:]) if tissue.turns else density
