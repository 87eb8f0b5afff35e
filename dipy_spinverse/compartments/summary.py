"""What a fit says of the posterior of a map."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_QUANTILES = {"low": 0.025, "median": 0.5, "high": 0.975}
ENDINGS = ("mean", "std", *_QUANTILES)


def summary(maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean, standard deviation, median and ends of the central 95 % (V,) of draws (V, n).

    Named NAME_mean, NAME_std, NAME_median, NAME_low and NAME_high.
    """
    result = {}
    for name, draws in maps.items():
        n = draws.shape[1]
        result |= {f"{name}_mean": draws.mean(axis=1), f"{name}_std": draws.std(axis=1)}
        # Below the k-th of n draws in order is k / (n + 1) of the distribution on average.
        places = np.clip(np.array(list(_QUANTILES.values())) * (n + 1) - 1, 0, n - 1)
        below = places.astype(int)
        above = np.minimum(below + 1, n - 1)
        ordered = np.partition(draws, np.union1d(below, above), axis=1)
        values = ordered[:, below] + (places - below) * (ordered[:, above] - ordered[:, below])
        result |= {
            f"{name}_{end}": column for end, column in zip(_QUANTILES, values.T, strict=True)
        }
    return result
