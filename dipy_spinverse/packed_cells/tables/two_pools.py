"""Two exchanging pools of water: a rough closed form of the signal of packed cells.

The signal table is regressed on what this form leaves unexplained.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dipy_spinverse.bloch_torrey.analytic.bodies import DIMENSIONS, gaussian_phase_attenuation
from dipy_spinverse.bloch_torrey.analytic.exchange import two_site_signal


class Pulses(NamedTuple):
    """Pairs of gradient pulses: q (M,) in rad/um, delta (M,) and Delta (M,) in ms."""

    q: np.ndarray
    small_delta: np.ndarray
    big_delta: np.ndarray


def two_pool_signal(
    shape: str,
    parameters: np.ndarray,
    pulses: Pulses,
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
    pulses : Pulses
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
    within = gaussian_phase_attenuation(shape, radius, *pulses, diffusivity)
    time = pulses.big_delta - pulses.small_delta / 3
    tortuosity = 1 / (1 + fraction / (dimension - 1))
    free_share = 1 / (1 + 2 * diffusivity * time / radius**2)
    hindered = diffusivity * (tortuosity + (1 - tortuosity) * free_share)
    between = outside * pulses.q**2 * hindered * time
    through_membrane = radius / (dimension * np.maximum(permeability, 1e-12))
    to_membrane = radius**2 / (4 * (dimension + 2) * diffusivity)
    leaving = time / (through_membrane + to_membrane)
    return two_site_signal(within, between, leaving, fraction)
