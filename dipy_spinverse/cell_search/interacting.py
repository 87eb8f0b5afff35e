"""Flips of several tetrahedra at once: neighbours change what each other's flips do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from scipy.sparse import csr_array, triu

from dipy_spinverse.cell_search.labelled import Cells, Misfit, Target, at_walls
from dipy_spinverse.cell_search.metropolis import anneal
from dipy_spinverse.cell_search.polish import polished
from dipy_spinverse.grid import TetrahedralGrid

# Annealing: most flips of a candidate, temperatures relative to the misfit, and sweeps.
_MOST_FLIPS, _HOTTEST, _COLDEST, _SWEEPS = (2, 3, 4, 6, 10, 16), (0.3, 0.05), 0.02, 200
# Worth of flips that are tried again from where they lead, how often they may lead to no smaller
# misfit in the metric there, and misfit per measurement up to which any tetrahedra may flip.
_LEAST_GAIN, _PATIENCE, _NEAR = 0.8, 2, 1 / 32
# Points in common of tetrahedra that share an edge and no face.
_EDGE = 2


def perfected(
    target: Target,
    cells: Cells,
    misfit_at: Callable[[Cells], Misfit],
    rng: np.random.Generator,
) -> Cells:
    """Cells that are nearly right, after flips of several tetrahedra at once.

    At first flips near the walls; where these do not help and the misfit is small, of any
    tetrahedra: what the box cuts off of a cell may be a single one, apart from all walls. The
    metric is that of the cells so far, so its misfit need not fall from step to step.

    Parameters
    ----------
    target : Target
    cells : Cells
    misfit_at : callable
        Gives the misfit of cells like some.
    rng : Generator
    """
    least, in_vain, thorough = np.inf, 0, False
    while not target.explained_by(cells) and in_vain < _PATIENCE:
        misfit = misfit_at(cells)
        there = polished(target, _annealed(target, cells, misfit, thorough, rng), misfit)
        before, after = misfit(np.array([target.residual(state) for state in (cells, there)]))
        in_vain = in_vain + 1 if before > least else 0
        least = min(least, before)
        if after <= before:
            cells = there
        stuck = after > _LEAST_GAIN * before
        if stuck and (thorough or before > _NEAR * len(misfit.root)):
            break
        thorough = stuck
    return cells


def _annealed(target, cells, misfit, thorough, rng):
    """The best of cells after flips that annealing finds."""
    tetrahedra, pairs = _candidates(target.grid, cells.labels, thorough)
    changes, interactions = _effects(target, cells, misfit, tetrahedra, pairs)
    ends = np.concatenate([pairs, pairs[:, ::-1]]).T
    numbers = csr_array((np.tile(np.arange(len(pairs)), 2), ends), (len(tetrahedra),) * 2)
    neighbours = numbers.indptr, numbers.indices, interactions[numbers.data]
    rest, n_moves = target.residual(cells) @ misfit.root, _SWEEPS * len(tetrahedra)
    labels = np.repeat(cells.labels[None], len(_MOST_FLIPS) * len(_HOTTEST), axis=0)
    for row, (most, hottest) in zip(labels, product(_MOST_FLIPS, _HOTTEST), strict=True):
        temperatures = rest @ rest * np.geomspace(hottest, _COLDEST, n_moves)
        chosen, thresholds = rng.integers(len(tetrahedra), size=n_moves), rng.random(n_moves)
        thresholds = temperatures * np.log(thresholds)
        flipped = anneal(rest.copy(), changes, *neighbours, chosen, thresholds, most)
        row[tetrahedra[flipped]] ^= True
    states = target.cells(labels, cells.leaks)
    return states[misfit(np.array([target.residual(state) for state in states])).argmin()]


def _candidates(grid: TetrahedralGrid, labels, thorough):
    """Tetrahedra (n,) that may flip, and pairs (p, 2) of their indices that interact."""
    walls = np.zeros(grid.n_tetrahedra, dtype=bool)
    walls[at_walls(grid, labels)] = True
    pairs = grid.face_tetrahedra[walls[grid.face_tetrahedra].any(axis=1)]
    if len(pairs) and not thorough:
        tetrahedra, pairs = np.unique(pairs, return_inverse=True)
        return tetrahedra, pairs.reshape(-1, 2)
    points = csr_array(
        (np.ones(4 * len(labels)), (np.repeat(np.arange(len(labels)), 4), grid.tetrahedra.ravel()))
    )
    first, second = triu(points @ points.T == _EDGE).nonzero()
    near = walls[first] & walls[second]
    pairs = np.concatenate([pairs, np.column_stack([first, second])[near]])
    return np.arange(len(labels)), pairs


def _effects(target, cells, misfit, tetrahedra, pairs):
    """Changes (n, M) by the flips of tetrahedra, and what those of pairs (p, M) add to them."""
    labels = np.repeat(cells.labels[None], 1 + len(tetrahedra) + len(pairs), axis=0)
    single, double = np.split(labels[1:], [len(tetrahedra)])
    single[np.arange(len(tetrahedra)), tetrahedra] ^= True
    double[np.arange(len(pairs))[:, None], tetrahedra[pairs]] ^= True
    signals = target.expected(target.simulate(labels, cells.leaks)) @ misfit.root
    single, double = np.split(signals[1:] - signals[0], [len(tetrahedra)])
    return single, double - single[pairs].sum(axis=1)
