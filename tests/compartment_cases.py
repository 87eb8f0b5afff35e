"""Acquisitions and signals for the tests of compartment models."""

from __future__ import annotations

import numpy as np

from dipy_spinverse import Acquisition


def directions(n, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def two_shells(n=45):
    """6 b0 and n directions at b = 0.7 and 2.5 ms/um^2."""
    b = np.concatenate([np.zeros(6), np.full(n, 0.7), np.full(n, 2.5)])
    return Acquisition(b=b, directions=directions(len(b)), small_delta=10, big_delta=30)


def strong(n=24):
    """Three timings with gradients up to about 0.4 T/m, where diameters show."""
    shells = [(1.0, 10, 15), (3.0, 15, 25), (6.0, 20, 30), (9.0, 15, 60)]
    columns = [np.repeat([row], n, axis=0) for row in [(0.0, 10, 15), *shells]]
    b, small, big = np.concatenate([columns[0][:6], *columns[1:]]).T
    return Acquisition(
        b=b, directions=directions(len(b)), small_delta=small, big_delta=big, te=90.0
    )


def magnitudes(signals, sigma, seed=1):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, *signals.shape)) * sigma
    return np.hypot(signals + noise[0], noise[1])
