"""Statistics of the posterior samples of a map: median, standard deviation and 95 % interval.

The median has the least expected absolute error, is always inside the interval, and that of 1/x is
the inverse of that of x. `benchmarks/estimators.py` compares it with the mean and the mode.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import t as student

_LEVEL = 0.95
ENDINGS = ("", "_std", "_low", "_high")


def sample_statistics(samples: np.ndarray, axis: int = 0) -> dict[str, np.ndarray]:
    """Median "", "_std", and central 95 % interval "_low" to "_high" of many samples of a map.

    Parameters
    ----------
    samples : ndarray (n, V), or (V, n) with ``axis=1``
    axis : int, optional
        That of the samples.
    """
    tail = (1 - _LEVEL) / 2
    # Weibull: the k-th of n sorted samples has the expected probability k / (n + 1).
    low, median, high = np.quantile(samples, [tail, 0.5, 1 - tail], axis=axis, method="weibull")
    return {"": median, "_std": samples.std(axis=axis), "_low": low, "_high": high}


def statistics_of_maps(maps: Mapping[str, np.ndarray], axis: int = 0) -> dict[str, np.ndarray]:
    """NAME, NAME_std, NAME_low and NAME_high of the samples of each map."""
    return {
        name + ending: values
        for name, samples in maps.items()
        for ending, values in sample_statistics(samples, axis).items()
    }


def field_statistics(values: np.ndarray, error: float, largest: float) -> dict[str, np.ndarray]:
    """Statistics of a nonnegative map (n, V) of few permeability fields, keyed as above.

    Student's distribution about the mean, truncated to the range 0 to `largest`; `error` is the
    relative standard deviation of errors that all fields share.
    """
    n, mean = len(values), values.mean(axis=0)
    # Predictive variance: scatter of the fields and uncertainty of their mean.
    scatter = values.var(axis=0, ddof=1) * (1 + 1 / n) if n > 1 else np.zeros_like(mean)
    variance = scatter + (error * mean) ** 2
    # Degrees of freedom of the sum of an estimated and a known variance (Satterthwaite).
    share = scatter / np.where(variance > 0, variance, 1)
    freedom = max(n - 1, 1) / np.maximum(share, 1e-3) ** 2
    std = np.sqrt(variance)
    half_width = student.ppf(0.5 + _LEVEL / 2, freedom) * std
    low, high = np.maximum(mean - half_width, 0), np.minimum(mean + half_width, largest)
    return {"": mean, "_std": std, "_low": low, "_high": high}


def dominant_axis(axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dominant axis (V, 3) of samples (n, V, 3), and its 95 % cone, in degrees (V,).

    Samples of length 0 have no axis and are ignored; without any axis the result is zero and 90
    degrees.
    """
    scatter = np.einsum("nvk,nvl->vkl", axes, axes)
    axis = np.linalg.eigh(scatter)[1][..., -1]
    axis *= np.where(axis[:, 2:] < 0, -1, 1)
    has_axis = np.trace(scatter, axis1=1, axis2=2) > 0
    length = np.linalg.norm(axes, axis=-1)
    cosine = np.abs(np.einsum("nvk,vk->nv", axes, axis)) / np.maximum(length, 1e-12)
    angle = np.degrees(np.arccos(np.clip(cosine, 0, 1)))
    angle = np.where(length > 0, angle, np.nan)
    cone = np.full(len(axis), 90.0)
    cone[has_axis] = np.nanquantile(angle[:, has_axis], _LEVEL, axis=0)
    return np.where(has_axis[:, None], axis, 0.0), cone
