"""Synthetic axons: bent and twisted, beaded, fanning, and all of it together.

Each is a cylinder that is deformed by closed formulas. None of the shape spaces contains them
exactly: their centre line is a helix, their beads are Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.spatial.transform import Rotation

FAMILIES = ("bent", "beaded", "fanning", "combined")
RADIUS, LENGTH = 3.0, 9.0  # um
# Ranges of training shapes and of test shapes, which are wider at both limits; chosen by hand.
_RANGES = {
    "curvature": ((0.02, 0.10), (0.01, 0.12)),  # 1/um
    "torsion": ((0.0, 0.15), (0.0, 0.18)),  # rad/um
    "height": ((0.10, 0.40), (0.06, 0.45)),  # of a bead, in radii
    "width": ((0.9, 1.6), (0.8, 1.8)),  # of a bead, um
    "growth": ((0.15, 0.80), (0.10, 0.90)),  # of the wider axis from end to end, in radii
    "scale": ((0.85, 1.20), (0.80, 1.25)),
}
# Of each family, for priors: 600 samples for a covariance of 24 to 90 parameters.
_N_TRAINING = 150


@dataclass(frozen=True)
class Axon:
    """A deformed cylinder."""

    curvature: float = 0.0  # of its centre line, 1/um
    torsion: float = 0.0  # of its centre line, rad/um
    heading: float = 0.0  # direction in which it bends at its middle, rad
    # position along it (-1 to 1), height in radii and width (standard deviation, um)
    beads: tuple[tuple[float, float, float], ...] = ()
    growth: tuple[float, float] = (0.0, 0.0)  # of both half axes towards the wide end, radii
    wide_end: float = 1.0  # -1 or 1
    facing: float = 0.0  # direction of the first half axis at the middle, rad
    twist: float = 0.0  # how far it turns from end to end, rad
    scale: float = 1.0
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)  # rotation vector of its pose, rad

    def positions(self, cylinder: np.ndarray) -> np.ndarray:
        """Positions (K, 3), um, of points (K, 3) of a cylinder of radius 1, -1 <= z <= 1."""
        along = LENGTH / 2 * cylinder[:, 2]
        line, tangent, normal = self._centre_line(along)
        section = self._across(cylinder)
        binormal = np.cross(tangent, normal)
        positions = line + section[:, :1] * normal + section[:, 1:] * binormal
        return self.scale * Rotation.from_rotvec(self.rotation).apply(positions)

    def half_axes(self, t: np.ndarray) -> np.ndarray:
        """Half axes (K, 2), um, of the cross-section at positions -1 <= t <= 1, before scaling."""
        axes = 1 + (1 + self.wide_end * t[:, None]) / 2 * np.array(self.growth)
        for centre, height, width in self.beads:
            axes = axes + height * np.exp(-(((t - centre) * LENGTH / 2 / width) ** 2) / 2)[:, None]
        return RADIUS * axes

    def _across(self, cylinder):
        """Positions (K, 2) in the cross-section, um; the ellipse rotates, its points do not."""
        t = cylinder[:, 2]
        turn = np.exp(1j * (self.facing + self.twist * t / 2))
        unrotated = (cylinder[:, 0] + 1j * cylinder[:, 1]) / turn
        stretched = np.column_stack([unrotated.real, unrotated.imag]) * self.half_axes(t)
        rotated = (stretched[:, 0] + 1j * stretched[:, 1]) * turn
        return np.column_stack([rotated.real, rotated.imag])

    def _centre_line(self, along):
        """Points, tangents and normals (K, 3) of a helix; the normals do not turn about it."""
        start = np.array([0, 0, 1.0])
        bend = np.array([np.cos(self.heading), np.sin(self.heading), 0])
        darboux = self.torsion * start + self.curvature * np.cross(start, bend)
        turn = max(np.linalg.norm(darboux), 1e-9)
        axis, angle = darboux / turn, turn * along[:, None]
        frames = Rotation.from_rotvec(angle * axis)
        rise = (start @ axis) * axis
        circling = np.sin(angle) * (start - rise) + (1 - np.cos(angle)) * np.cross(axis, start)
        tangent, towards = frames.apply(start), frames.apply(bend)
        unwound = self.heading + self.torsion * along[:, None]
        aside = np.cross(tangent, towards)
        normal = np.cos(unwound) * towards - np.sin(unwound) * aside
        return along[:, None] * rise + circling / turn, tangent, normal


def draw_axons(
    family: str, n: int, rng: np.random.Generator, *, test: bool = False, posed: bool = False
) -> list[Axon]:
    """Axons of a family of `FAMILIES`, drawn at random.

    `test`: from the wider ranges of test shapes; `posed`: with random orientation, otherwise
    along z at their middle.
    """
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}; give one of {', '.join(FAMILIES)}.")
    ranges = {name: limits[int(test)] for name, limits in _RANGES.items()}
    axons = [_drawn(family, rng, ranges) for _ in range(n)]
    if not posed:
        return axons
    poses = Rotation.random(n, random_state=rng).as_rotvec()
    return [replace(axon, rotation=tuple(pose)) for axon, pose in zip(axons, poses, strict=True)]


@cache
def training_axons() -> list[Axon]:
    """Axons of all families, from which shape spaces take their priors."""
    rng = np.random.default_rng(0)
    return [axon for family in FAMILIES for axon in draw_axons(family, _N_TRAINING, rng)]


def _drawn(family, rng, ranges):
    scales = rng.uniform(0.3, 0.8, 3) if family == "combined" else np.ones(3)
    parameters = {"heading": rng.uniform(0, 2 * np.pi), "scale": rng.uniform(*ranges["scale"])}
    if family in ("bent", "combined"):
        parameters["curvature"] = scales[0] * rng.uniform(*ranges["curvature"])
        parameters["torsion"] = rng.choice([-1, 1]) * rng.uniform(*ranges["torsion"])
    if family in ("beaded", "combined"):
        pair = rng.uniform(0.25, 0.7, 2) * [-1, 1]
        centres = pair if rng.random() < 0.5 else rng.uniform(-0.7, 0.7, 1)
        parameters["beads"] = tuple(
            (centre, scales[1] * rng.uniform(*ranges["height"]), rng.uniform(*ranges["width"]))
            for centre in centres
        )
    if family in ("fanning", "combined"):
        growth = scales[2] * rng.uniform(*ranges["growth"])
        growth = np.array([growth, rng.uniform(0, 0.5) * growth])
        parameters["growth"] = tuple(growth)
        parameters["wide_end"] = rng.choice([-1.0, 1.0])
        parameters["facing"] = rng.uniform(0, np.pi)
        parameters["twist"] = rng.uniform(-1, 1) * np.pi / 4
    return Axon(**parameters)
