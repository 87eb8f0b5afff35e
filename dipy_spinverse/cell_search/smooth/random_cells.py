"""Random smooth cells: tubes, rings, coils, stars, shells, and samples of the random field."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.bodies import Tube
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior

# Set by hand, as the numbers below, to cover cells that no family was designed for; none is fitted
# to data. Lengths are over half the box.
_VOLUME_FRACTIONS = (0.004, 0.45)  # bounds
_P_FIELD = 0.15  # probability of a sample of the random field
_P_SMALL = 0.15  # of a single small body, several of which fit into a box
_P_SHELL, _P_RING, _P_COIL, _P_STAR = 0.06, 0.1, 0.06, 0.1
_P_BRANCH = 0.5  # of a further body to begin at the first one
_MAX_BODIES, _MAX_POINTS = 5, 9
_RADII = (0.16, 0.6)
_SMALL_RADII, _SMALL_MAX_POINTS = (0.18, 0.4), 3
_MAX_COORDINATE = 0.95  # of control points


def random_cells(rng: np.random.Generator, prior: FieldPrior) -> np.ndarray:
    """Unknowns z (n,) of a field with random cells."""
    points, basis = prior.raster
    while True:
        if rng.random() < _P_FIELD:
            z = rng.standard_normal(prior.n_modes)
        else:
            z = prior.coefficients_of(_depth(rng, points, prior.box_um / 2))
        if _VOLUME_FRACTIONS[0] < (basis @ z + prior.mean > 0).mean() < _VOLUME_FRACTIONS[1]:
            return z


def _depth(rng, points, half_box):
    """Depth (P,), um, of points (P, 3) in random bodies."""
    if rng.random() < _P_SMALL:
        curve = _walk(rng, _SMALL_RADII, _SMALL_MAX_POINTS)
        return _scaled(curve, False, half_box).depth(points)
    if rng.random() < _P_SHELL:
        return _shell(rng, points, half_box.mean())
    bodies: list[Tube] = []
    for _ in range(min(rng.geometric(0.5), _MAX_BODIES)):
        curves, ring = _curves(rng)
        if bodies and rng.random() < _P_BRANCH:
            # From a point of the first one, so that arms can meet.
            shift = rng.choice(bodies[0].control[:, :3]) / half_box - curves[0][0, :3]
            for curve in curves:
                curve[:, :3] += shift
        bodies += [_scaled(curve, ring, half_box) for curve in curves]
    return np.max([body.depth(points) for body in bodies], axis=0)


def _scaled(curve, ring, half_box):
    """A tube, um, around control points (k, 4) over half the box."""
    position = curve[:, :3].clip(-_MAX_COORDINATE, _MAX_COORDINATE) * half_box
    return Tube(np.column_stack([position, curve[:, 3] + np.log(half_box.mean())]), ring)


def _curves(rng):
    """Control points of the curves of a body, and whether they are closed."""
    kind = rng.random()
    if kind < _P_RING:
        return [_ring(rng)], True
    if kind < _P_RING + _P_COIL:
        return [_coil(rng)], False
    if kind < _P_RING + _P_COIL + _P_STAR:
        return _star(rng), False
    return [_walk(rng)], False


def _shell(rng, points, half_box):
    """Approximate depth in a hollow ellipsoid."""
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0] / rng.uniform(0.8, 1.2, (3, 1))
    radius = np.linalg.norm((points / half_box - rng.uniform(-0.25, 0.25, 3)) @ axes.T, axis=1)
    outer, thickness = rng.uniform(0.45, 0.8), rng.uniform(0.2, 0.45)
    return half_box * np.minimum(outer - radius, radius - outer + thickness)


def _ring(rng):
    plane = _axes(rng)[:2]
    angle = np.arange(0, 2 * np.pi, np.pi / 4)[:, None]
    curve = rng.uniform(0.35, 0.75) * (np.cos(angle) * plane[0] + np.sin(angle) * plane[1])
    return _even(curve + rng.uniform(-0.3, 0.3, 3), rng.uniform(0.18, 0.4))


def _coil(rng):
    axes, turns = _axes(rng), rng.uniform(1, 2.2)
    angle = np.arange(0, 2 * np.pi * turns, np.pi / 4)[:, None]
    curve = rng.uniform(0.25, 0.55) * (np.cos(angle) * axes[0] + np.sin(angle) * axes[1])
    rise = rng.uniform(0.4, 1.2) * (angle / angle[-1] - 0.5)
    curve = curve + rise * axes[2] + rng.uniform(-0.2, 0.2, 3)
    return _even(curve, rng.uniform(0.16, 0.3))


def _star(rng):
    """A round body with arms."""
    centre, radius = rng.uniform(-0.3, 0.3, 3), rng.uniform(0.2, 0.45)
    directions = rng.standard_normal((rng.integers(2, 7), 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    tips = centre + directions * rng.uniform(0.5, 0.9)
    arms = [_even(np.array([centre, tip]), rng.uniform(0.16, 0.28)) for tip in tips]
    return [_even(centre[None], radius), *arms]


def _walk(rng, radii=_RADII, most_points=_MAX_POINTS):
    """Control points (k, 4) of a random walk, straight or bent, of constant or varying radius."""
    number, radius = rng.integers(1, most_points + 1), np.exp(rng.uniform(*np.log(radii)))
    length, bending = rng.uniform(0.15, 0.5), rng.uniform(0, 0.9)
    steps = np.zeros((number, 3))
    direction = rng.standard_normal(3)
    for step in steps[1:]:
        direction = direction / np.linalg.norm(direction) + bending * rng.standard_normal(3)
        step[:] = length * direction / np.linalg.norm(direction)
    curve = steps.cumsum(axis=0)
    curve += rng.uniform(-0.6, 0.6, 3) - curve.mean(axis=0)
    log_deviation = 0.25 * rng.standard_normal((number, 1)) * (rng.random() < 0.4)
    return np.hstack([curve, np.log(radius) + log_deviation])


def _even(curve, radius):
    """Control points (k, 4) of a curve (k, 3) of constant radius."""
    return np.hstack([curve, np.full((len(curve), 1), np.log(radius))])


def _axes(rng):
    return np.linalg.qr(rng.standard_normal((3, 3)))[0]
