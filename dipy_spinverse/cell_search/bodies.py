"""Smooth bodies: tubes of varying radius along splines, open or closed to a ring.

One control point gives a sphere, two a capsule or cone, more a bent tube; a ring is a torus.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.distance import cdist

from dipy_spinverse.grid import TetrahedralGrid

# Set by hand, as the numbers in `_random_body`, so that cells of many shapes occur; not tuned.
_RADIUS_BOUNDS = (1.0, 14.0)  # um
_UNTHINNED_FRACTION = 0.03  # volume fraction above which single cells become rarer with size
_BRANCH_PROBABILITY = 0.5  # that a further body starts on the previous one
_LOG_RADIUS_SD = 0.25  # of bodies of varying radius
_POINTS_PER_SEGMENT = 8  # of the spline; dents of 0.02 um for segments of 5 um


@dataclass(frozen=True, eq=False)
class Tube:
    """A tube around control points (k, 4) with columns x, y, z, log radius (um)."""

    control: np.ndarray
    ring: bool

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Depth (N,) of points (N, 3) below the surface, um; negative outside."""
        curve = _spline(len(self.control), self.ring) @ self.control
        radius = np.exp(curve[:, 3]).clip(*_RADIUS_BOUNDS)
        return (radius - cdist(points, curve[:, :3])).max(axis=1)


@lru_cache(maxsize=32)
def _spline(n_points, ring):
    """Matrix from control points to points along the curve."""
    n_curve, unit = _POINTS_PER_SEGMENT * n_points, np.eye(n_points)
    if n_points == 1:
        return np.ones((1, 1))
    if ring:
        closed = np.vstack([unit, unit[:1]])
        spline = CubicSpline(np.arange(n_points + 1), closed, bc_type="periodic")
        return spline(np.linspace(0, n_points, n_curve, endpoint=False))
    if n_points == 2:
        return np.linspace([1, 0], [0, 1], n_curve)
    spline = CubicSpline(np.arange(n_points), unit, bc_type="natural")
    return spline(np.linspace(0, n_points - 1, n_curve))


def random_bodies(rng: np.random.Generator, grid: TetrahedralGrid) -> np.ndarray:
    """Labels (T,) of one to three bodies that fill 4 to 40 % of the box."""
    corners = grid.points_um.min(axis=0), grid.points_um.max(axis=0)
    while True:
        number = rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])
        labels = _depth(rng, grid.centroids, corners, number, number) > 0
        if 0.04 < _volume_fraction(labels, grid) < 0.4:
            return labels


def random_cell(rng: np.random.Generator, grid: TetrahedralGrid) -> np.ndarray:
    """Labels (T,) of one body that fills 1 to 25 % of the box, so that others have space. Large
    ones are rarer, as fewer are needed to cover their shapes."""
    corners = grid.points_um.min(axis=0), grid.points_um.max(axis=0)
    while True:
        labels = _depth(rng, grid.centroids, corners, 1, rng.choice([2, 3])) > 0
        fraction = _volume_fraction(labels, grid)
        if 0.01 < fraction < 0.25 and rng.random() < _UNTHINNED_FRACTION / fraction:
            return labels


def _depth(rng, points_um, corners, number, number_in_box):
    """Depth (N,), um, of points (N, 3) in some bodies in the box of two corners (3,)."""
    centre, half_widths = np.mean(corners, axis=0), np.subtract(*corners[::-1]) / 2
    bodies: list[Tube] = []
    for _ in range(number):
        points, ring = _random_body(rng, number_in_box)
        if bodies and rng.random() < _BRANCH_PROBABILITY:
            branch_point = rng.choice(bodies[-1].control[:, :3])
            points[:, :3] += (branch_point - centre) / half_widths - points[0, :3]
        points[:, :3] = centre + half_widths * points[:, :3]
        points[:, 3] += np.log(half_widths.mean())
        bodies.append(Tube(points, ring))
    return np.max([body.depth(points_um) for body in bodies], axis=0)


def _volume_fraction(labels, grid):
    return labels @ grid.volumes / grid.volume_um3


def _random_body(rng, n_bodies):
    """Control points (k, 4) of a body in the box from -1 to 1, and whether it is a ring."""
    kind = rng.random()
    radius = rng.uniform(0.26, 0.6 if n_bodies == 1 else 0.48)
    if kind < 0.12:
        n_points, radius = 5, rng.uniform(0.22, 0.4)
        plane = np.linalg.qr(rng.standard_normal((3, 3)))[0][:2]
        angle = 2 * np.pi * np.arange(n_points)[:, None] / n_points
        ring = np.cos(angle) * plane[0] + np.sin(angle) * plane[1]
        curve = rng.uniform(-0.3, 0.3, 3) + rng.uniform(0.38, 0.75) * ring
        return _with_radius(curve, radius, rng), True
    if kind < 0.5 and n_bodies < 3:
        n_points, axis = 4, rng.integers(3)
        curve = rng.normal(0, rng.uniform(0, 0.38), (n_points, 3)) + rng.normal(0, 0.23, 3)
        curve = curve.clip(-0.75, 0.75)
        curve[:, axis] = np.linspace(-1.3, 1.3, n_points)
        return _with_radius(curve, radius, rng), False
    n_points, direction = rng.integers(1, 5), rng.standard_normal(3)
    length, curve = rng.uniform(0.22, 0.7), [np.zeros(3)]
    for _ in range(n_points - 1):
        direction = direction / np.linalg.norm(direction) + 0.5 * rng.standard_normal(3)
        curve.append(curve[-1] + length * direction / np.linalg.norm(direction))
    curve = np.array(curve) - np.mean(curve, axis=0) + rng.uniform(-0.6, 0.6, 3)
    return _with_radius(curve, radius, rng), False


def _with_radius(curve, radius, rng):
    log_deviation = _LOG_RADIUS_SD * rng.standard_normal(len(curve)) * (rng.random() < 0.3)
    return np.hstack([curve, (np.log(radius) + log_deviation)[:, None]])
