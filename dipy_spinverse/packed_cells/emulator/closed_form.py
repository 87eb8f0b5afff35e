"""What is known of packed cells in closed form: the network learns the rest.

Everything is dimensionless: lengths in radii R of the bodies, diffusivities in that of the water
between them, D.

    S = exp(-a) [ (F + c) exp(g N) - c ],    g = (1 - h) e / (e + 0.3)

F is the signal of two exchanging pools [1]_, each with restricted [2]_ or hindered diffusion, N
the network. Its part vanishes as q^2, as the attenuation e of free water does, and (h) where
only impermeable bodies keep a signal. Along cylinders water is free: the attenuation a that both
pools share leaves the bracket, what one of them has beyond it stays within.

References
----------
.. [1] Karger, Ber. Bunsenges. Phys. Chem. 75 (1971), https://doi.org/10.1002/bbpc.19710750727
.. [2] van Gelderen et al., J. Magn. Reson. B 103 (1994), https://doi.org/10.1006/jmrb.1994.1038
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dipy_spinverse.bloch_torrey.analytic.bodies import DIMENSIONS, gaussian_phase_attenuation
from dipy_spinverse.bloch_torrey.analytic.exchange import karger_closed_form

OFFSET = 0.05
_HALF_GAIN = 0.3
_LEAKLESS = 1e-3  # kappa R / D: below, inputs are linear in it
_LONGEST, _SHORTEST = 500.0, 0.008  # D Delta / R^2 that the network was trained up to
# A longer sum changes signals by less than the network's error.
_MOST_ATTENUATION = 50.0


class Numbers(NamedTuple):
    """The dimensionless numbers that a signal depends on; they broadcast.

    Attributes
    ----------
    fraction : ndarray
        Of the volume inside bodies.
    permeability : ndarray
        kappa R / D.
    inside : ndarray
        Diffusivity inside over that outside, D.
    time, pulse : ndarray
        D Delta / R^2, delta / Delta.
    across, along : ndarray
        q R across and along the axis of cylinders.
    """

    fraction: np.ndarray
    permeability: np.ndarray
    inside: np.ndarray
    time: np.ndarray
    pulse: np.ndarray
    across: np.ndarray
    along: np.ndarray


class ClosedForm(NamedTuple):
    """Two pools (...,), the gain of the network, the shared attenuation, and inputs (..., K)."""

    pools: np.ndarray
    gain: np.ndarray
    attenuation: np.ndarray
    inputs: np.ndarray

    def signals(self, residual: np.ndarray) -> np.ndarray:
        """Signals (...,) with the network's output (...,)."""
        bracket = (self.pools + OFFSET) * np.exp(self.gain * residual) - OFFSET
        return np.exp(-self.attenuation) * bracket


def closed_form(shape: str, numbers: Numbers) -> ClosedForm:
    """Two exchanging pools and the inputs of the network."""
    f, k, r, time, pulse, across, along = np.broadcast_arrays(*numbers)
    dimension = DIMENSIONS[shape]
    passed = time * (1 - pulse / 3)
    within = gaussian_phase_attenuation(shape, 1.0, across, pulse * time * r, time * r, 1.0)
    free_share = 1 / (1 + 2 * passed)
    tortuosity = 1 / (1 + f / (dimension - 1))
    free = across**2 * passed
    between = free * (tortuosity + (1 - tortuosity) * free_share)
    least = np.minimum(r, 1)
    axial = along**2 * passed
    more_within, more_between = (r - least) * axial, (1 - least) * axial
    to_membrane = 1 / (4 * (dimension + 2) * r)
    leaving = passed / (1 / (dimension * np.maximum(k, 1e-9)) + to_membrane)
    a, b = within + more_within, between + more_between
    pools = karger_closed_form(a, b, leaving, f)
    e = free + more_within + more_between
    # Coated bodies after a long time (Hasselman and Johnson 1987).
    body = r * k / (r + k)
    contrast = (body - 1) / (body + dimension - 1)
    long_time = (1 + (dimension - 1) * f * contrast) / (1 - f * contrast)
    clipped = np.clip(time, _SHORTEST, _LONGEST)
    inputs = [
        f,
        np.log(k + _LEAKLESS) / 4,
        np.log(r),
        np.log(clipped) / 4,
        pulse,
        np.log1p(across**2) / 3,
        np.log1p(free) / 2,
        np.log1p(np.minimum(within, _MOST_ATTENUATION)) / 2,
        np.log1p(leaving) / 3,
        np.log1p(np.minimum(more_within, _MOST_ATTENUATION)),
        np.log1p(np.minimum(more_between, _MOST_ATTENUATION)),
        pools,
        np.exp(-np.minimum(a, _MOST_ATTENUATION)),
        np.exp(-np.minimum(b, _MOST_ATTENUATION)),
        np.exp(-long_time * free),
        long_time,
    ]
    # What is left of water that cannot leave its bodies is exact where q R is small, or phases
    # average out during a pulse.
    phase = np.minimum(across, across / (pulse * time * r))
    exact = -np.expm1(-np.minimum(b, _MOST_ATTENUATION) / 4) * np.exp(-3 * leaving - 2 * phase**2)
    gain = e / (e + _HALF_GAIN) * (1 - exact)
    return ClosedForm(pools, gain, least * axial, np.stack(inputs, axis=-1))
