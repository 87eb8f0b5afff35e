"""Several cells that explain the data, from Markov chains over the tetrahedra at the walls."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.labelled import Cells, Target
from dipy_spinverse.cell_search.posterior import Posterior

_N_STEPS = 150
# Chains of each finalist, one after the other: each is linear around the best of the one before.
_ROUNDS = 2


def ensemble(
    posterior: Posterior,
    finalists: list[tuple[Target, Cells]],
    n_samples: int,
    rng: np.random.Generator,
) -> tuple[Cells, list[Cells]]:
    """The likeliest cells near the finalists, and draws in proportion to their probability.

    Parameters
    ----------
    posterior : Posterior
    finalists : list of (Target, Cells)
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
            posterior.chain(target, cells, _N_STEPS, rng_of_chain)
            for (target, cells), rng_of_chain in zip(
                finalists, rng.spawn(len(finalists)), strict=True
            )
        ]
        finalists = [
            (target, max(chain, key=lambda pair: pair[1])[0])
            for (target, _), chain in zip(finalists, chains, strict=True)
        ]
    values = np.array([[value for _, value in chain] for chain in chains])
    # A chain stands for the states that it found, as many as are as good as its best.
    weights = np.exp(values - values.max()).mean(axis=1)
    chosen = rng.choice(len(chains), n_samples, p=weights / weights.sum())
    half = _N_STEPS // 2
    best = max((pair for chain in chains for pair in chain), key=lambda pair: pair[1])[0]
    return best, [chains[k][rng.integers(half, _N_STEPS)][0] for k in chosen]
