"""Random smooth cells: tubes, rings, coils, stars, shells, and draws of the random field."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.bodies import Tube
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior

# Wide enough to hold cells that no family was thought of for; none is fitted to data.
_SHARES = (0.004, 0.45)  # least and largest part of the box inside
_OF_THE_FIELD = 0.15  # part of draws that the prior of the field makes
_SMALL = 0.15  # part that are single small bodies, of which several may stand in a box
_RING, _COIL, _STAR, _SHELL, _BRANCH = 0.1, 0.06, 0.1, 0.06, 0.5  # parts of bodies
_MOST_BODIES, _MOST_POINTS = 5, 9
_RADII = (0.16, 0.6)  # over half the box
_SMALL_RADII, _SMALL_POINTS = (0.18, 0.4), 3
_CLEAR = 0.95  # half the box in which lines stay


def random_cells(rng: np.random.Generator, prior: FieldPrior) -> np.ndarray:
    """Unknowns z (n,) of a field with random cells."""
    points, basis = prior.raster
    while True:
        if rng.random() < _OF_THE_FIELD:
            z = rng.standard_normal(prior.n_modes)
        else:
            z = prior.field_of(_depth(rng, points, prior.box_um / 2))
        if _SHARES[0] < (basis @ z + prior.mean > 0).mean() < _SHARES[1]:
            return z


def _depth(rng, points, half):
    if rng.random() < _SMALL:
        line = _walk(rng, _SMALL_RADII, _SMALL_POINTS)
        line[:, :3] = line[:, :3].clip(-_CLEAR, _CLEAR) * half
        line[:, 3] += np.log(half.mean())
        return Tube(line, False).depth(points)
    if rng.random() < _SHELL:
        return _shell(rng, points, half.mean())
    bodies: list[Tube] = []
    for _ in range(min(rng.geometric(0.5), _MOST_BODIES)):
        lines, ring = _lines(rng)
        if bodies and rng.random() < _BRANCH:
            # From a point of the first one, so that arms can meet.
            shift = rng.choice(bodies[0].control[:, :3]) / half - lines[0][0, :3]
            for line in lines:
                line[:, :3] += shift
        for line in lines:
            line[:, :3] = line[:, :3].clip(-_CLEAR, _CLEAR) * half
            line[:, 3] += np.log(half.mean())
            bodies.append(Tube(line, ring))
    return np.max([body.depth(points) for body in bodies], axis=0)


def _lines(rng):
    """Lines of control points of a body, and whether they are closed."""
    kind = rng.random()
    if kind < _RING:
        return [_ring(rng)], True
    if kind < _RING + _COIL:
        return [_coil(rng)], False
    if kind < _RING + _COIL + _STAR:
        return _star(rng), False
    return [_walk(rng)], False


def _shell(rng, points, half):
    """Depth in a hollow ellipsoid, about."""
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0] / rng.uniform(0.8, 1.2, (3, 1))
    away = np.linalg.norm((points / half - rng.uniform(-0.25, 0.25, 3)) @ axes.T, axis=1)
    outer, thick = rng.uniform(0.45, 0.8), rng.uniform(0.2, 0.45)
    return half * np.minimum(outer - away, away - outer + thick)


def _ring(rng):
    plane = _axes(rng)[:2]
    angle = np.arange(0, 2 * np.pi, np.pi / 4)[:, None]
    line = rng.uniform(0.35, 0.75) * (np.cos(angle) * plane[0] + np.sin(angle) * plane[1])
    return _even(line + rng.uniform(-0.3, 0.3, 3), rng.uniform(0.18, 0.4))


def _coil(rng):
    axes, turns = _axes(rng), rng.uniform(1, 2.2)
    angle = np.arange(0, 2 * np.pi * turns, np.pi / 4)[:, None]
    line = rng.uniform(0.25, 0.55) * (np.cos(angle) * axes[0] + np.sin(angle) * axes[1])
    rise = rng.uniform(0.4, 1.2) * (angle / angle[-1] - 0.5)
    line = line + rise * axes[2] + rng.uniform(-0.2, 0.2, 3)
    return _even(line, rng.uniform(0.16, 0.3))


def _star(rng):
    """A round body with arms."""
    centre, radius = rng.uniform(-0.3, 0.3, 3), rng.uniform(0.2, 0.45)
    ways = rng.standard_normal((rng.integers(2, 7), 3))
    ends = ways / np.linalg.norm(ways, axis=1, keepdims=True) * rng.uniform(0.5, 0.9)
    arms = [_even(np.array([centre, centre + end]), rng.uniform(0.16, 0.28)) for end in ends]
    return [_even(centre[None], radius), *arms]


def _walk(rng, radii=_RADII, most_points=_MOST_POINTS):
    """Control points (k, 4) of a line that keeps or loses its way, of even or uneven radius."""
    number, radius = rng.integers(1, most_points + 1), np.exp(rng.uniform(*np.log(radii)))
    length, wander = rng.uniform(0.15, 0.5), rng.uniform(0, 0.9)
    steps = np.zeros((number, 3))
    direction = rng.standard_normal(3)
    for step in steps[1:]:
        direction = direction / np.linalg.norm(direction) + wander * rng.standard_normal(3)
        step[:] = length * direction / np.linalg.norm(direction)
    line = steps.cumsum(axis=0)
    line += rng.uniform(-0.6, 0.6, 3) - line.mean(axis=0)
    uneven = 0.25 * rng.standard_normal((number, 1)) * (rng.random() < 0.4)
    return np.hstack([line, np.log(radius) + uneven])


def _even(line, radius):
    """Control points (k, 4) of a line (k, 3) of one radius."""
    return np.hstack([line, np.full((len(line), 1), np.log(radius))])


def _axes(rng):
    return np.linalg.qr(rng.standard_normal((3, 3)))[0]
