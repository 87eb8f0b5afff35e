"""Random smooth cells: tubes that wander and branch, rings, and draws of the random field."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.bodies import Body
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior

# Wide enough to hold cells that no family was thought of for; none is fitted to data.
_SHARES = (0.02, 0.45)  # least and largest part of the box inside
_OF_THE_FIELD = 0.15  # part of draws that the prior of the field makes
_RING, _BRANCH = 0.1, 0.5  # parts of bodies
_MOST_BODIES, _MOST_POINTS = 5, 9
_RADII = (0.16, 0.6)  # over half the box
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
    bodies: list[Body] = []
    for _ in range(min(rng.geometric(0.5), _MOST_BODIES)):
        body = _ring(rng) if rng.random() < _RING else _walk(rng)
        if bodies and rng.random() < _BRANCH:
            # From a point of the first one, so that arms can meet.
            body[:, :3] += rng.choice(bodies[0].control[:, :3]) / half - body[0, :3]
        body[:, :3] = body[:, :3].clip(-_CLEAR, _CLEAR) * half
        body[:, 3] += np.log(half.mean())
        bodies.append(Body(body, False))
    return np.max([body.depth(points) for body in bodies], axis=0)


def _ring(rng):
    plane = np.linalg.qr(rng.standard_normal((3, 3)))[0][:2]
    angle = np.linspace(0, 2 * np.pi, 9)[:, None]
    line = rng.uniform(0.35, 0.75) * (np.cos(angle) * plane[0] + np.sin(angle) * plane[1])
    radius = np.full((9, 1), np.log(rng.uniform(0.18, 0.4)))
    return np.hstack([line + rng.uniform(-0.3, 0.3, 3), radius])


def _walk(rng):
    """Control points (k, 4) of a line that keeps or loses its way, of even or uneven radius."""
    number, radius = rng.integers(1, _MOST_POINTS + 1), np.exp(rng.uniform(*np.log(_RADII)))
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
