"""Metropolis moves over flips of tetrahedra, whose changes of the data add up, nearly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit


class Moves(NamedTuple):
    """Moves that are tried, each the flip of one tetrahedron."""

    chosen: np.ndarray  # (n,) indices of flips
    thresholds: np.ndarray  # (n,) of the gain, above which each is accepted
    most: int  # flips


class LogOdds(NamedTuple):
    """Log odds that a tetrahedron is inside of a cell, as its neighbours tell."""

    first: np.ndarray  # (T + 1,) where the neighbours of each begin
    neighbours: np.ndarray  # (p,)
    weights: np.ndarray  # (p,) added for a neighbour inside, subtracted for one outside
    even: float  # where the neighbours do not tell


class Interactions(NamedTuple):
    """What flips of two tetrahedra add to the changes by each alone."""

    first: np.ndarray  # (n + 1,) where the neighbours of each flip begin
    neighbours: np.ndarray  # (p,)
    changes: np.ndarray  # (p, M)


def random_moves(rng: np.random.Generator, n_flips: int, temperatures, most: int) -> Moves:
    """Metropolis moves, at a temperature (n,) each."""
    chosen = rng.integers(n_flips, size=len(temperatures))
    return Moves(chosen, temperatures * np.log(rng.random(len(temperatures))), most)


@njit(cache=True, nogil=True)
def walk(labels, rest, changes, tetrahedra, log_odds_of, moves):
    """Which tetrahedra (m,) at the walls are flipped where moves end, which gain log probability.

    Labels (T,), and the rest (M,) of the residual in units of its errors, become those with the
    flips, which change the data by `changes` (m, M).
    """
    first, neighbours, weights, even = log_odds_of
    chosen, thresholds, most = moves
    flipped = np.zeros(len(changes), dtype=np.bool_)
    number = 0
    for move in range(len(chosen)):
        k = chosen[move]
        if not flipped[k] and number >= most:
            continue
        tetrahedron = tetrahedra[k]
        log_odds = even
        for entry in range(first[tetrahedron], first[tetrahedron + 1]):
            log_odds += weights[entry] if labels[neighbours[entry]] else -weights[entry]
        gain = -log_odds if labels[tetrahedron] else log_odds
        sign = -1.0 if flipped[k] else 1.0
        for m in range(len(rest)):
            change = sign * changes[k, m]
            gain += change * rest[m] - 0.5 * change**2
        if gain > thresholds[move]:
            flipped[k] = not flipped[k]
            number += 1 if flipped[k] else -1
            labels[tetrahedron] = not labels[tetrahedron]
            for m in range(len(rest)):
                rest[m] -= sign * changes[k, m]
    return flipped


@njit(cache=True, nogil=True)
def anneal(rest, changes, interactions, moves):
    """Which flips (n,) leave least of a residual (M,), where those of neighbours interact.

    Each alone changes the data by `changes` (n, M); moves gain half of the squared residual. What
    the last of them leave becomes the rest.
    """
    first, neighbours, added = interactions
    chosen, thresholds, most = moves
    flipped = np.zeros(len(changes), dtype=np.bool_)
    best = flipped.copy()
    number, gained, most_gained = 0, 0.0, 0.0
    change = np.empty(len(rest))
    for move in range(len(chosen)):
        k = chosen[move]
        if not flipped[k] and number >= most:
            continue
        change[:] = changes[k]
        for entry in range(first[k], first[k + 1]):
            if flipped[neighbours[entry]]:
                change += added[entry]
        if flipped[k]:
            change *= -1.0
        gain = 0.0
        for m in range(len(rest)):
            gain += change[m] * rest[m] - 0.5 * change[m] ** 2
        if gain > thresholds[move]:
            flipped[k] = not flipped[k]
            number += 1 if flipped[k] else -1
            rest -= change
            gained += gain
            if gained > most_gained:
                most_gained = gained
                best[:] = flipped
    return best
