"""What a fit says of a map: centre, standard deviation and 95 % interval.

The centre is the posterior median, the estimate of least expected absolute error; it is always
inside the interval, and that of 1/x is one over that of x. `benchmarks/estimators.py` compares it
with the mean and the likeliest value.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import t as student

_LEVEL = 0.95
ENDINGS = ("", "_std", "_low", "_high")


def of_draws(draws: np.ndarray, axis: int = 0) -> dict[str, np.ndarray]:
    """Statistics of many draws of a map.

    Parameters
    ----------
    draws : ndarray (n, V), or (V, n) with ``axis=1``
    axis : int, optional
        That of the draws.

    Returns
    -------
    dict of ndarray (V,)
        Keys "" (median), "_std", "_low" and "_high" (central 95 % interval).
    """
    tail = (1 - _LEVEL) / 2
    # Below the k-th of n draws in order is k / (n + 1) of the distribution on average.
    low, median, high = np.quantile(draws, [tail, 0.5, 1 - tail], axis=axis, method="weibull")
    return {"": median, "_std": draws.std(axis=axis), "_low": low, "_high": high}


def summary(maps: Mapping[str, np.ndarray], axis: int = 0) -> dict[str, np.ndarray]:
    """Statistics of the draws of several maps, named NAME, NAME_std, NAME_low and NAME_high."""
    return {
        name + ending: values for name, draws in maps.items() for ending, values in
        of_draws(draws, axis).items()
    }  # fmt: skip


def of_fields(values: np.ndarray, error: float, largest: float) -> dict[str, np.ndarray]:
    """Statistics of a map that is not negative over a few wall fields.

    Parameters
    ----------
    values : ndarray (n, V)
        Of the estimate and of the other fields.
    error : float
        Relative standard deviation of errors that all fields share.
    largest : float
        The map's largest possible value.

    Returns
    -------
    dict of ndarray (V,)
        Keys as in :func:`of_draws`; the distribution is Student's, because fields are few,
        around their mean, cut off at the map's range.
    """
    n, mean = len(values), values.mean(axis=0)
    # Of the next field: their scatter, and what their own mean is uncertain by.
    scatter = values.var(axis=0, ddof=1) * (1 + 1 / n) if n > 1 else np.zeros_like(mean)
    variance = scatter + (error * mean) ** 2
    # Degrees of freedom of an estimated and a known variance together (Satterthwaite).
    share = scatter / np.where(variance > 0, variance, 1)
    freedom = max(n - 1, 1) / np.maximum(share, 1e-3) ** 2
    std = np.sqrt(variance)
    reach = student.ppf(0.5 + _LEVEL / 2, freedom) * std
    low, high = np.maximum(mean - reach, 0), np.minimum(mean + reach, largest)
    return {"": mean, "_std": std, "_low": low, "_high": high}


def of_axes(axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dominant axis (V, 3) of draws (n, V, 3), and the angle (V,) that holds 95 % of them.

    Draws of length 0 have no axis and do not count; where none has one, the axis is zero and the
    angle 90 degrees.
    """
    scatter = np.einsum("nvk,nvl->vkl", axes, axes)
    axis = np.linalg.eigh(scatter)[1][..., -1]
    axis *= np.where(axis[:, 2:] < 0, -1, 1)
    has_axis = np.trace(scatter, axis1=1, axis2=2) > 0
    length = np.linalg.norm(axes, axis=-1)
    cosine = np.abs(np.einsum("nvk,vk->nv", axes, axis)) / np.maximum(length, 1e-12)
    angle = np.degrees(np.arccos(np.clip(cosine, 0, 1)))
    angle = np.where(length > 0, angle, np.nan)
    widest = np.full(len(axis), 90.0)
    widest[has_axis] = np.nanquantile(angle[:, has_axis], _LEVEL, axis=0)
    return np.where(has_axis[:, None], axis, 0.0), widest
