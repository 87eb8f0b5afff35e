"""Several cells that explain the data, from Markov chains over the tetrahedra at the walls."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.labelled import Cells, Target
from dipy_spinverse.cell_search.posterior import Posterior

_N_STEPS = 100
# Chains of each finalist, one after the other: each is linear around the best of the one before.
_ROUNDS = 2
# Between modes: how probable each is found depends on how far the search got in it, too.
_TEMPERATURE = 6.0


def ensemble(
    posterior: Posterior,
    finalists: list[tuple[Target, Cells]],
    n_samples: int,
    rng: np.random.Generator,
) -> list[Cells]:
    """Draws from the modes that finalists stand for, the more the more probable these are.

    Parameters
    ----------
    posterior : Posterior
    finalists : list of (Target, Cells)
        From different modes; each starts a chain.
    n_samples : int
    rng : Generator
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
    weights = np.exp((values - values.max()) / _TEMPERATURE).mean(axis=1)
    chosen = rng.choice(len(chains), n_samples, p=weights / weights.sum())
    half = _N_STEPS // 2
    return [chains[k][rng.integers(half, _N_STEPS)][0] for k in chosen]
