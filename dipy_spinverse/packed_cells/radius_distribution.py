"""Averages over cells with gamma-distributed radii."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaincinv, ndtr

from dipy_spinverse.bloch_torrey.analytic.bodies import DIMENSIONS

LARGEST_SPREAD = 1.0  # standard deviation of the radii over their mean
_LEAST_SPREAD = 0.02  # narrower distributions are one radius
_RADIUS_RANGE = 0.05, 100.0  # um
# Four radii differ from sixteen by 0.05 % of S0, rms over the prior (benchmarks/notes/tissue.md).
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(4)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def radius_quadrature(
    shape: str, radius: np.ndarray, spread: float
) -> list[tuple[float, np.ndarray]]:
    """Weights, as fractions of the volume, and radii (N,) of cells.

    Where n(r) ~ r^(k-1) exp(-r / s) in d dimensions, the volume has a gamma distribution of shape
    k + d, and surface over volume is d / ((k + d - 1) s): that of equal cells of the radius (N,)
    that is given. The spread is the standard deviation of the radii over their mean.
    """
    if spread < _LEAST_SPREAD:
        return [(1.0, radius)]
    dimension, k = DIMENSIONS[shape], 1 / spread**2
    relative = gammaincinv(k + dimension, ndtr(_NODES)) / (k + dimension - 1)
    return [
        (weight, np.clip(factor * radius, *_RADIUS_RANGE))
        for weight, factor in zip(_WEIGHTS.tolist(), relative, strict=True)
    ]
