"""Flips of several tetrahedra at once: neighbours change what each other's flips do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from scipy.sparse import csr_array, triu

from dipy_spinverse.cell_search.effort import FlipEffort
from dipy_spinverse.cell_search.labelled import LabelledCells, Misfit, Target, at_walls
from dipy_spinverse.cell_search.local_search import locally_improved
from dipy_spinverse.cell_search.metropolis import Interactions, anneal, random_moves
from dipy_spinverse.cell_search.smoothness import shared_points

# Chosen on the shapes of benchmarks/shapes.py.
_HOTTEST = (0.3, 0.05)  # first temperatures of annealing, relative to the misfit
_COLDEST = 0.02  # the last one
_LEAST_GAIN = 0.8  # misfit after flips, relative to that before, that are tried again from there
_NEAR = 1 / 32  # misfit per measurement up to which any tetrahedra may flip
# Points in common of tetrahedra that share an edge and no face.
_EDGE = 2


def jointly_improved(
    target: Target,
    cells: LabelledCells,
    misfit_at: Callable[[LabelledCells], Misfit],
    rng: np.random.Generator,
    effort: FlipEffort,
) -> LabelledCells:
    """Cells that are nearly right, after flips of several tetrahedra at once.

    At first flips near the walls; where these do not help and the misfit is small, of any
    tetrahedra: what the box cuts off of a cell may be a single one, apart from all walls. The
    metric is `misfit_at` the cells so far, so its misfit need not fall from step to step.
    """
    least, in_vain, thorough = np.inf, 0, False
    while not target.explained_by(cells) and in_vain < effort.patience:
        misfit = misfit_at(cells)
        there = _annealed(target, cells, misfit, _candidates(target, cells, thorough), rng, effort)
        there = locally_improved(target, there, misfit, effort)
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


def _annealed(target, cells, misfit, candidates, rng, effort):
    """The best of cells after flips that annealing finds."""
    tetrahedra, pairs = candidates
    changes, interactions = _effects(target, cells, misfit, tetrahedra, pairs)
    ends = np.concatenate([pairs, pairs[:, ::-1]]).T
    numbers = csr_array((np.tile(np.arange(len(pairs)), 2), ends), (len(tetrahedra),) * 2)
    interactions = Interactions(numbers.indptr, numbers.indices, interactions[numbers.data])
    rest, n_moves = target.residual(cells) @ misfit.root, effort.n_sweeps * len(tetrahedra)
    kinds = list(product(effort.numbers_at_once, _HOTTEST))
    labels = np.repeat(cells.labels[None], len(kinds), axis=0)
    for row, (most, hottest) in zip(labels, kinds, strict=True):
        temperatures = rest @ rest * np.geomspace(hottest, _COLDEST, n_moves)
        moves = random_moves(rng, len(tetrahedra), temperatures, most)
        flipped = anneal(rest.copy(), changes, interactions, moves)
        row[tetrahedra[flipped]] ^= True
    states = target.cells(labels, cells.leaks)
    return states[misfit(np.array([target.residual(state) for state in states])).argmin()]


def _candidates(target, cells, thorough):
    """Tetrahedra (n,) that may flip, and pairs (p, 2) of their indices that interact."""
    grid, labels = target.grid, cells.labels
    walls = np.zeros(grid.n_tetrahedra, dtype=bool)
    walls[at_walls(grid, labels)] = True
    pairs = grid.face_tetrahedra[walls[grid.face_tetrahedra].any(axis=1)]
    if len(pairs) and not thorough:
        tetrahedra, pairs = np.unique(pairs, return_inverse=True)
        return tetrahedra, pairs.reshape(-1, 2)
    first, second = triu(shared_points(grid) == _EDGE).nonzero()
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
