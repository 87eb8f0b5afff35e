"""Smooth bodies: tubes along splines, open or closed to a ring, of varying radius.

A body of k control points has 4 k parameters, the rows (x, y, z, log radius) of its points, um.
One point is a sphere, two are a capsule or cone, more are bent tubes; a ring is a torus.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.distance import cdist

from dipy_spinverse.grid import TetrahedralGrid

# Least and largest radius, um.
_RADII = (1.0, 14.0)
_POINTS_PER_SEGMENT = 8
# Share of the volume up to which single cells are as they are drawn.
_ALL_BELOW = 0.03
# Share of further bodies that branch off, and spread of the logarithm of uneven radii.
_BRANCHING, _RADIUS_SPREAD = 0.5, 0.25


@dataclass(frozen=True)
class Bodies:
    """One or several bodies.

    Attributes
    ----------
    shapes : tuple of (int, bool)
        Number of control points of each body, and whether it is a ring.
    parameters : ndarray (P,)
        Rows (x, y, z, log radius) of all control points, one after the other.
    """

    shapes: tuple[tuple[int, bool], ...]
    parameters: np.ndarray

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Which points (N, 3), um, are inside of any body."""
        result = np.zeros(len(points), dtype=bool)
        first = 0
        for n_points, ring in self.shapes:
            control = self.parameters[first : first + 4 * n_points].reshape(n_points, 4)
            first += 4 * n_points
            line = _spline(n_points, ring) @ control
            radius = np.exp(line[:, 3]).clip(*_RADII)
            result |= (cdist(points, line[:, :3]) < radius).any(axis=1)
        return result


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


def random_bodies(rng: np.random.Generator, grid: TetrahedralGrid) -> Bodies:
    """One to three bodies in or through the box of a grid, of 4 to 40 % of its volume.

    Sizes scale with the box: radii are 0.13 to 0.3 of its half width.
    """
    while True:
        number = rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])
        bodies = _drawn(rng, grid, number, number)
        if 0.04 < _share(bodies, grid) < 0.4:
            return bodies


def random_cell(rng: np.random.Generator, grid: TetrahedralGrid) -> Bodies:
    """A body that leaves space for one or two others: of 1 to 25 % of the volume.

    The larger ones are rarer: they can be told from fewer of them.
    """
    while True:
        body = _drawn(rng, grid, 1, rng.choice([2, 3]))
        share = _share(body, grid)
        if 0.01 < share < 0.25 and rng.random() < _ALL_BELOW / share:
            return body


def _drawn(rng, grid, number, number_in_box):
    corners = grid.points_um.min(axis=0), grid.points_um.max(axis=0)
    centre, half = np.mean(corners, axis=0), np.subtract(*corners[::-1]) / 2
    shapes, parts = [], []
    for _ in range(number):
        shape, points = _random_body(rng, number_in_box)
        if parts and rng.random() < _BRANCHING:
            # A branch: from a point of the body before.
            before = parts[-1].reshape(-1, 4)
            points[:, :3] += (rng.choice(before[:, :3]) - centre) / half - points[0, :3]
        points[:, :3] = centre + half * points[:, :3]
        points[:, 3] += np.log(half.mean())
        shapes.append(shape)
        parts.append(points.ravel())
    return Bodies(tuple(shapes), np.concatenate(parts))


def _share(bodies, grid):
    return bodies.inside(grid.centroids) @ grid.volumes / grid.volume_um3


def _random_body(rng, n_bodies):
    """Shape and control points of a body in the box from -1 to 1."""
    kind = rng.random()
    radius = rng.uniform(0.26, 0.6 if n_bodies == 1 else 0.48)
    if kind < 0.12:
        n_points, radius = 5, rng.uniform(0.22, 0.4)
        plane = np.linalg.qr(rng.standard_normal((3, 3)))[0][:2]
        angle = 2 * np.pi * np.arange(n_points)[:, None] / n_points
        ring = np.cos(angle) * plane[0] + np.sin(angle) * plane[1]
        line = rng.uniform(-0.3, 0.3, 3) + rng.uniform(0.38, 0.75) * ring
        return (n_points, True), _with_radius(line, radius, rng)
    if kind < 0.5 and n_bodies < 3:
        n_points, axis = 4, rng.integers(3)
        line = rng.normal(0, rng.uniform(0, 0.38), (n_points, 3)) + rng.normal(0, 0.23, 3)
        line = line.clip(-0.75, 0.75)
        line[:, axis] = np.linspace(-1.3, 1.3, n_points)
        return (n_points, False), _with_radius(line, radius, rng)
    n_points, direction = rng.integers(1, 5), rng.standard_normal(3)
    length, line = rng.uniform(0.22, 0.7), [np.zeros(3)]
    for _ in range(n_points - 1):
        direction = direction / np.linalg.norm(direction) + 0.5 * rng.standard_normal(3)
        line.append(line[-1] + length * direction / np.linalg.norm(direction))
    line = np.array(line) - np.mean(line, axis=0) + rng.uniform(-0.6, 0.6, 3)
    return (int(n_points), False), _with_radius(line, radius, rng)


def _with_radius(line, radius, rng):
    spread = _RADIUS_SPREAD * rng.standard_normal(len(line)) * (rng.random() < 0.3)
    return np.hstack([line, (np.log(radius) + spread)[:, None]])
