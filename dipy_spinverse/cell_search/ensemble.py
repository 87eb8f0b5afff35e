"""Other labels that explain the data, from a Markov chain over the tetrahedra at the walls."""

from __future__ import annotations

import numpy as np
from numba import njit

from dipy_spinverse.bloch_torrey.finite_volume import links_of
from dipy_spinverse.cell_search.labelled import Cells, Flips, Target, flips_of, walls_of

# Log probability that each face of wall costs: walls of smooth bodies are this much rarer than
# those of rough ones.
COST_PER_WALL = 0.7
_N_STEPS = 150
# Chains of each finalist, one after the other: each is linear around the best of the one before.
_ROUNDS = 2
# Moves of the linear chain before a simulation: sweeps, as powers of two.
_SWEEPS = (-6.0, 1.0)


def ensemble(
    target: Target, finalists: list[Cells], n_samples: int, rng: np.random.Generator
) -> tuple[Cells, list[Cells]]:
    """The likeliest cells near the finalists, and draws in proportion to their probability.

    Parameters
    ----------
    target : Target
    finalists : list of Cells
        From different minima; each starts a chain.
    n_samples : int
    rng : Generator

    Returns
    -------
    best : Cells
    samples : list of Cells
    """
    for _ in range(_ROUNDS):
        chains = [
            _chain(target, state, flips_of(target, state.labels, state.leaks), rng)
            for state in finalists
        ]
        finalists = [max(chain, key=lambda pair: pair[1])[0] for chain in chains]
    values = np.array([[value for _, value in chain] for chain in chains])
    # A chain stands for the states that it found, as many as are as good as its best.
    weights = np.exp(values - values.max()).mean(axis=1)
    chosen = rng.choice(len(chains), n_samples, p=weights / weights.sum())
    half = _N_STEPS // 2
    best = max((pair for chain in chains for pair in chain), key=lambda pair: pair[1])[0]
    return best, [chains[k][rng.integers(half, _N_STEPS)][0] for k in chosen]


def _chain(target, state, flips: Flips, rng):
    """Pairs (state, log posterior) of a chain with delayed acceptance [1]_.

    Moves are made by a chain in the linear model of the flips, which is fixed, and accepted by
    their simulation, so that the states are drawn from their posterior.

    References
    ----------
    .. [1] Christen and Fox, J. Comput. Graph. Stat. 14 (2005),
       https://doi.org/10.1198/106186005X76983
    """

    def log_posterior(cells):
        n_walls = walls_of(target.grid, cells.labels[None]).sum()
        return -0.5 * (target.residual(cells) ** 2).sum() - COST_PER_WALL * n_walls

    linear = _LinearChain(target.grid, state, flips, target.residual(state))
    here, flipped = state, np.zeros(len(flips.tetrahedra), dtype=bool)
    value, surrogate = log_posterior(state), linear.log_posterior(flipped)
    result = []
    for _ in range(_N_STEPS):
        proposed = linear.walk(flipped, rng)
        labels = state.labels.copy()
        labels[flips.tetrahedra[proposed]] ^= True
        if (proposed != flipped).any() and labels.any():
            there = target.cells(labels[None], state.leaks)[0]
            value_there, surrogate_there = log_posterior(there), linear.log_posterior(proposed)
            gain = value_there - value - (surrogate_there - surrogate)
            if np.log(rng.random()) < gain:
                here, flipped = there, proposed
                value, surrogate = value_there, surrogate_there
        result.append((here, value))
    return result


class _LinearChain:
    """A Metropolis chain over flips, whose changes of the signals add up."""

    def __init__(self, grid, state, flips, residual):
        self._grid, self._labels, self._residual = grid, state.labels, residual
        self._changes, self._tetrahedra = flips.changes, flips.tetrahedra
        # Slots of outer faces lead back to the tetrahedron itself, and never are walls.
        self._neighbours = links_of(grid).neighbours[flips.tetrahedra]

    def log_posterior(self, flipped):
        rest = self._residual - flipped @ self._changes
        return -0.5 * (rest**2).sum() - COST_PER_WALL * self._n_walls(flipped)

    def _n_walls(self, flipped):
        return walls_of(self._grid, self._flipped_labels(flipped)[None]).sum()

    def _flipped_labels(self, flipped):
        labels = self._labels.copy()
        labels[self._tetrahedra[flipped]] ^= True
        return labels

    def walk(self, flipped, rng):
        """Flips after a random number of moves."""
        flipped = flipped.copy()
        n_moves = 1 + int(len(flipped) * 2 ** rng.uniform(*_SWEEPS))
        _walk(
            flipped, self._flipped_labels(flipped), self._residual - flipped @ self._changes,
            self._changes, self._tetrahedra, self._neighbours,
            rng.integers(len(flipped), size=n_moves), np.log(rng.random(n_moves)),
        )  # fmt: skip
        return flipped


@njit(cache=True, nogil=True)
def _walk(flipped, labels, rest, changes, tetrahedra, neighbours, chosen, thresholds):
    """Metropolis moves, in place."""
    for move in range(len(chosen)):
        k = chosen[move]
        tetrahedron = tetrahedra[k]
        more_walls = 0
        for other in neighbours[k]:
            if other != tetrahedron:
                more_walls += 1 if labels[other] == labels[tetrahedron] else -1
        sign = -1.0 if flipped[k] else 1.0
        gain = -COST_PER_WALL * more_walls
        for m in range(len(rest)):
            change = sign * changes[k, m]
            gain += change * rest[m] - 0.5 * change**2
        if gain > thresholds[move]:
            flipped[k] = not flipped[k]
            labels[tetrahedron] = not labels[tetrahedron]
            for m in range(len(rest)):
                rest[m] -= sign * changes[k, m]
