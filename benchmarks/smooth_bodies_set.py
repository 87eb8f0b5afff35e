"""Smooth bodies off the lattice, and their signals from a lattice finer than that of fits.

A body is a function from points to depths (um, positive inside), a permeability, and nothing else.
Signals come from uncorrected finite volumes: a tetrahedron is inside or not, and the walls have
the permeability of the smooth surface, projected (doc/physics.md). 18 cubes along the box are off
by up to 1 % of the b0, 24 by half of that, so they are extrapolated, with errors proportional to
the square of the edge. The fit has 6, 9 and 12 cubes, and tetrahedra that are partly inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dipy_spinverse import bcc_grid, simulate
from dipy_spinverse.acquisition import Acquisition

SIDE = 80 / 3  # of the box, um
CUBES = 18, 24
_STEPS = 6
_CLEAR = 1.5  # um; nearer to the sides of the box lattices lose too many spins


@dataclass(frozen=True, eq=False)
class TrueCell:
    """A cell: depth of points (P, 3) in it, um, and the permeability of its wall, um/ms."""

    depth: Callable[[np.ndarray], np.ndarray]
    permeability: float


def depths(cells: list[TrueCell], points: np.ndarray) -> np.ndarray:
    """Depth (P,) of points in the cells, the largest of all."""
    return np.max([cell.depth(points) for cell in cells], axis=0)


def signals_of(acquisition: Acquisition, cells: list[TrueCell]) -> np.ndarray:
    """Signals (M,) of cells, by finite volumes, in the limit of fine lattices."""
    coarse, fine = (on_lattice(acquisition, cells, cubes) for cubes in CUBES)
    return fine + (fine - coarse) / ((CUBES[1] / CUBES[0]) ** 2 - 1)


def on_lattice(acquisition: Acquisition, cells: list[TrueCell], cubes: int) -> np.ndarray:
    """Signals (M,) of cells made of the tetrahedra of a lattice."""
    grid = bcc_grid(cubes, SIDE / cubes, "absorbing")
    every = np.array([cell.depth(grid.centroids) for cell in cells])
    owner = np.where(every.max(axis=0) > 0, every.argmax(axis=0), -1)
    first, second = owner[grid.face_tetrahedra].T
    permeability = np.full(grid.n_faces, np.inf)
    for k, cell in enumerate(cells):
        walls = np.flatnonzero((first == k) != (second == k))
        normals = _normals(cell.depth, grid.face_centroids[walls])
        across = np.abs((normals * grid.face_normals[walls]).sum(axis=1))
        permeability[walls] = cell.permeability * across
    return simulate(acquisition, grid, permeability, steps=_STEPS, dtype="float32").astype(float)


def _normals(depth, points, step=0.05):
    slope = np.stack(
        [depth(points + step * e) - depth(points - step * e) for e in np.eye(3)], axis=1
    )
    return slope / np.linalg.norm(slope, axis=1, keepdims=True).clip(1e-9)


def tube(line: np.ndarray, radius) -> Callable[[np.ndarray], np.ndarray]:
    """Depth in a tube around points (n, 3), of one radius or one at each point."""
    line, radius = np.asarray(line, dtype=float), np.broadcast_to(radius, len(line))

    def depth(points):
        deepest = np.full(len(points), -np.inf)
        for a, b, r, s in zip(line[:-1], line[1:], radius[:-1], radius[1:], strict=True):
            along = ((points - a) @ (b - a) / max((b - a) @ (b - a), 1e-9)).clip(0, 1)[:, None]
            away = np.linalg.norm(points - a - along * (b - a), axis=1)
            np.maximum(deepest, r + along[:, 0] * (s - r) - away, out=deepest)
        return deepest

    return depth


def joined(*parts) -> Callable[[np.ndarray], np.ndarray]:
    """Depth in the union of bodies."""
    return lambda points: np.max([part(points) for part in parts], axis=0)


def ellipsoid(centre, half_axes, rotation) -> Callable[[np.ndarray], np.ndarray]:
    """Depth, about, in an ellipsoid."""

    def depth(points):
        inner = (points - centre) @ np.asarray(rotation).T / half_axes
        size = np.linalg.norm(inner, axis=1).clip(1e-9)
        return (1 - size) * size / np.linalg.norm(inner / half_axes, axis=1).clip(1e-9)

    return depth


def _rotation(rng):
    return np.linalg.qr(rng.standard_normal((3, 3)))[0]


def _arc(rng, length, bend, centre=2.5):
    """Points of a bent line through a random position."""
    t = np.linspace(-0.5, 0.5, 25)[:, None]
    a, b, _ = _rotation(rng)
    return rng.uniform(-centre, centre, 3) + length * t * a + bend * (4 * t**2 - 0.5) * b


def bent_tube(rng):
    """A bent tube with round ends."""
    line = _arc(rng, rng.uniform(14, 20), rng.uniform(2, 4))
    return [TrueCell(tube(line, rng.uniform(3.6, 4.8)), 0.01)]


def capsule(rng):
    """A straight thick rod with round ends."""
    return [TrueCell(tube(_arc(rng, rng.uniform(7, 11), 0.0), rng.uniform(5, 6.2)), 0.02)]


def bulging_tube(rng):
    """A tube with two bulges."""
    line = _arc(rng, 19, rng.uniform(0, 2.5))
    return [TrueCell(tube(line, 4.3 + 1.2 * np.cos(np.linspace(0, 4 * np.pi, len(line)))), 0.01)]


def flat_ellipsoid(rng):
    """An ellipsoid of three different axes."""
    body = ellipsoid(rng.uniform(-3, 3, 3), rng.uniform([4, 6, 8], [5, 7, 10]), _rotation(rng))
    return [TrueCell(body, 0.03)]


def two_rods(rng):
    """Two rods side by side of the same permeability."""
    a, b, _ = _rotation(rng)
    return [
        TrueCell(tube([side * 6 * a - 6 * b, side * 6 * a + 6 * b + side * a], 3.8), 0.01)
        for side in (-1, 1)
    ]


def helix(rng):
    """A turn and a half of a helix."""
    t, axes = np.linspace(0, 3 * np.pi, 60)[:, None], _rotation(rng)
    line = 6.0 * (np.cos(t) * axes[0] + np.sin(t) * axes[1]) + (t - t.mean()) * 1.55 * axes[2]
    return [TrueCell(tube(line + rng.uniform(-1, 1, 3), 3.0), 0.01)]


def star(rng):
    """A round body with four thinner arms."""
    centre, body = rng.uniform(-1.5, 1.5, 3), []
    arms = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) @ _rotation(rng) / 3**0.5
    for arm in arms:
        body.append(tube(centre + np.linspace(0, 11, 8)[:, None] * arm, np.linspace(3, 2.2, 8)))
    ball = ellipsoid(centre, np.full(3, 5.0), np.eye(3))
    return [TrueCell(joined(ball, *body), 0.01)]


def unequal_y(rng):
    """A branching tube of three unequal arms."""
    centre, axes = rng.uniform(-2, 2, 3), _rotation(rng)
    ends = [10.5 * axes[0], -6.5 * axes[0] + 6 * axes[1], -5 * axes[0] - 8 * axes[1]]
    arms = [
        tube([centre, centre + end], [4.6, r]) for end, r in zip(ends, (3.4, 3, 4), strict=True)
    ]
    return [TrueCell(joined(*arms), 0.02)]


def two_unequal(rng):
    """A ball and a rod, five times as permeable."""
    a, b, _ = _rotation(rng)
    ball = ellipsoid(-6.3 * a, np.full(3, 5.2), np.eye(3))
    return [TrueCell(ball, 0.01), TrueCell(tube([6 * a - 6 * b, 6 * a + 6 * b], 4.2), 0.05)]


def ring(rng):
    """A torus."""
    axes, centre = _rotation(rng), rng.uniform(-2, 2, 3)
    t = np.linspace(0, 2 * np.pi, 50)[:, None]
    line = centre + 7.5 * (np.cos(t) * axes[0] + np.sin(t) * axes[1])
    return [TrueCell(tube(line, 3.8), 0.01)]


def three_balls(rng):
    """Three balls of different sizes."""
    axes = _rotation(rng)[:2]
    angles = rng.uniform(0, 6) + 2 * np.pi * np.arange(3) / 3
    centres = 7.8 * (np.cos(angles)[:, None] * axes[0] + np.sin(angles)[:, None] * axes[1])
    return [
        TrueCell(ellipsoid(c, np.full(3, r), np.eye(3)), 0.015)
        for c, r in zip(centres, (4.0, 4.7, 5.4), strict=True)
    ]


def bowl(rng):
    """A thick bent plate."""
    axes, centre = _rotation(rng), rng.uniform(-1.5, 1.5, 3)

    def depth(points):
        x = (points - centre) @ axes.T
        height = x[:, 2] - 0.035 * (x[:, 0] ** 2 + x[:, 1] ** 2) + 1.5
        rim = np.hypot(x[:, 0], x[:, 1]) - 6.5
        return 3.3 - np.hypot(rim.clip(0), height)

    return [TrueCell(depth, 0.01)]


def hollow_ball(rng):
    """A thick shell: water in its hole is that outside."""
    centre, outer = rng.uniform(-2, 2, 3), rng.uniform(8.5, 9.5)
    hole = rng.uniform(3.5, 4.5)

    def depth(points):
        away = np.linalg.norm(points - centre, axis=1)
        return np.minimum(outer - away, away - hole)

    return [TrueCell(depth, 0.02)]


def five_cells(rng):
    """Five balls, of different sizes and permeabilities."""
    corners = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [0, 0, 0]]
    places = np.array(corners) @ _rotation(rng)
    return [
        TrueCell(ellipsoid(4.6 * place, np.full(3, rng.uniform(2.8, 3.6)), np.eye(3)), kappa)
        for place, kappa in zip(places, (0.01, 0.01, 0.02, 0.02, 0.04), strict=True)
    ]


# Those on which the fit was chosen, and others that it is reported on.
CHOOSING = (bent_tube, capsule, two_rods, bulging_tube)
REPORTED = (
    helix, star, unequal_y, two_unequal, ring, three_balls, bowl, flat_ellipsoid, hollow_ball,
    five_cells,
)  # fmt: skip


def bodies(kinds, seed: int) -> list[tuple[str, list[TrueCell]]]:
    """Names and cells, one of each kind, away from the sides of the box."""
    along = np.linspace(-SIDE / 2, SIDE / 2, 30)
    sides = np.stack(np.meshgrid(along, along, along), axis=-1).reshape(-1, 3)
    sides = sides[np.abs(sides).max(axis=1) > 0.499 * SIDE]
    named = []
    for number, kind in enumerate(kinds):
        rng = np.random.default_rng((seed, number))
        cells = kind(rng)
        while depths(cells, sides).max() > -_CLEAR:
            cells = kind(rng)
        named.append((f"{kind.__name__.replace('_', ' ')} {seed}", cells))
    return named
