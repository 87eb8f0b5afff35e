# ruff: noqa: NPY002  (compiled loops draw from the compiler's own generator)
"""Random packings of equal discs or balls in a periodic box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from scipy.special import gammaln

# Bodies placed one after the other fill no more than about 0.54 and 0.38.
_SEQUENTIAL_LIMIT = {2: 0.45, 3: 0.30}
_SHAKES = 400


@dataclass(frozen=True, eq=False)
class Packing:
    """Equal discs or balls that do not overlap, in a periodic box.

    Attributes
    ----------
    centers : ndarray (N, d)
        um, in [0, side).
    radius, side : float
        um.
    """

    centers: np.ndarray
    radius: float
    side: float

    @property
    def dimension(self) -> int:
        """2 for cylinders, seen along their axes, 3 for spheres."""
        return self.centers.shape[1]

    @property
    def fraction(self) -> float:
        """Volume fraction inside."""
        return (
            len(self.centers)
            * ball_volume(self.dimension, self.radius)
            / (self.side**self.dimension)
        )

    @property
    def surface_to_volume(self) -> float:
        """Area of the membranes over the volume of the box, 1/um."""
        return self.dimension * self.fraction / self.radius


def ball_volume(dimension: int, radius: float) -> float:
    """Volume of a disc or ball."""
    half = dimension / 2
    return np.pi**half / np.exp(gammaln(half + 1)) * radius**dimension


def random_packing(
    dimension: int, radius: float, fraction: float, n_bodies: int, seed: int
) -> Packing:
    """Bodies at random positions.

    Sparse ones are placed one after the other; dense ones start at random and are moved apart
    until no two overlap. Then they are shaken as hard bodies in equilibrium.

    Parameters
    ----------
    dimension : int
        2 or 3.
    radius : float
        um.
    fraction : float
        Up to 0.80 in two dimensions, 0.62 in three.
    n_bodies : int
    seed : int

    Raises
    ------
    ValueError
        A fraction that cannot be packed.
    """
    rng = np.random.default_rng(seed)
    side = (n_bodies * ball_volume(dimension, radius) / fraction) ** (1 / dimension)
    # In units of the side.
    distance = 2 * radius / side
    for _ in range(20):
        if fraction <= _SEQUENTIAL_LIMIT[dimension]:
            centers = _one_after_the_other(rng, dimension, distance, n_bodies)
        else:
            centers = _pushed_apart(rng.random((n_bodies, dimension)), distance)
        if centers is not None and _least_distance(centers) >= distance:
            break
    else:
        raise ValueError(
            f"fraction is {fraction:g}: {n_bodies} bodies could not be packed in {dimension} "
            "dimensions. Give at most 0.80 in two, 0.62 in three."
        )
    # A quarter of the mean gap, at least a little, keeps about half of the moves.
    reach = max(0.25 * (n_bodies ** (-1 / dimension) * 1.05 - distance), 0.02 * distance)
    _shake(centers, distance, reach, _SHAKES, int(rng.integers(2**31)))
    return Packing(centers * side, float(radius), float(side))


def _one_after_the_other(rng, dimension, distance, n_bodies):
    centers = np.empty((0, dimension))
    for _ in range(n_bodies):
        trial = rng.random((4000, dimension))
        if len(centers):
            apart = trial[:, None] - centers
            apart -= np.round(apart)
            trial = trial[((apart**2).sum(axis=-1) >= distance**2).all(axis=1)]
        if not len(trial):
            return None
        centers = np.concatenate([centers, trial[:1]])
    return centers


def _pushed_apart(centers, distance):
    """Least squares of the overlaps of bodies a little larger than needed."""
    shape, larger = centers.shape, distance * 1.002

    def overlap(flat):
        points = flat.reshape(shape)
        pairs = cKDTree(points % 1, boxsize=1).query_pairs(larger, output_type="ndarray")
        apart = points[pairs[:, 0]] - points[pairs[:, 1]]
        apart -= np.round(apart)
        length = np.sqrt((apart**2).sum(axis=1)) + 1e-12
        excess = 1 - length / larger
        force = (-2 * excess / (larger * length))[:, None] * apart
        gradient = np.zeros(shape)
        np.add.at(gradient, pairs[:, 0], force)
        np.add.at(gradient, pairs[:, 1], -force)
        return (excess**2).sum(), gradient.ravel()

    options = {"maxiter": 4000, "maxfun": 8000, "ftol": 0, "gtol": 1e-9}
    found = minimize(overlap, centers.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(shape) % 1


def _least_distance(centers):
    return cKDTree(centers % 1, boxsize=1).query(centers % 1, k=2)[0][:, 1].min()


@njit(cache=True)
def _shake(centers, distance, reach, n_sweeps, seed):
    np.random.seed(seed)
    n, dimension = centers.shape
    trial = np.empty(dimension)
    for _ in range(n_sweeps * n):
        moved = np.random.randint(n)
        for k in range(dimension):
            trial[k] = (centers[moved, k] + reach * (2 * np.random.random() - 1)) % 1.0
        free = True
        for other in range(n):
            if other != moved:
                square = 0.0
                for k in range(dimension):
                    apart = trial[k] - centers[other, k]
                    apart -= np.round(apart)
                    square += apart * apart
                if square < distance * distance:
                    free = False
                    break
        if free:
            centers[moved] = trial
