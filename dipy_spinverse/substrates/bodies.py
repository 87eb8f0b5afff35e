"""Bodies around points, lines and circles, and their periodic images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.grid import TetrahedralGrid

_MOST_WINDINGS = 4  # of a cylinder around the periodic box before it closes; by hand
# Of points on a bent line, in radii of the tube: the volume is exact to 2e-4.
_POINT_SPACING = 0.05


@dataclass(frozen=True)
class SweptSphere:
    """All points closer than `radius` to a skeleton (a point, a line, a circle).

    `offset` maps points (K, 3) to vectors (K, 3) from the nearest point of the skeleton, which
    are normal to the membrane.
    """

    offset: Callable[[np.ndarray], np.ndarray]
    radius: float


def vectors(name: str, value: ArrayLike, single: bool = False) -> np.ndarray:
    """Check positions and return them with shape (N, 3)."""
    array = np.asarray(value, dtype=float)
    expected = "(3,)" if single else "(N, 3)"
    fits = array.shape == (3,) or (not single and array.ndim == 2 and array.shape[1] == 3)
    if not fits or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{name} has shape {array.shape}; give finite positions of shape {expected}, um."
        )
    return array.reshape(-1, 3)


def positive_length(name: str, value: float) -> float:
    """Check a length."""
    if np.ndim(value) != 0 or not np.isfinite(value) or value <= 0:
        raise ValueError(f"{name} is {value}; give a positive length, um.")
    return float(value)


def permeabilities(permeability: ArrayLike, n_bodies: int) -> np.ndarray:
    """Check permeabilities and return one per body."""
    kappas = np.asarray(permeability, dtype=float)
    if kappas.shape not in ((), (n_bodies,)):
        raise ValueError(
            f"permeability has shape {kappas.shape}; give one value"
            + (f" or {n_bodies}, one per body." if n_bodies > 1 else ".")
        )
    if not (kappas >= 0).all() or np.isinf(kappas).any():
        raise ValueError(
            f"permeability is {permeability!r}; give finite values of at least 0, um/ms."
        )
    return np.broadcast_to(kappas, n_bodies)


def unit_axis(axis: ArrayLike) -> np.ndarray:
    """Check a direction and give it length 1."""
    array = np.asarray(axis, dtype=float)
    if array.shape != (3,) or not np.isfinite(array).all() or not array.any():
        raise ValueError(f"axis is {axis!r}; give three numbers that are not all zero.")
    return array / np.linalg.norm(array)


def closing_direction(direction: np.ndarray, period: np.ndarray) -> np.ndarray:
    """The direction without rounding errors, if lines along it close on the periodic box."""
    windings = _winding_numbers()
    # Shortest first, for the error message.
    windings = windings[np.argsort(np.abs(windings).sum(axis=1), kind="stable")][1:]
    steps = windings * period
    steps /= np.linalg.norm(steps, axis=1)[:, None]
    deviation = np.linalg.norm(steps - direction, axis=1).round(9)
    closest = deviation.argmin()
    if deviation[closest] > 1e-6:
        requested, suggested = (
            ", ".join(f"{x:.4g}" for x in v) for v in (direction, windings[closest] * period)
        )
        raise ValueError(
            f"axis is ({requested}): the cylinders do not close on the periodic box of {period} "
            f"um. The nearest axis that does is ({suggested}); or use an absorbing or "
            "reflecting grid."
        )
    return steps[closest]


def line_images(direction: np.ndarray, period: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Transverse shifts (I, 3) of a line to its periodic images, and the nearest distance.

    All images that can be nearest to a point within half a period of the line's centre.
    """
    if period is None:
        return np.zeros((1, 3)), np.inf
    shifts = _winding_numbers() * period
    transverse = shifts - (shifts @ direction)[:, None] * direction
    lengths = np.linalg.norm(transverse, axis=1)
    transverse = transverse[lengths <= np.linalg.norm(period) * (1 + 1e-9)]
    in_periods = np.round(transverse / period.max(), 6)
    _, distinct = np.unique(in_periods + 0.0, axis=0, return_index=True)
    transverse = transverse[distinct]
    lengths = np.linalg.norm(transverse, axis=1)
    return transverse, lengths[lengths > 1e-6 * period.max()].min()


def _winding_numbers():
    """Triples (n, 3) of the number of windings of a line around each side of the box."""
    return np.indices(3 * [2 * _MOST_WINDINGS + 1]).reshape(3, -1).T - _MOST_WINDINGS


def offset_from_lines(points: np.ndarray, direction: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Vectors (K, 3) from the nearest of parallel lines through the given positions."""
    transverse = points - (points @ direction)[:, None] * direction
    closest = np.zeros(len(points), dtype=int)
    shortest = np.full(len(points), np.inf)
    for index, image in enumerate(images):
        # |x - i|^2 - |x|^2: the second term is common to all lines.
        length = image @ image - 2 * (transverse @ image)
        closer = length < shortest
        closest[closer] = index
        shortest[closer] = length[closer]
    return transverse - images[closest]


def tube(grid: TetrahedralGrid, skeleton: np.ndarray, radius: float) -> SweptSphere:
    """All points closer than `radius` to a skeleton (N, 3) of points."""

    def offset(points):
        _, index = grid.nearest(skeleton, points)
        return grid.minimum_image(points - skeleton[index])

    return SweptSphere(offset, radius)


def dense_line(line: np.ndarray, radius: float) -> np.ndarray:
    """Points along straight segments, dense enough for a tube of this radius."""
    spacing = _POINT_SPACING * radius
    return np.concatenate([
        np.linspace(start, stop, int(np.ceil(np.linalg.norm(stop - start) / spacing)) + 1)
        for start, stop in pairwise(line)
    ])  # fmt: skip


def circle(center: np.ndarray, radius: float, axis: np.ndarray, tube_radius: float) -> np.ndarray:
    """Points along a circle, dense enough for a tube of this radius."""
    radial = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    radial /= np.linalg.norm(radial)
    count = int(np.ceil(2 * np.pi * radius / (_POINT_SPACING * tube_radius)))
    angle = 2 * np.pi * np.arange(count)[:, None] / count
    return center + radius * (np.cos(angle) * radial + np.sin(angle) * np.cross(axis, radial))


def check_disjoint(bodies: list[SweptSphere], centers: np.ndarray) -> None:
    """Raise where two bodies around points or parallel lines overlap."""
    radii = np.array([body.radius for body in bodies])
    for index, body in enumerate(bodies[:-1]):
        distances = np.linalg.norm(body.offset(centers[index + 1 :]), axis=1)
        overlap = body.radius + radii[index + 1 :] - distances
        closest = overlap.argmax()
        if overlap[closest] > 1e-9 * body.radius:
            raise ValueError(
                f"centers_um: bodies {index} and {index + 1 + closest} overlap by "
                f"{overlap[closest]:.3g} um (periodic images included). Move them apart or shrink "
                "them; for a union of bodies use from_inside."
            )
