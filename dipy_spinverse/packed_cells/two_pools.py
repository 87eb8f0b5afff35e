"""Two exchanging pools of water: a rough closed form of the signal of packed cells.

The signal table is regressed on what this form leaves unexplained.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import jnp_zeros, spherical_jn

DIMENSIONS = {"cylinder": 2, "sphere": 3}
_N_ROOTS = 12


def two_pool_signal(
    shape: str,
    parameters: np.ndarray,
    q: np.ndarray,
    small_delta: np.ndarray,
    big_delta: np.ndarray,
    diffusivity: float,
    outside: float = 1.0,
) -> np.ndarray:
    """Signal across packed cylinders, or of packed spheres, relative to b = 0.

    Restricted diffusion within the bodies in Gaussian phase approximation [1]_, hindered
    diffusion between them, and exchange at the rate of the membranes [2]_.

    Parameters
    ----------
    shape : {"cylinder", "sphere"}
    parameters : ndarray (N, 3)
        Radius in um, volume fraction, permeability in um/ms.
    q, small_delta, big_delta : ndarray (M,)
        rad/um and ms.
    diffusivity : float
        um^2/ms.
    outside : float, optional
        Factor of the diffusivity between the bodies.

    Returns
    -------
    ndarray (N, M)

    References
    ----------
    .. [1] van Gelderen et al., J. Magn. Reson. B 103 (1994),
       https://doi.org/10.1006/jmrb.1994.1038
    .. [2] Karger, Ber. Bunsenges. Phys. Chem. 75 (1971), https://doi.org/10.1002/bbpc.19710750727
    """
    radius, fraction, permeability = np.moveaxis(parameters[:, :, None], 1, 0)
    dimension = DIMENSIONS[shape]
    within = _restricted_attenuation(shape, radius, q, small_delta, big_delta, diffusivity)
    time = big_delta - small_delta / 3
    tortuosity = 1 / (1 + fraction / (dimension - 1))
    free_share = 1 / (1 + 2 * diffusivity * time / radius**2)
    hindered = diffusivity * (tortuosity + (1 - tortuosity) * free_share)
    between = outside * q**2 * hindered * time
    through_membrane = radius / (dimension * np.maximum(permeability, 1e-12))
    to_membrane = radius**2 / (4 * (dimension + 2) * diffusivity)
    leaving = time / (through_membrane + to_membrane)
    entering = leaving * fraction / (1 - fraction)
    a, b = within + leaving, between + entering
    spread = np.sqrt((a - b) ** 2 + 4 * leaving * entering + 1e-12)
    slow, fast = (a + b - spread) / 2, (a + b + spread) / 2
    share = (fraction * within + (1 - fraction) * between - slow) / spread
    return (1 - share) * np.exp(-slow) + share * np.exp(-fast)


def _restricted_attenuation(shape, radius, q, small, big, diffusivity):
    total = 0
    for root in _roots(shape):
        rate = diffusivity * (root / radius) ** 2
        phases = 2 * rate * small - 2 + 2 * np.exp(-rate * small) + 2 * np.exp(-rate * big)
        phases -= np.exp(-rate * (big - small)) + np.exp(-rate * (big + small))
        total += phases * radius**2 / (rate**2 * root**2 * (root**2 - DIMENSIONS[shape] + 1))
    return 2 * (q / small) ** 2 * total


@lru_cache(maxsize=2)
def _roots(shape):
    """Zeros of the slope of the radial mode that a uniform gradient excites."""
    if shape == "cylinder":
        return tuple(jnp_zeros(1, _N_ROOTS))
    starts = np.pi * np.arange(_N_ROOTS) + 1
    slope = lambda x: spherical_jn(1, x, derivative=True)  # noqa: E731
    return tuple(brentq(slope, start, start + np.pi) for start in starts)
