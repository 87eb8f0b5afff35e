"""Acquisitions and signals for the tests of the inversion and of the model."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import simulate
from dipy_spinverse.grid import bcc_grid
from dipy_spinverse.substrates.membranes import cylinders

GRID = bcc_grid(3, 5.0)


def spread_directions(n):
    """Directions (n, 3) evenly over the half sphere (a Fibonacci spiral)."""
    z = (np.arange(n) + 0.5) / n
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(n)
    planar = np.sqrt(1 - z**2)
    return np.column_stack([planar * np.cos(angle), planar * np.sin(angle), z])


def shells(timings, b, n_directions, n_b0=1):
    """For each timing (delta, Delta), of its own TE, some b0 and the same directions at each b."""
    directions = spread_directions(n_directions)
    bs, vectors = [0.0] * n_b0, [np.zeros((n_b0, 3))]
    for value in b:
        bs += [value] * n_directions
        vectors.append(directions)
    small, big = np.repeat(np.array(timings, dtype=float).T, len(bs), axis=1)
    return Acquisition(
        b=bs * len(timings),
        directions=np.tile(np.vstack(vectors), (len(timings), 1)),
        small_delta=small,
        big_delta=big,
        te=small + big,
    )


def multi_shell(n_directions=5):
    """Two diffusion times (and echo times), two shells each: 24 measurements."""
    return shells([(8, 15), (8, 45)], (1.0, 3.0), n_directions, n_b0=2)


def tissue_signals(acquisition, permeability=0.02, radius_um=4.5, axis=(0, 0, 1)):
    """Signals of parallel cylinders, from a grid finer than the one that they are fitted on."""
    fine = bcc_grid(9, 15.0 / 9)
    kappa = cylinders(fine, [0, 0, 0], radius_um, axis=axis, permeability=permeability)
    return simulate(acquisition, fine, kappa, dtype="float32")
