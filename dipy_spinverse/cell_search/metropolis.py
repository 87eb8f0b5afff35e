"""Metropolis moves over flips of tetrahedra, whose changes of the data add up, nearly."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def walk(
    labels, rest, changes, tetrahedra, first, neighbours, weights, even, chosen, thresholds, most,
):  # fmt: skip
    """Flips of tetrahedra at the walls where moves end, from none.

    Parameters
    ----------
    labels : ndarray (T,) of bool
        Those with the flips replace them.
    rest : ndarray (M,)
        The residual, in units of its errors; what the flips leave of it replaces it.
    changes : ndarray (m, M)
        Of the data, by each flip.
    tetrahedra : ndarray (m,)
    first, neighbours, weights : ndarray
        Of a prior, as of `Smoothness.neighbours`.
    even : float
        Log odds of being inside where the neighbours do not tell.
    chosen : ndarray (n,)
        The flip that each move tries.
    thresholds : ndarray (n,)
        Gain of the log probability above which it is accepted.
    most : int
        Number of flips that moves may not exceed.

    Returns
    -------
    flipped : ndarray (m,) of bool
    """
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
def anneal(rest, changes, first, neighbours, interactions, chosen, thresholds, most):
    """Flips that leave least of a residual, where those of neighbours interact.

    Parameters
    ----------
    rest : ndarray (M,)
        The residual; what the last flips leave of it replaces it.
    changes : ndarray (n, M)
        Of the data, by each flip alone.
    first, neighbours : ndarray
        Of flip k: those from `first[k]` to `first[k + 1]`.
    interactions : ndarray (p, M)
        What flips of both add to the changes.
    chosen : ndarray (n,)
        The flip that each move tries.
    thresholds : ndarray (n,)
        Gain above which it is accepted: half of that in the squared residual.
    most : int
        Number of flips that moves may not exceed.

    Returns
    -------
    flipped : ndarray (n,) of bool
    """
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
                change += interactions[entry]
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
