"""Joint label changes of several tetrahedra: those of neighbours do not simply add up."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from scipy.sparse import csr_array, triu

from dipy_spinverse.cell_search.labelled import LabelledCells, Target, at_walls
from dipy_spinverse.cell_search.local_search import LabelErrorMisfit
from dipy_spinverse.cell_search.metropolis import Interactions, anneal, random_moves
from dipy_spinverse.cell_search.probability import shared_points

# Set by hand on the shapes of benchmarks/shapes.py. Without joint changes these are recovered,
# too, but up to five times slower (benchmarks/results/ablation.md).
_N_CHANGES = (2, 3, 4, 6, 10, 16)  # at most
_N_SWEEPS = 200  # of annealing
_INITIAL_TEMPERATURES = (0.3, 0.05)  # relative to the misfit
_FINAL_TEMPERATURE = 0.02
_PATIENCE = 2  # rounds without a smaller misfit
_MAX_RATIO = 0.8  # of the misfits after and before a round that is worthwhile
_MAX_MISFIT_OF_ALL = 1 / 32  # per measurement, below which any tetrahedra may change
# Number of points in common of tetrahedra that share an edge and no face.
_EDGE = 2


def jointly_improved(
    target: Target,
    cells: LabelledCells,
    misfit_at: Callable[[LabelledCells], LabelErrorMisfit],
    rng: np.random.Generator,
) -> LabelledCells:
    """Nearly correct cells after joint changes of labels near the walls, or, where these do not
    help and the misfit is small, of any: the box can cut a single tetrahedron off a cell. The
    metric is `misfit_at` the current cells, so the misfit may also increase from round to
    round."""
    least, n_failed, all_tetrahedra = np.inf, 0, False
    while not target.explained_by(cells) and n_failed < _PATIENCE:
        misfit = misfit_at(cells)
        candidates = _candidates(target, cells, all_tetrahedra)
        candidate = _annealed(target, cells, misfit, candidates, rng)
        candidate = misfit.improved(target, candidate)
        previous, current = misfit.of_cells(target, [cells, candidate])
        n_failed = n_failed + 1 if previous > least else 0
        least = min(least, previous)
        if current <= previous:
            cells = candidate
        stuck = current > _MAX_RATIO * previous
        if stuck and (all_tetrahedra or previous > _MAX_MISFIT_OF_ALL * len(misfit.root)):
            break
        all_tetrahedra = stuck
    return cells


def _annealed(target, cells, misfit, candidates, rng):
    """The best cells of several runs of simulated annealing over joint label changes."""
    tetrahedra, pairs = candidates
    effects, interactions = _effects(target, cells, misfit, tetrahedra, pairs)
    rows_columns = np.concatenate([pairs, pairs[:, ::-1]]).T
    graph = csr_array((np.tile(np.arange(len(pairs)), 2), rows_columns), (len(tetrahedra),) * 2)
    interactions = Interactions(graph.indptr, graph.indices, interactions[graph.data])
    residual, n_moves = target.residual(cells) @ misfit.root, _N_SWEEPS * len(tetrahedra)
    settings = list(product(_N_CHANGES, _INITIAL_TEMPERATURES))
    labels = np.repeat(cells.labels[None], len(settings), axis=0)
    for row, (max_changes, initial) in zip(labels, settings, strict=True):
        temperatures = residual @ residual * np.geomspace(initial, _FINAL_TEMPERATURE, n_moves)
        moves = random_moves(rng, len(tetrahedra), temperatures, max_changes)
        changed = anneal(residual.copy(), effects, interactions, moves)
        row[tetrahedra[changed]] ^= True
    states = target.cells(labels, cells.transmissibility)
    return states[misfit.of_cells(target, states).argmin()]


def _candidates(target, cells, all_tetrahedra):
    """Tetrahedra (n,) that may change, and pairs (p, 2) of their indices that interact."""
    grid, labels = target.grid, cells.labels
    walls = np.zeros(grid.n_tetrahedra, dtype=bool)
    walls[at_walls(grid, labels)] = True
    pairs = grid.face_tetrahedra[walls[grid.face_tetrahedra].any(axis=1)]
    if len(pairs) and not all_tetrahedra:
        tetrahedra, pairs = np.unique(pairs, return_inverse=True)
        return tetrahedra, pairs.reshape(-1, 2)
    edge_pairs = np.column_stack(triu(shared_points(grid) == _EDGE).nonzero())
    pairs = np.concatenate([pairs, edge_pairs[walls[edge_pairs].all(axis=1)]])
    return np.arange(len(labels)), pairs


def _effects(target, cells, misfit, tetrahedra, pairs):
    """Effects (n, M) of changing single labels, and additional effects (p, M) of pairs."""
    labels = np.repeat(cells.labels[None], 1 + len(tetrahedra) + len(pairs), axis=0)
    single, double = np.split(labels[1:], [len(tetrahedra)])
    single[np.arange(len(tetrahedra)), tetrahedra] ^= True
    double[np.arange(len(pairs))[:, None], tetrahedra[pairs]] ^= True
    signals = target.expected(target.simulate(labels, cells.transmissibility)) @ misfit.root
    single, double = np.split(signals[1:] - signals[0], [len(tetrahedra)])
    return single, double - single[pairs].sum(axis=1)
