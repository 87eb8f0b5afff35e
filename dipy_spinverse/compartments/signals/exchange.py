"""Water that exchanges between neurites and what is around them, with finite pulses.

Two sites (Karger): within neurites diffusion along their axis alone, around them isotropic. The
transverse magnetisation m of the sites follows dm/dt = -R(q(t)) m, with

    R = [[q^2 D_in cos^2 + k_in, -k_ex], [-k_in, q^2 D_ex + k_ex]],

1 / exchange time = k_in + k_ex. Scaled by the roots of the fractions R is symmetric, so that with
pulses that are their own mirror image in time the signal is the square of what half of the
encoding leaves [1]_; the pulses are taken in steps with the mean q^2 of each. For short pulses
this is NEXI [2]_, for finite ones SMEX [1]_.

References
----------
.. [1] Olesen et al., NeuroImage 251 (2022) 118976,
   https://doi.org/10.1016/j.neuroimage.2022.118976
.. [2] Jelescu et al., NeuroImage 256 (2022) 119277,
   https://doi.org/10.1016/j.neuroimage.2022.119277
"""

from __future__ import annotations

import torch
from torch import Tensor

from dipy_spinverse.compartments.signals.encoding import Encoding
from dipy_spinverse.compartments.signals.kernels import OwnKernel

_PULSE_STEPS = 8


def two_site_signal(
    encoding: Encoding,
    square: Tensor,
    *,
    inside: Tensor,
    outside: Tensor,
    fraction: Tensor,
    exchange_time: Tensor,
) -> Tensor:
    """Attenuation (V, S, Q) of exchanging water.

    Parameters
    ----------
    encoding : Encoding
    square : Tensor (Q,)
        cos^2 between gradient and neurites.
    inside, outside : Tensor (V,)
        Diffusivities, um^2/ms.
    fraction : Tensor (V,)
        Of the water that is in neurites.
    exchange_time : Tensor (V,)
        ms.
    """
    inside, outside, fraction, time = (
        each[:, None, None] for each in (inside, outside, fraction, exchange_time)
    )
    fraction = fraction.clamp(1e-6, 1 - 1e-6)
    leaving, entering = (1 - fraction) / time, fraction / time
    coupling = torch.sqrt(leaving * entering)
    state = (torch.sqrt(fraction), torch.sqrt(1 - fraction))
    q_square, small = encoding.q[:, None] ** 2, encoding.small_delta[:, None]
    for k in range(_PULSE_STEPS):
        share = ((k + 1) ** 3 - k**3) / (3 * _PULSE_STEPS**2)
        rates = (
            share * q_square * inside * square + leaving,
            share * q_square * outside + entering,
        )
        state = _step(*rates, coupling, small / _PULSE_STEPS, state)
    rates = (q_square * inside * square + leaving, q_square * outside + entering)
    state = _step(*rates, coupling, 0.5 * (encoding.big_delta[:, None] - small), state)
    return state[0] ** 2 + state[1] ** 2


def _step(first, second, coupling, time, state):
    """exp(-R time) of a state, R = [[first, -coupling], [-coupling, second]]."""
    mean, half = 0.5 * (first + second), 0.5 * (first - second)
    root = torch.sqrt(half**2 + coupling**2)
    slow, both = torch.exp(-(mean - root) * time), torch.exp(-2 * root * time)
    even, odd = 0.5 * slow * (1 + both), 0.5 * slow * (1 - both) / root
    return (
        even * state[0] - odd * (half * state[0] - coupling * state[1]),
        even * state[1] + odd * (coupling * state[0] + half * state[1]),
    )


TWO_SITES = OwnKernel(
    "exchanging neurite",
    ("inside", "outside", "fraction", "exchange_time"),
    two_site_signal,
    timed=True,
)
