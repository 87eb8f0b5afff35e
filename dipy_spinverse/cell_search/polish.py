"""Flips of whole tetrahedra that bring cells closer to data."""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.optimize import lsq_linear

from dipy_spinverse.cell_search.labelled import (
    LEAK_SD,
    Cells,
    Misfit,
    Target,
    at_walls,
    flips_of,
)
from dipy_spinverse.cell_search.metropolis import walk

_NUMBERS_FLIPPED = (0, 1, 2, 4, 8, 16)
# Cost of a flip and of a leak's prior standard deviation, against the misfit.
_FLIP_COST, _LEAK_COST, _MOST_LEAK = 0.3, 0.1, 20.0
_MOST_ROUNDS, _LEAST_GAIN = 3, 0.95
# Annealing: most flips of a candidate, temperatures relative to the misfit, and sweeps.
_MOST_FLIPS, _HOTTEST, _COLDEST, _SWEEPS = (2, 3, 4, 6, 10), (0.3, 0.05), 0.02, 200


def polished(target: Target, cells: Cells, misfit: Misfit) -> Cells:
    """Cells after flips of tetrahedra at their walls, and with the leaks that go with them."""
    value = misfit(target.residual(cells)[None])[0]
    for _ in range(_MOST_ROUNDS):
        if value == 0:
            break
        states = target.cells(*_flipped(target, cells, misfit))
        values = misfit(np.array([target.residual(state) for state in states]))
        best = states[values.argmin()]
        # The misfit does not see the leaks, the residual does.
        gain = min(values.min() / value, target.chi_square(best) / target.chi_square(cells))
        if not (gain < _LEAST_GAIN and values.min() <= 1.01 * value):
            break
        cells, value = best, values.min()
    return cells


def perfected(target: Target, cells: Cells, misfit: Misfit, rng: np.random.Generator) -> Cells:
    """Cells that are nearly right, after flips that single ones do not lead to.

    Flips are found by annealing, then pairs of neighbours are tried, each by a simulation.
    """
    value = misfit(target.residual(cells)[None])[0]
    while not target.explained_by(cells):
        there, value_there = _annealed(target, cells, misfit, rng)
        if value_there > _LEAST_GAIN * value:
            there = _best_pair(target, cells, misfit)
            if not target.explained_by(there):
                there = polished(target, there, misfit)
            value_there = misfit(target.residual(there)[None])[0]
        if value_there > _LEAST_GAIN * value:
            break
        cells, value = there, value_there
    return cells


def _annealed(target, cells, misfit, rng):
    """The best cells after some flips that annealing finds, and their misfit."""
    flips = flips_of(target, cells.labels, cells.leaks)
    changes, rest = flips.changes @ misfit.root, target.residual(cells) @ misfit.root
    n, n_moves = len(changes), _SWEEPS * len(changes)
    no_prior = np.zeros(len(cells.labels) + 1, np.int32), np.zeros(0, np.int32), np.zeros(0), 0.0
    labels = np.repeat(cells.labels[None], len(_MOST_FLIPS) * len(_HOTTEST), axis=0)
    for row, (most, hottest) in zip(labels, product(_MOST_FLIPS, _HOTTEST), strict=True):
        temperatures = rest @ rest * np.geomspace(hottest, _COLDEST, n_moves)
        walk(
            np.zeros(n, dtype=bool), row, rest.copy(), changes, flips.tetrahedra, *no_prior,
            rng.integers(n, size=n_moves), temperatures * np.log(rng.random(n_moves)), most,
        )  # fmt: skip
    states = target.cells(labels, cells.leaks)
    best = states[misfit(np.array([target.residual(state) for state in states])).argmin()]
    best = polished(target, best, misfit)
    return best, misfit(target.residual(best)[None])[0]


def _best_pair(target, cells, misfit):
    first, second = target.grid.face_tetrahedra.T
    near = np.isin([first, second], at_walls(target.grid, cells.labels)).any(axis=0)
    pairs = target.grid.face_tetrahedra[near & (cells.labels[first] == cells.labels[second])]
    labels = np.repeat(cells.labels[None], len(pairs), axis=0)
    labels[np.arange(len(pairs))[:, None], pairs] ^= True
    states = target.cells(labels, cells.leaks)
    return states[misfit(np.array([target.residual(state) for state in states])).argmin()]


def _flipped(target, cells, misfit):
    """Labels and leaks with the flips that explain the residual best, from none to many."""
    flips, residual = flips_of(target, cells.labels, cells.leaks), target.residual(cells)
    by_flip, by_leak = flips.changes.T, flips.leak_slopes.T * LEAK_SD
    n = len(flips.tetrahedra)
    costs = np.append(np.full(n, _FLIP_COST), [_LEAK_COST] * 2)
    system = np.vstack([misfit.root.T @ np.hstack([by_flip, by_leak]), np.diag(costs)])
    right = np.append(misfit.root.T @ residual, np.zeros(n + 2))
    upper = np.append(np.ones(n), [_MOST_LEAK] * 2)
    lower = np.append(np.zeros(n), [-_MOST_LEAK] * 2)
    order = np.argsort(-lsq_linear(system, right, (lower, upper)).x[:n])
    labels = np.repeat(cells.labels[None], len(_NUMBERS_FLIPPED), axis=0)
    leaks = np.empty((len(labels), 2))
    for k, number in enumerate(_NUMBERS_FLIPPED):
        labels[k, flips.tetrahedra[order[:number]]] ^= True
        rest = residual - by_flip[:, order[:number]].sum(axis=1)
        leaks[k] = cells.leaks + LEAK_SD * np.linalg.lstsq(by_leak, rest, rcond=None)[0]
    return labels, leaks.clip(0, 1)
