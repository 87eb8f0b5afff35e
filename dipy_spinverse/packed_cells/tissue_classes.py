"""Classes of tissue, their parameters and prior: cylinders, spheres, or both.

Every parameter but the axis is a function of u = 1 / (1 + exp(-z)) of an unbounded z, with a
prior uniform in u:

- radius: log-uniform from 0.5 to 10 um
- fraction: uniform from 0.08 to 0.8 (cylinders) or 0.66 (spheres)
- permeability: log-uniform from 0.0005 to 0.5 um/ms
- dispersion: its cube root uniform, from 0.0005 (parallel to 2 degrees) to 0.95
- share of sphere tissue in a mixture, whose membranes all have one permeability: uniform
- share of free water: uniform

The axis is uniform over the sphere: an equal-area map of the hemisphere around a voxel's own
direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.packed_cells.tables.signal_table import (
    FRACTION_RANGE,
    LEAKLESS,
    PERMEABILITY_RANGE,
    RADIUS_RANGE_UM,
)
from dipy_spinverse.packed_cells.tissue_model import (
    LARGEST_DISPERSION,
    LEAST_DISPERSION,
    TissueModel,
)

CLASSES = ("cylinders", "spheres", "mixture")
# On request: parallel cylinders along the voxel's own direction, which is not fitted.
ALIGNED = "aligned cylinders"
# Radius of the disc that the hemisphere is mapped to.
HEMISPHERE = np.sqrt(2)
_CYLINDER = ("radius", "fraction", "permeability")
_SPHERE = ("sphere_radius", "sphere_fraction", "sphere_permeability")


@dataclass(frozen=True)
class TissueClass:
    """Names of the parameters of a class; `axis_0` and `axis_1` are its orientation."""

    name: str
    parameters: tuple[str, ...]

    @property
    def n_parameters(self) -> int:
        """Number of unknowns."""
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

    def axes(self, z: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Axes (N, 3) of the cylinders at places (N, P); see :func:`axis_of`."""
        if self.name == ALIGNED:
            return frames[:, 2]
        return axis_of(z[:, self.columns("axis_0", "axis_1")], frames)

    @property
    def bounded(self) -> np.ndarray:
        """(P,) bool: all but the axis."""
        return np.array([not name.startswith("axis") for name in self.parameters])


def tissue_class(name: str, free_water: bool) -> TissueClass:
    """One of `CLASSES` or `ALIGNED`, with or without free water."""
    parameters: tuple[str, ...] = ()
    if name != "spheres":
        parameters += _CYLINDER
    if name not in ("spheres", ALIGNED):
        parameters += ("dispersion", "axis_0", "axis_1")
    if name == "spheres":
        parameters += _SPHERE
    if name == "mixture":
        parameters += (*_SPHERE[:2], "sphere_share")
    return TissueClass(name, parameters + (("free_water",) if free_water else ()))


def shapes_of(classes: tuple[str, ...]) -> list[str]:
    """Shapes of bodies, "cylinder" and "sphere", that some of the classes have."""
    tissues = [tissue_class(name, False) for name in classes]
    present = {
        "cylinder": any(tissue.has_cylinders for tissue in tissues),
        "sphere": any(tissue.has_spheres for tissue in tissues),
    }
    return [shape for shape, is_present in present.items() if is_present]


def physical(tissue: TissueClass, z: np.ndarray) -> dict[str, np.ndarray]:
    """Values (N,) of the parameters but the axis at unbounded places (N, P)."""
    u = expit(z)
    values = {}
    for k, name in enumerate(tissue.parameters):
        kind = name.removeprefix("sphere_")
        shape = "sphere" if name.startswith("sphere") else "cylinder"
        if kind in ("radius", "permeability"):
            low, high = RADIUS_RANGE_UM if kind == "radius" else PERMEABILITY_RANGE
            values[name] = low * (high / low) ** u[:, k]
        elif kind == "fraction":
            low, high = FRACTION_RANGE[shape]
            values[name] = low + (high - low) * u[:, k]
        elif kind == "dispersion":
            width = LARGEST_DISPERSION - LEAST_DISPERSION
            values[name] = LEAST_DISPERSION + width * u[:, k] ** 3
        elif name in ("sphere_share", "free_water"):
            values[name] = u[:, k]
    if tissue.name == "mixture":
        values["sphere_permeability"] = values["permeability"]
    return values


def log_prior(tissue: TissueClass, z: np.ndarray) -> np.ndarray:
    """Logarithm of the prior density (N,) in z; -inf beyond the hemisphere."""
    bounded = z[:, tissue.bounded]
    density = -(np.logaddexp(0, bounded) + np.logaddexp(0, -bounded)).sum(axis=1)
    if not tissue.bounded.all():
        square = (z[:, ~tissue.bounded] ** 2).sum(axis=1)
        density += np.where(square <= HEMISPHERE**2, -np.log(2 * np.pi), -np.inf)
    return density


def axis_of(z: np.ndarray, frames: np.ndarray, slopes: bool = False):
    """Axes (N, 3) of places (N, 2) on equal-area maps; with `slopes` also (N, 3, 2).

    `frames` (N, 3, 3) has rows along the two coordinates of the map and its centre.
    """
    # The whole sphere is a disc of radius 2; draws beyond it have no weight, but need a signal.
    z = z * np.minimum(1, 1.999 / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-9))
    square = (z**2).sum(axis=1, keepdims=True)
    length = np.sqrt(1 - square / 4)
    local = np.concatenate([length * z, 1 - square / 2], axis=1)
    axis = np.einsum("nk,nkl->nl", local, frames)
    if not slopes:
        return axis
    change = np.zeros((len(z), 3, 2))
    change[:, :2] = -z[:, :, None] * z[:, None] / (4 * length[:, None])
    change[:, [0, 1], [0, 1]] += length
    change[:, 2] = -z
    return axis, np.einsum("nkp,nkl->nlp", change, frames)


def class_signals(
    model: TissueModel,
    tissue: TissueClass,
    z: np.ndarray,
    frames: np.ndarray,
    slopes: bool = False,
):
    """Signals (N, M) relative to b = 0; with `slopes` also derivatives (N, M, P) by z."""
    values = physical(tissue, z)
    u = expit(z)
    n, m = len(z), len(model.shells)
    jacobian = np.zeros((n, m, tissue.n_parameters if slopes else 0))
    parts = {}
    if tissue.has_cylinders:
        place = _coordinates(values, *_CYLINDER)
        dispersion = values.get("dispersion", np.zeros(n))
        axes = tissue.axes(z, frames)
        parts["cylinder"] = model.cylinders(place, axes, dispersion, slopes)
        if slopes:
            parts["cylinder"], by_place = parts["cylinder"]
            columns = tissue.columns(*_CYLINDER)
            chain = _chain(values, "cylinder", _CYLINDER) * _du(u[:, columns])
            jacobian[..., columns] = by_place[..., :3] * chain[:, None]
            if tissue.name != ALIGNED:
                (k,) = tissue.columns("dispersion")
                width = LARGEST_DISPERSION - LEAST_DISPERSION
                chain = 3 * width * u[:, k] ** 2 * _du(u[:, k])
                jacobian[..., k] = by_place[..., 3] * chain[:, None]
                at = tissue.columns("axis_0", "axis_1")
                jacobian[..., at] = by_place[..., 4:] @ axis_of(z[:, at], frames, slopes)[1]
    if tissue.has_spheres:
        parts["sphere"] = model.spheres(_coordinates(values, *_SPHERE), slopes)
        if slopes:
            parts["sphere"], by_sphere = parts["sphere"]
            names = _SPHERE if tissue.name == "spheres" else (*_SPHERE[:2], "permeability")
            columns = tissue.columns(*names)
            chain = _chain(values, "sphere", _SPHERE)
            by_sphere = by_sphere * (chain * _du(u[:, columns]))[:, None]
            if tissue.name == "spheres":
                jacobian[..., columns] = by_sphere
    signals = next(iter(parts.values()))
    if tissue.name == "mixture":
        share = values["sphere_share"][:, None]
        signals = (1 - share) * parts["cylinder"] + share * parts["sphere"]
        if slopes:
            jacobian *= 1 - share[..., None]
            jacobian[..., columns] += by_sphere * share[..., None]
            (k,) = tissue.columns("sphere_share")
            jacobian[..., k] = (parts["sphere"] - parts["cylinder"]) * _du(u[:, [k]])
    if "free_water" in values:
        share = values["free_water"][:, None]
        if slopes:
            jacobian *= 1 - share[..., None]
            (k,) = tissue.columns("free_water")
            jacobian[..., k] = (model.free - signals) * _du(u[:, [k]])
        signals = (1 - share) * signals + share * model.free
    return (signals, jacobian) if slopes else signals


def signals_of(
    model: TissueModel,
    acquisition: Acquisition,
    values: Mapping[str, np.ndarray],
    axes: np.ndarray,
) -> np.ndarray:
    """Signals (N, M) relative to b = 0 of tissue of any class.

    Parameters
    ----------
    model : TissueModel
        Of the acquisition.
    acquisition : Acquisition
    values : dict of ndarray (N,)
        All parameters in their units, 0 where the class lacks one; without cells all are 0.
    axes : ndarray (N, 3)
    """
    b = np.where(acquisition.b0_mask, 0, acquisition.b)
    signals = np.repeat(np.exp(-b * model.diffusivity)[None], len(axes), axis=0)
    share = values["sphere_share"]
    cylinders = np.flatnonzero((values["fraction"] > 0) & (share < 1))
    spheres = np.flatnonzero((values["sphere_fraction"] > 0) & (share > 0))
    signals[np.union1d(cylinders, spheres)] = 0
    if len(cylinders):
        of = {name: value[cylinders] for name, value in values.items()}
        place = _coordinates(of, *_CYLINDER)
        parallel = model.cylinders(place, axes[cylinders], of["dispersion"])
        signals[cylinders] += (1 - share)[cylinders, None] * parallel
    if len(spheres):
        of = {name: value[spheres] for name, value in values.items()}
        signals[spheres] += share[spheres, None] * model.spheres(_coordinates(of, *_SPHERE))
    free = values["free_water"][:, None]
    return (1 - free) * signals + free * model.free


def _coordinates(values, radius, fraction, permeability):
    kappa = values[permeability]
    return np.stack([np.log(values[radius]), values[fraction], np.log(kappa + LEAKLESS)], axis=1)


def _chain(values, shape, names):
    """Derivatives (N, 3) of a table's coordinates by u."""
    kappa = values[names[2]]
    low, high = FRACTION_RANGE[shape]
    return np.stack(
        [
            np.full(len(kappa), np.log(RADIUS_RANGE_UM[1] / RADIUS_RANGE_UM[0])),
            np.full(len(kappa), high - low),
            np.log(PERMEABILITY_RANGE[1] / PERMEABILITY_RANGE[0]) * kappa / (kappa + LEAKLESS),
        ],
        axis=1,
    )


def _du(u):
    return u * (1 - u)
