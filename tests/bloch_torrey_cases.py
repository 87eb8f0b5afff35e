"""Grids, permeabilities and acquisitions for the tests of the simulation."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.grid import TetrahedralGrid, bcc_grid

DIRECTIONS = np.array(
    [[1, 0, 0], [0, 0, 1], [1, 1, 0], [1, 0, -1], [1, 1, 1], [1, 2, 3], [-3, 1, 0.5]]
)
DIRECTIONS = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1)[:, None]


def encodings(b, directions, small_delta=10.0, big_delta=30.0, te=None):
    """All pairs of the b-values and the directions."""
    directions = np.atleast_2d(directions)
    b = np.atleast_1d(b)
    return Acquisition(
        b=np.repeat(b, len(directions)),
        directions=np.tile(directions, (len(b), 1)),
        small_delta=small_delta,
        big_delta=big_delta,
        te=te,
    )


def random_permeability(grid, seed=0, shape=()):
    """Log-uniform from nearly closed to nearly open, with some faces closed and some open."""
    rng = np.random.default_rng(seed)
    kappa = 10 ** rng.uniform(-2, 1, (*shape, grid.n_faces))
    kind = rng.uniform(size=kappa.shape)
    kappa[kind < 0.1] = 0
    kappa[kind > 0.8] = np.inf
    return kappa


def mixed_acquisition():
    """Two timings, one with dead time, b up to 3 and a b0 of each."""
    return Acquisition(
        b=[0, 0.5, 1, 3, 0, 1, 2],
        directions=[[0, 0, 0], *DIRECTIONS[[0, 4, 5]], [0, 0, 0], *DIRECTIONS[[5, 6]]],
        small_delta=[5, 5, 5, 5, 10, 10, 10],
        big_delta=[8, 8, 8, 8, 25, 25, 25],
        te=[20, 20, 20, 20, 35, 35, 35],
    )


def distorted_grid(boundary):
    """48 unequal tetrahedra, so that nothing rests on the symmetries of the lattice."""
    grid = bcc_grid(2, 5.0, boundary=boundary)
    points = grid.points_um + np.random.default_rng(5).uniform(-0.4, 0.4, grid.points_um.shape)
    return TetrahedralGrid.from_tetrahedra(points, grid.tetrahedra, boundary)
