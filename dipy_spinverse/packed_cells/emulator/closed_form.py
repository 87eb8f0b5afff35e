"""Signals of packed cells in closed form, which a neural network corrects.

Everything is dimensionless: lengths in radii R of the bodies, diffusivities in that of the water
between them, D.

    S = exp(-a) [ (F + c) exp(g N) - c ],    g = (1 - h) e / (e + 0.3)

F is the signal of two exchanging compartments [1]_, with restricted [2]_ and hindered diffusion,
N the output of the network. Its gain g vanishes as q^2, as the attenuation e of free water does,
and (h) where only impermeable bodies have signal. Along cylinders water is free: the attenuation a
that both compartments share is outside of the bracket, that of one of them beyond it inside.

References
----------
.. [1] Karger, Ber. Bunsenges. Phys. Chem. 75 (1971), https://doi.org/10.1002/bbpc.19710750727
.. [2] van Gelderen et al., J. Magn. Reson. B 103 (1994), https://doi.org/10.1006/jmrb.1994.1038
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dipy_spinverse.bloch_torrey.analytic import (
    DIMENSIONS,
    gaussian_phase_attenuation,
    karger_closed_form,
)

OFFSET = 0.05
_HALF_GAIN = 0.3
_IMPERMEABLE = 1e-3  # kappa R / D: below, inputs are linear in it
_LONGEST, _SHORTEST = 500.0, 0.008  # range of D Delta / R^2 in training
# Larger attenuations change signals by less than the network's error.
_LARGEST_ATTENUATION = 50.0


class Numbers(NamedTuple):
    """The dimensionless numbers that determine a signal; they broadcast.

    Fraction of the volume inside bodies, permeability kappa R / D, diffusivity inside over that
    outside, time D Delta / R^2, pulse delta / Delta, and q R across and along cylinders.
    """

    fraction: np.ndarray
    permeability: np.ndarray
    inside: np.ndarray
    time: np.ndarray
    pulse: np.ndarray
    across: np.ndarray
    along: np.ndarray


class ClosedForm(NamedTuple):
    """Two-compartment signals (...,), gain of the network, shared attenuation, inputs (..., K)."""

    two_compartments: np.ndarray
    gain: np.ndarray
    attenuation: np.ndarray
    inputs: np.ndarray

    def signals(self, residual: np.ndarray) -> np.ndarray:
        """Signals (...,) with the network's output (...,)."""
        bracket = (self.two_compartments + OFFSET) * np.exp(self.gain * residual) - OFFSET
        return np.exp(-self.attenuation) * bracket


def closed_form(shape: str, numbers: Numbers) -> ClosedForm:
    """Two exchanging compartments, and the inputs of the network."""
    f, k, r, time, pulse, q_across, along = np.broadcast_arrays(*numbers)
    dimension = DIMENSIONS[shape]
    effective_time = time * (1 - pulse / 3)
    intra = gaussian_phase_attenuation(shape, 1.0, q_across, pulse * time * r, time * r, 1.0)
    free_share = 1 / (1 + 2 * effective_time)
    tortuosity = 1 / (1 + f / (dimension - 1))
    free = q_across**2 * effective_time
    extra = free * (tortuosity + (1 - tortuosity) * free_share)
    shared = np.minimum(r, 1)
    axial = along**2 * effective_time
    intra_excess, extra_excess = (r - shared) * axial, (1 - shared) * axial
    to_membrane = 1 / (4 * (dimension + 2) * r)
    exchange = effective_time / (1 / (dimension * np.maximum(k, 1e-9)) + to_membrane)
    a, b = intra + intra_excess, extra + extra_excess
    two_compartments = karger_closed_form(a, b, exchange, f)
    e = free + intra_excess + extra_excess
    # Coated bodies after a long time (Hasselman and Johnson 1987).
    body = r * k / (r + k)
    contrast = (body - 1) / (body + dimension - 1)
    long_time = (1 + (dimension - 1) * f * contrast) / (1 - f * contrast)
    clipped = np.clip(time, _SHORTEST, _LONGEST)
    inputs = [
        f,
        np.log(k + _IMPERMEABLE) / 4,
        np.log(r),
        np.log(clipped) / 4,
        pulse,
        np.log1p(q_across**2) / 3,
        np.log1p(free) / 2,
        np.log1p(np.minimum(intra, _LARGEST_ATTENUATION)) / 2,
        np.log1p(exchange) / 3,
        np.log1p(np.minimum(intra_excess, _LARGEST_ATTENUATION)),
        np.log1p(np.minimum(extra_excess, _LARGEST_ATTENUATION)),
        two_compartments,
        np.exp(-np.minimum(a, _LARGEST_ATTENUATION)),
        np.exp(-np.minimum(b, _LARGEST_ATTENUATION)),
        np.exp(-long_time * free),
        long_time,
    ]
    # Signals of water that cannot leave its bodies are exact where q R is small, or where phases
    # average out during a pulse.
    phase = np.minimum(q_across, q_across / (pulse * time * r))
    extra_decayed = -np.expm1(-np.minimum(b, _LARGEST_ATTENUATION) / 4)
    exact = extra_decayed * np.exp(-3 * exchange - 2 * phase**2)
    gain = e / (e + _HALF_GAIN) * (1 - exact)
    return ClosedForm(two_compartments, gain, shared * axial, np.stack(inputs, axis=-1))
