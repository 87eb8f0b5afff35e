"""Shapes that are not published: more of the published family, and others.

`published_family(seed)` yields (name, labels) on the published lattice: bent axons of 4 to 9
segments, cylinders, a sphere, tori, two and three separate cells, some of which touch the box.

`outside_the_family(seed)` yields shapes outside the parametric families: branching and
beaded tubes, L, cross, cuboid, plate, merged spheres, separate cells of different kinds, and
cells that touch the box. Sizes, positions and orientations are random; the names state what they
are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dipy_spinverse import TetrahedralGrid, bcc_grid

_HALF = 13.3


def published_grid() -> TetrahedralGrid:
    """The lattice of the published shapes: 576 tetrahedra in a box of 26.67 um."""
    return bcc_grid(4, 20 / 3, boundary="absorbing")


def outside_the_family(seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Names and labels (T,) of 22 shapes, each of 4 to 40 % of the box."""
    points = published_grid().centroids
    for number, (name, draw) in enumerate(_KINDS * 2):
        yield f"{name} {1 + number // len(_KINDS)}", _drawn(draw, points, (seed, number))


def _drawn(draw, points, seed):
    """Labels (T,) of the first sampled shape of suitable size."""
    rng = np.random.default_rng(seed)
    while True:
        labels = draw(points, rng) < 0
        if 0.04 < labels.mean() < 0.4:
            return labels


def published_family(seed: int = 1) -> Iterator[tuple[str, np.ndarray]]:
    """Names and labels (T,) of 18 shapes like the published ones, of 4 to 40 % of the box."""
    points = published_grid().centroids
    draws = [_bent_axon] * 4 + [_cylinder] * 2 + [_one_sphere] + [_torus] * 2
    draws += [_several] * 9
    for number, draw in enumerate(draws):
        labels = _drawn(draw, points, (seed, number))
        yield f"new {draw.__name__[1:].replace('_', ' ')} {number + 1}", labels


def _bent_axon(points, rng):
    n_segments, radius, axes = rng.integers(4, 10), rng.uniform(4, 5.5), _rotation(rng)
    line = np.linspace(-1.3, 1.3, n_segments + 1)[:, None] * _HALF * axes[0]
    line = line + np.cumsum(rng.normal(0, 8 / n_segments, line.shape), axis=0)
    line -= line.mean(axis=0) + rng.uniform(-3, 3, 3)
    rods = [_rod(points, *ends, radius) for ends in zip(line[:-1], line[1:], strict=True)]
    return np.min(rods, axis=0)


def _cylinder(points, rng):
    direction, centre = 2 * _HALF * _rotation(rng)[0], rng.uniform(-3, 3, 3)
    return _rod(points, centre - direction, centre + direction, rng.uniform(5, 8))


def _one_sphere(points, rng):
    return _sphere(points, rng.uniform(-4, 4, 3), rng.uniform(6, 10))


def _torus(points, rng):
    axes, centre = _rotation(rng), rng.uniform(-2, 2, 3)
    along = (points - centre) @ axes[2]
    away = np.linalg.norm((points - centre) @ axes[:2].T, axis=1)
    return np.hypot(away - rng.uniform(8, 10), along) - rng.uniform(3.8, 5.5)


def _several(points, rng):
    """Two or three spheres, capsules or cylinders through the box, not in contact."""
    n_cells = rng.integers(2, 4)
    while True:
        cells = []
        for _ in range(n_cells):
            start, length = rng.uniform(-10, 10, 3), rng.choice([0.1, 8, 40])
            way = length / 2 * _rotation(rng)[0]
            cells.append(_rod(points, start - way, start + way, rng.uniform(3.8, 5.5)))
        # Nearer than two tetrahedra, their labels would touch.
        if (np.sort(cells, axis=0)[:2] < 2.5).all(axis=0).sum() == 0:
            return np.min(cells, axis=0)


def _rotation(rng):
    return np.linalg.qr(rng.standard_normal((3, 3)))[0]


def _sphere(points, centre, radius):
    return np.linalg.norm(points - centre, axis=1) - radius


def _rod(points, start, end, radius):
    along = end - start
    share = np.clip((points - start) @ along / (along @ along), 0, 1)
    return np.linalg.norm(points - start - share[:, None] * along, axis=1) - radius


def _block(points, half_widths, rng, centre):
    return (np.abs((points - centre) @ _rotation(rng)) - half_widths).max(axis=1)


def _branching(points, rng):
    centre, ends = rng.uniform(-2, 2, 3), _rotation(rng)
    ends[2] = -ends[0] - ends[1]
    radius = rng.uniform(3.6, 4.6)
    rods = [_rod(points, centre, centre + 11 * e / np.linalg.norm(e), radius) for e in ends]
    return np.min(rods, axis=0)


def _beaded(points, rng):
    direction, centre = _rotation(rng)[0], rng.uniform(-2, 2, 3)
    along = (points - centre) @ direction
    away = np.linalg.norm(points - centre - along[:, None] * direction, axis=1)
    radius = 4.6 + 1.6 * np.cos(2 * np.pi * along / rng.uniform(9, 13))
    return np.maximum(away - radius, np.abs(along) - 12)


def _merged_spheres(points, rng):
    centre, direction = rng.uniform(-2, 2, 3), _rotation(rng)[0]
    radii, apart = rng.uniform(4.5, 7.5, 2), rng.uniform(3.5, 5)
    return np.minimum(
        _sphere(points, centre - apart * direction, radii[0]),
        _sphere(points, centre + apart * direction, radii[1]),
    )


def _letter_l(points, rng):
    corner, axes = rng.uniform(-5, 0, 3), _rotation(rng)
    corner = -5 * (axes[0] + axes[1]) + 0.3 * corner
    radius = rng.uniform(3.8, 5)
    arms = [_rod(points, corner, corner + rng.uniform(9, 13) * axis, radius) for axis in axes[:2]]
    return np.min(arms, axis=0)


def _cross(points, rng):
    centre, axes, radius = rng.uniform(-2, 2, 3), _rotation(rng), rng.uniform(3.4, 4.4)
    rods = [_rod(points, centre - 10 * a, centre + 10 * a, radius) for a in axes[:2]]
    return np.min(rods, axis=0)


def _cuboid(points, rng):
    return _block(points, rng.uniform([4, 4, 6], [6, 7, 10]), rng, rng.uniform(-3, 3, 3))


def _plate(points, rng):
    return _block(points, rng.uniform([3, 8, 8], [3.8, 10, 10]), rng, rng.uniform(-2, 2, 3))


def _sphere_and_rod(points, rng):
    axes = _rotation(rng)
    side = -6.5 * axes[0]
    sphere = _sphere(points, side, rng.uniform(4.8, 6))
    middle = 6.5 * axes[0]
    rod = _rod(points, middle - 8 * axes[1], middle + 8 * axes[1], rng.uniform(3.6, 4.6))
    return np.minimum(sphere, rod)


def _two_blocks(points, rng):
    apart = 7 * _rotation(rng)[0]
    blocks = [_block(points, rng.uniform(3.8, 5.2, 3), rng, sign * apart) for sign in (-1, 1)]
    return np.min(blocks, axis=0)


def _three_spheres(points, rng):
    ring = 8.2 * _rotation(rng)[:2]
    angles = rng.uniform(0, 2) + 2 * np.pi * np.arange(3) / 3
    centres = np.cos(angles)[:, None] * ring[0] + np.sin(angles)[:, None] * ring[1]
    return np.min([_sphere(points, c, rng.uniform(4.2, 5.6)) for c in centres], axis=0)


def _at_the_box(points, rng):
    corner = _HALF * rng.choice([-1, 1], 3) * rng.permutation([1, 0.3, 0.2])
    return np.minimum(
        _sphere(points, corner, rng.uniform(8, 10)),
        _sphere(points, 0.2 * corner, rng.uniform(4.5, 6)),
    )


_KINDS = (
    ("branching tube", _branching),
    ("beaded tube", _beaded),
    ("merged spheres", _merged_spheres),
    ("L", _letter_l),
    ("cross", _cross),
    ("cuboid", _cuboid),
    ("plate", _plate),
    ("sphere and rod", _sphere_and_rod),
    ("two blocks", _two_blocks),
    ("three spheres", _three_spheres),
    ("bulge at the box", _at_the_box),
)
