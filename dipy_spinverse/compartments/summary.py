"""What a fit says of the posterior of a map."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_ENDS = np.array([0.025, 0.975])


def summary(maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean, standard deviation and ends of the central 95 % (V,) of draws (V, n)."""
    result = {}
    for name, draws in maps.items():
        n = draws.shape[1]
        result |= {f"{name}_mean": draws.mean(axis=1), f"{name}_std": draws.std(axis=1)}
        # Below the k-th of n draws in order is k / (n + 1) of the distribution on average.
        places = np.clip(_ENDS * (n + 1) - 1, 0, n - 1)
        below = places.astype(int)
        above = np.minimum(below + 1, n - 1)
        ordered = np.partition(draws, np.union1d(below, above), axis=1)
        ends = ordered[:, below] + (places - below) * (ordered[:, above] - ordered[:, below])
        result |= {f"{name}_low": ends[:, 0], f"{name}_high": ends[:, 1]}
    return result
