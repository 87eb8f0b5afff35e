"""Cells whose radii follow a gamma distribution, as an average over some of them."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaincinv, ndtr

from dipy_spinverse.bloch_torrey.analytic.bodies import DIMENSIONS

# Standard deviation of the radii over their mean.
LARGEST_SPREAD = 1.0
_LEAST_SPREAD = 0.02  # narrower distributions are one radius
_LEAST, _LARGEST = 0.05, 100.0  # um
# Four radii differ from sixteen by 0.05 % of S0, rms over the prior.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(4)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def radius_quadrature(
    shape: str, radius: np.ndarray, spread: float
) -> list[tuple[float, np.ndarray]]:
    """Shares of the volume, and radii (N,) of the cells that stand for these.

    Of n(r) ~ r^(k-1) exp(-r / s) in d dimensions the volume is distributed as gamma with k + d,
    and surface over volume is d / ((k + d - 1) s).

    Parameters
    ----------
    shape : {"cylinder", "sphere"}
    radius : ndarray (N,)
        Of equal cells with as much surface, um.
    spread : float
        Standard deviation of the radii over their mean.
    """
    if spread < _LEAST_SPREAD:
        return [(1.0, radius)]
    dimension, k = DIMENSIONS[shape], 1 / spread**2
    over = gammaincinv(k + dimension, ndtr(_NODES)) / (k + dimension - 1)
    return [
        (weight, np.clip(each * radius, _LEAST, _LARGEST))
        for weight, each in zip(_WEIGHTS.tolist(), over, strict=True)
    ]
