"""Protocols and tissues that the tests of packed cells share.

Protocols are the same objects in all tests: preparing signals and dictionaries for an acquisition
takes most of the time of a small fit, and is kept in memory by acquisition.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.spatial.transform import Rotation

from dipy_spinverse import Acquisition, PackedCellsModel
from dipy_spinverse.packed_cells.tissue_signals import tissue_signals

TIMINGS = np.array([[8.0, 15.0], [8.0, 40.0]])
SIGMA = 0.02
KNOWN = (2.0, 2.0)


@cache
def protocol(shells=(1.0, 2.5, 4.5), te=(60, 60)):
    """Three shells of 16 directions and three b0 at each of two diffusion times."""
    directions = np.random.default_rng(3).normal(size=(16, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows = []
    for small, big in TIMINGS:
        rows += [(0.0, np.zeros(3), small, big)] * 3
        rows += [(b, g, small, big) for b in shells for g in directions]
    b, g, small, big = (np.array(column) for column in zip(*rows, strict=True))
    te = np.where(big > 20, te[1], te[0])
    return Acquisition(b=b, directions=g, small_delta=small, big_delta=big, te=te)


def with_directions(acquisition, directions):
    return Acquisition(
        acquisition.b, directions, acquisition.small_delta, acquisition.big_delta, te=60
    )


def magnitudes(signals, rng, sigma=SIGMA):
    noise = rng.normal(size=(2, *signals.shape)) * sigma
    return np.hypot(signals + noise[0], noise[1])


def tissue_of_prior(tissue, n, seed, limit=2.0):
    """Coordinates z and frames of samples of the prior, within a range."""
    rng = np.random.default_rng(seed)
    z = np.clip(rng.standard_normal((n, tissue.n_parameters)), -limit, limit)
    if tissue.turns:
        z[:, -3:] = 0
    return z, Rotation.random(n, random_state=seed).as_matrix()


def emulated_signals_of(acquisition, tissue, z, frames, diffusivity=KNOWN, **settings):
    """Signals of tissues in the order of the acquisition, without interpolation."""
    model = tissue_signals(acquisition, diffusivity, 3.0, interpolated=False, **settings)
    signals = np.empty((len(z), len(acquisition)))
    signals[:, model.shells.order] = model(tissue, z, frames)
    return signals


def posterior_of(acquisition, data, sigma=None, n_samples=200, diffusivity=None, **settings):
    """Posterior of data (V, M); the diffusivity is in um^2/ms."""
    if diffusivity is not None:
        settings["diffusivity"] = 1e-3 * np.asarray(diffusivity)
    return PackedCellsModel(acquisition, **settings).posterior(data, sigma, n_samples)


def assert_derivatives_are_differences(model, tissue, n):
    """Derivatives of signals by each parameter of n tissues of a class."""
    z = np.random.default_rng(0).uniform(-1, 1, size=(n, tissue.n_parameters))
    if tissue.turns:
        z[:, -3:] = 0
    frames = Rotation.random(n, random_state=0).as_matrix()
    _, jacobian = model(tissue, z, frames, slopes=True)
    step = 1e-5
    for k in range(tissue.n_parameters):
        change = step * (np.arange(tissue.n_parameters) == k)
        forward, backward = (model(tissue, z + s * change, frames) for s in (1, -1))
        # Central differences: rounding 1e-12 over the step, squares of the step.
        difference = (forward - backward) / (2 * step)
        np.testing.assert_allclose(jacobian[:, k], difference, atol=1e-6)
