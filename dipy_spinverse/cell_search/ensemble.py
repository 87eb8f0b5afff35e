"""Other labels that explain the data, from a Markov chain over the tetrahedra at the walls."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.labelled import Cells, Flips, Target, flips_of

# Log probability that each face of wall costs: walls of smooth bodies are this much rarer than
# those of rough ones.
_COST_PER_WALL = 0.7
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
            _chain(target, state, flips, rng)
            for state, flips in zip(finalists, flips_of(target, finalists), strict=True)
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
        return -0.5 * (target.residual(cells) ** 2).sum() - _COST_PER_WALL * n_walls(cells.labels)

    sides = target.grid.face_tetrahedra

    def n_walls(labels):
        return (labels[sides[:, 0]] != labels[sides[:, 1]]).sum()

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
        self._changes, self._residual = flips.changes, residual
        self._square = (flips.changes**2).sum(axis=1)
        self._labels, self._tetrahedra = state.labels, flips.tetrahedra
        first, second = grid.face_tetrahedra.T
        neighbours = [[] for _ in self._labels]
        for one, other in zip(first, second, strict=True):
            neighbours[one].append(other)
            neighbours[other].append(one)
        self._neighbours = [np.array(neighbours[k], dtype=int) for k in self._tetrahedra]
        self._sides = grid.face_tetrahedra

    def log_posterior(self, flipped):
        labels = self._flipped_labels(flipped)
        walls = (labels[self._sides[:, 0]] != labels[self._sides[:, 1]]).sum()
        rest = self._residual - flipped @ self._changes
        return -0.5 * (rest**2).sum() - _COST_PER_WALL * walls

    def _flipped_labels(self, flipped):
        labels = self._labels.copy()
        labels[self._tetrahedra[flipped]] ^= True
        return labels

    def walk(self, flipped, rng):
        """Flips after a random number of moves."""
        flipped = flipped.copy()
        labels = self._flipped_labels(flipped)
        rest = self._residual - flipped @ self._changes
        n_moves = 1 + int(len(flipped) * 2 ** rng.uniform(*_SWEEPS))
        chosen = rng.integers(len(flipped), size=n_moves)
        thresholds = np.log(rng.random(n_moves))
        for k, threshold in zip(chosen, thresholds, strict=True):
            sign = -1 if flipped[k] else 1
            along = sign * (self._changes[k] @ rest)
            tetrahedron = self._tetrahedra[k]
            around = labels[self._neighbours[k]]
            walls = len(around) - 2 * (around != labels[tetrahedron]).sum()
            if along - 0.5 * self._square[k] - _COST_PER_WALL * walls > threshold:
                flipped[k] ^= True
                labels[tetrahedron] ^= True
                rest -= sign * self._changes[k]
        return flipped
