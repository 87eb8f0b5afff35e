"""Cells that are not tubes: the shapes that no parametric family of the package was made for.

`outside_the_family(seed)` yields (name, labels) on the published lattice: branching and beaded
tubes, L, cross, cuboid, plate, merged spheres, separate cells of different kinds, and cells that
touch the box. Sizes, positions and orientations are random; the names say what they are.
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
        rng = np.random.default_rng((seed, number))
        while True:
            labels = draw(points, rng) < 0
            if 0.04 < labels.mean() < 0.4:
                break
        yield f"{name} {1 + number // len(_KINDS)}", labels


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
