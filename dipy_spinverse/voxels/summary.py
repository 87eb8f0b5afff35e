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
        result |= {f"{name}_mean": draws.mean(axis=1), f"{name}_std": draws.std(axis=1)}
        # Below the k-th of n draws in order is k / (n + 1) of the distribution on average.
        values = np.quantile(draws, list(_QUANTILES.values()), axis=1, method="weibull")
        result |= {f"{name}_{end}": column for end, column in zip(_QUANTILES, values, strict=True)}
    return result
