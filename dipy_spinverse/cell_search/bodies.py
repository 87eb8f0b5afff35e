"""Smooth bodies: tubes along splines, open or closed to a ring, of varying radius.

One control point is a sphere, two are a capsule or cone, more are bent tubes; a ring is a torus.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.distance import cdist

from dipy_spinverse.grid import TetrahedralGrid

# Chosen to contain cells of many forms, as do the numbers in `_random_body`.
_RADII = (1.0, 14.0)  # least and largest, um
_ALL_BELOW = 0.03  # share of the volume up to which single cells are as they are drawn
_BRANCHING = 0.5  # share of further bodies that branch off
_RADIUS_SPREAD = 0.25  # standard deviation of the logarithm of uneven radii
# Of the line, between two control points.
_POINTS_PER_SEGMENT = 8


@dataclass(frozen=True, eq=False)
class Tube:
    """A tube around control points (k, 4): rows x, y, z, log radius, um; closed if a ring."""

    control: np.ndarray
    ring: bool

    def depth(self, points: np.ndarray) -> np.ndarray:
        """How far points (N, 3), um, are inside: negative outside."""
        line = _spline(len(self.control), self.ring) @ self.control
        radius = np.exp(line[:, 3]).clip(*_RADII)
        return (radius - cdist(points, line[:, :3])).max(axis=1)


@lru_cache(maxsize=32)
def _spline(n_points, ring):
    """Matrix from control points to points along the line."""
    n_line, unit = _POINTS_PER_SEGMENT * n_points, np.eye(n_points)
    if n_points == 1:
        return np.ones((1, 1))
    if ring:
        closed = np.vstack([unit, unit[:1]])
        spline = CubicSpline(np.arange(n_points + 1), closed, bc_type="periodic")
        return spline(np.linspace(0, n_points, n_line, endpoint=False))
    if n_points == 2:
        return np.linspace([1, 0], [0, 1], n_line)
    spline = CubicSpline(np.arange(n_points), unit, bc_type="natural")
    return spline(np.linspace(0, n_points - 1, n_line))


def random_bodies(rng: np.random.Generator, grid: TetrahedralGrid) -> np.ndarray:
    """Labels (T,) of one to three bodies in or through the box, of 4 to 40 % of its volume.

    Sizes scale with the box: radii are 0.13 to 0.3 of its half width.
    """
    corners = grid.points_um.min(axis=0), grid.points_um.max(axis=0)
    while True:
        labels = random_depth(rng, grid.centroids, corners) > 0
        if 0.04 < _share(labels, grid) < 0.4:
            return labels


def random_depth(rng: np.random.Generator, points: np.ndarray, corners) -> np.ndarray:
    """How far points (N, 3) are inside of one to three bodies, in a box of two corners (3,)."""
    number = rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])
    return _drawn(rng, points, corners, number, number)


def random_cell(rng: np.random.Generator, grid: TetrahedralGrid) -> np.ndarray:
    """Labels (T,) of a body that leaves space for others: of 1 to 25 % of the volume.

    The larger ones are rarer: they can be told from fewer of them.
    """
    corners = grid.points_um.min(axis=0), grid.points_um.max(axis=0)
    while True:
        labels = _drawn(rng, grid.centroids, corners, 1, rng.choice([2, 3])) > 0
        share = _share(labels, grid)
        if 0.01 < share < 0.25 and rng.random() < _ALL_BELOW / share:
            return labels


def _drawn(rng, points_um, corners, number, number_in_box):
    centre, half = np.mean(corners, axis=0), np.subtract(*corners[::-1]) / 2
    bodies: list[Tube] = []
    for _ in range(number):
        points, ring = _random_body(rng, number_in_box)
        if bodies and rng.random() < _BRANCHING:
            # A branch: from a point of the body before.
            before = rng.choice(bodies[-1].control[:, :3])
            points[:, :3] += (before - centre) / half - points[0, :3]
        points[:, :3] = centre + half * points[:, :3]
        points[:, 3] += np.log(half.mean())
        bodies.append(Tube(points, ring))
    return np.max([body.depth(points_um) for body in bodies], axis=0)


def _share(labels, grid):
    return labels @ grid.volumes / grid.volume_um3


def _random_body(rng, n_bodies):
    """Control points of a body in the box from -1 to 1, and whether it is a ring."""
    kind = rng.random()
    radius = rng.uniform(0.26, 0.6 if n_bodies == 1 else 0.48)
    if kind < 0.12:
        n_points, radius = 5, rng.uniform(0.22, 0.4)
        plane = np.linalg.qr(rng.standard_normal((3, 3)))[0][:2]
        angle = 2 * np.pi * np.arange(n_points)[:, None] / n_points
        ring = np.cos(angle) * plane[0] + np.sin(angle) * plane[1]
        line = rng.uniform(-0.3, 0.3, 3) + rng.uniform(0.38, 0.75) * ring
        return _with_radius(line, radius, rng), True
    if kind < 0.5 and n_bodies < 3:
        n_points, axis = 4, rng.integers(3)
        line = rng.normal(0, rng.uniform(0, 0.38), (n_points, 3)) + rng.normal(0, 0.23, 3)
        line = line.clip(-0.75, 0.75)
        line[:, axis] = np.linspace(-1.3, 1.3, n_points)
        return _with_radius(line, radius, rng), False
    n_points, direction = rng.integers(1, 5), rng.standard_normal(3)
    length, line = rng.uniform(0.22, 0.7), [np.zeros(3)]
    for _ in range(n_points - 1):
        direction = direction / np.linalg.norm(direction) + 0.5 * rng.standard_normal(3)
        line.append(line[-1] + length * direction / np.linalg.norm(direction))
    line = np.array(line) - np.mean(line, axis=0) + rng.uniform(-0.6, 0.6, 3)
    return _with_radius(line, radius, rng), False


def _with_radius(line, radius, rng):
    spread = _RADIUS_SPREAD * rng.standard_normal(len(line)) * (rng.random() < 0.3)
    return np.hstack([line, (np.log(radius) + spread)[:, None]])
