"""Metropolis moves over label changes of tetrahedra with nearly additive effects on the data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit


class Moves(NamedTuple):
    """Proposed moves, each a change of one label."""

    indices: np.ndarray  # (n,) of the label changes
    thresholds: np.ndarray  # (n,) of the gain, above which each is accepted
    max_changes: int


class LogOdds(NamedTuple):
    """Prior log odds that a tetrahedron is inside of a cell, given its neighbours."""

    offsets: np.ndarray  # (T + 1,) where the neighbours of each begin
    neighbours: np.ndarray  # (p,)
    weights: np.ndarray  # (p,) added for a neighbour inside, subtracted for one outside
    bias: float  # log odds with as many neighbours inside as outside, by weight


class Interactions(NamedTuple):
    """Effects of joint changes of two labels beyond the sum of their single effects."""

    offsets: np.ndarray  # (n + 1,) where the neighbours of each label change begin
    neighbours: np.ndarray  # (p,)
    effects: np.ndarray  # (p, M)


def random_moves(rng: np.random.Generator, n_changes: int, temperatures, max_changes) -> Moves:
    """Metropolis moves at given temperatures (n,)."""
    indices = rng.integers(n_changes, size=len(temperatures))
    return Moves(indices, temperatures * np.log(rng.random(len(temperatures))), max_changes)


@njit(cache=True, nogil=True)
def walk(labels, residual, effects, tetrahedra, log_odds_of, moves):
    """Changes (m,) of the labels of `tetrahedra` by Metropolis moves over the log posterior, with
    additive `effects` (m, M) in units of the errors. Labels (T,) and residual (M,) change in
    place."""
    offsets, neighbours, weights, bias = log_odds_of
    indices, thresholds, max_changes = moves
    changed = np.zeros(len(effects), dtype=np.bool_)
    n_changed = 0
    for move in range(len(indices)):
        k = indices[move]
        if not changed[k] and n_changed >= max_changes:
            continue
        tetrahedron = tetrahedra[k]
        log_odds = bias
        for entry in range(offsets[tetrahedron], offsets[tetrahedron + 1]):
            log_odds += weights[entry] if labels[neighbours[entry]] else -weights[entry]
        gain = -log_odds if labels[tetrahedron] else log_odds
        sign = -1.0 if changed[k] else 1.0
        for m in range(len(residual)):
            effect = sign * effects[k, m]
            gain += effect * residual[m] - 0.5 * effect**2
        if gain > thresholds[move]:
            changed[k] = not changed[k]
            n_changed += 1 if changed[k] else -1
            labels[tetrahedron] = not labels[tetrahedron]
            for m in range(len(residual)):
                residual[m] -= sign * effects[k, m]
    return changed


@njit(cache=True, nogil=True)
def anneal(residual, effects, interactions, moves):
    """Label changes (n,) of the smallest squared residual (M,) met by Metropolis moves; those of
    neighbours, with `effects` (n, M), interact. The residual is updated in place."""
    offsets, neighbours, added = interactions
    indices, thresholds, max_changes = moves
    changed = np.zeros(len(effects), dtype=np.bool_)
    best = changed.copy()
    n_changed, total_gain, best_gain = 0, 0.0, 0.0
    effect = np.empty(len(residual))
    for move in range(len(indices)):
        k = indices[move]
        if not changed[k] and n_changed >= max_changes:
            continue
        effect[:] = effects[k]
        for entry in range(offsets[k], offsets[k + 1]):
            if changed[neighbours[entry]]:
                effect += added[entry]
        if changed[k]:
            effect *= -1.0
        gain = 0.0
        for m in range(len(residual)):
            gain += effect[m] * residual[m] - 0.5 * effect[m] ** 2
        if gain > thresholds[move]:
            changed[k] = not changed[k]
            n_changed += 1 if changed[k] else -1
            residual -= effect
            total_gain += gain
            if total_gain > best_gain:
                best_gain = total_gain
                best[:] = changed
    return best
