"""Rows of `benchmarks.real_inputs`: packed cells, walls and cell shapes, by Monte Carlo."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.linalg import expm

from benchmarks.monte_carlo import mean_displacements, pulse_times, signals, walk
from benchmarks.packing import random_packing
from benchmarks.real_inputs_directions import table_of
from benchmarks.real_inputs_rows import Trial, middle_interval, row
from benchmarks.real_inputs_truths import magnitudes, restricted, rotations
from dipy_spinverse import (
    Acquisition,
    CellShapeModel,
    FaceInversion,
    PackedCellsModel,
    SpinverseModel,
)

_N_SUBSTRATES, _N_BODIES, _N_WALKERS = 12, 60, 5000
_SMALL, _BIG, _SHELLS = 10.0, (20.0, 40.0, 60.0), (1.0, 2.0, 3.0, 5.0)
_MAPS = ("surface_to_volume", "restricted_fraction", "pore_diameter", "wall_permeability",
         "exchange_time")  # fmt: skip


def _scan():
    """b, directions and Delta: three timings of four shells of 20 directions and 3 b0."""
    b, directions = table_of([(0, 3), *((each, 20) for each in _SHELLS)])
    directions[:3] = 0
    n = len(b)
    return np.tile(b, 3), np.tile(directions, (3, 1)), np.repeat(_BIG, n)


@cache
def _substrates():
    """Signals (N, M) of cylinders and balls packed at random, D 2 um^2/ms, and their maps."""
    b, directions, big = _scan()
    times = pulse_times([(_SMALL, each) for each in _BIG])
    clean, truth = np.ones((_N_SUBSTRATES, len(b))), []
    for k in range(_N_SUBSTRATES):
        rng, dimension = np.random.default_rng([5, k]), 2 + k % 2
        radius, kappa = np.exp(rng.uniform(np.log([1.5, 0.003]), np.log([5, 0.1])))
        packing = random_packing(dimension, radius, rng.uniform(0.35, 0.55), _N_BODIES, k)
        moved, inside = walk(packing, kappa, times, _N_WALKERS, k, step_per_radius=1 / 4)
        turned = directions @ rotations(1, rng)[0]
        for each in _BIG:
            rows = (big == each) & (b > 0)
            q = np.sqrt(b[rows] / (each - _SMALL / 3))[:, None] * turned[rows, :dimension]
            shift = mean_displacements(moved, times, _SMALL, each)
            clean[k, rows] = signals(shift, inside, q[:, None])[0]
            if dimension == 2:
                clean[k, rows] *= np.exp(-2.0 * b[rows] * turned[rows, 2] ** 2)
        surface, fraction = packing.surface_to_volume, packing.fraction
        truth.append(
            [surface, fraction, 4 * fraction / surface, kappa, fraction / surface / kappa]
        )
    return clean, np.array(truth)


def _packed(n, rng, rows=None, gap=0.0, model_class=PackedCellsModel, **options):
    b, directions, big = _scan()
    clean, truth = _substrates()
    rows, which = slice(None) if rows is None else rows, np.arange(n) % _N_SUBSTRATES
    data = magnitudes(clean[which], 1 / 50, rng)[:, rows]
    acquisition = lambda: Acquisition(b[rows], directions[rows], _SMALL, (big - gap)[rows])  # noqa: E731
    values = dict(zip(_MAPS, truth[which].T, strict=True))
    run = lambda: model_class(acquisition()).fit(data, **options)  # noqa: E731
    return Trial(run, values, note=middle_interval("exchange_time"))


@row("ordinary", "packed cells, three diffusion times, SNR 50", n=48, n_quick=12)
def packed_cells(n, rng):
    return _packed(n, rng)


@row("A11", "packed cells, Delta given as the gap between the pulses (10 ms too short)", 48, 12)
def packed_cells_gap(n, rng):
    return _packed(n, rng, gap=_SMALL)


@row("A12", "packed cells, one shell", n=48, n_quick=12)
def packed_cells_one_shell(n, rng):
    b, _, big = _scan()
    return _packed(n, rng, rows=np.flatnonzero((big == 40) & ((b == 0) | (b == 1))))


@row("A12", "packed cells, eight volumes", n=48, n_quick=12)
def packed_cells_eight(n, rng):
    b, _, big = _scan()
    shells = [
        np.flatnonzero((big == 40) & (b == each))[:k] for each, k in ((0, 2), (1, 3), (3, 3))
    ]
    return _packed(n, rng, rows=np.concatenate(shells))


@row("ordinary", "walls of tissue (SpinverseModel), three diffusion times, SNR 50", n=6, n_quick=2)
def walls(n, rng):
    return _packed(n, rng, model_class=SpinverseModel, n_fields=1)


@row("ordinary", "walls from signals alone (FaceInversion), three diffusion times, SNR 50", 3, 1)
def walls_of_faces(n, rng):
    model = lambda acquisition: SpinverseModel(acquisition, inversion=FaceInversion())  # noqa: E731
    return _packed(n, rng, model_class=model)


def _slab(q, small, big, length, diffusivity=2.0, cells=80):
    """Signal along a cylinder of this length between reflecting ends, by finite volumes."""
    step = length / cells
    laplacian = np.diag(np.full(cells - 1, 1.0), 1) + np.diag(np.full(cells - 1, 1.0), -1)
    laplacian -= np.diag(laplacian.sum(axis=1))
    decay, x = -diffusivity / step**2 * laplacian, (np.arange(cells) + 0.5) * step - length / 2
    n_steps = 16  # per pulse
    state = np.full(cells, 1 / cells, dtype=complex)
    free = expm(-decay * small / n_steps / 2)
    for _ in range(n_steps):
        state = free @ (np.exp(-1j * q * x / n_steps) * (free @ state))
    state = expm(-decay * (big - small)) @ state
    for _ in range(n_steps):
        state = free @ (np.exp(1j * q * x / n_steps) * (free @ state))
    return state.sum().real


@row("ordinary", "cell shapes: straight cylinders with closed ends, SNR 100", n=2, n_quick=1)
def cell_shapes(n, rng):
    b, directions = table_of([(0, 2), (1, 16), (3, 16), (6, 16)])
    directions[:2] = 0
    b, directions, big = np.tile(b, 2), np.tile(directions, (2, 1)), np.repeat([15.0, 40.0], 50)
    small, q = np.full(100, 5.0), np.sqrt(b / (big - 5.0 / 3))
    length, radius, axes = rng.uniform(12, 20, n), rng.uniform(1.2, 2, n), rotations(n, rng)[:, 0]
    along = axes @ directions.T
    across = restricted(q * np.sqrt(1 - along**2), small, big, 2 * radius, 2.0, 2)
    ends = [[_slab(q[m] * along[v, m], 5.0, big[m], length[v]) for m in range(100)]
            for v in range(n)]  # fmt: skip
    data = magnitudes(across * np.array(ends), 1 / 100, rng)
    surface = 2 * np.pi * radius * (length + radius)
    truth = {"volume": np.pi * radius**2 * length, "surface": surface, "length": length,
             "mean_radius": radius}  # fmt: skip
    acquisition = Acquisition(b, directions, small, big)
    return Trial(lambda: CellShapeModel(acquisition).fit(data), truth)
