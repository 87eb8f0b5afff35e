"""Water that exchanges between neurites and the extracellular space, with finite pulses.

Two sites (Karger): within neurites diffusion along their axis alone, around them isotropic. The
transverse magnetisation m of the sites follows dm/dt = -R(q(t)) m, with

    R = [[q^2 D_in cos^2 + k_in, -k_ex], [-k_in, q^2 D_ex + k_ex]],

1 / exchange time = k_in + k_ex. Scaled by the roots of the fractions R is symmetric, so that with
pulses that are symmetric in time the signal is the squared norm of m after half of the encoding
[1]_; pulses are integrated in commutator-free Magnus steps of fourth order [3]_. For short pulses
this is NEXI [2]_, for finite ones SMEX [1]_.

References
----------
.. [1] Olesen et al., NeuroImage 251 (2022) 118976,
   https://doi.org/10.1016/j.neuroimage.2022.118976
.. [2] Jelescu et al., NeuroImage 256 (2022) 119277,
   https://doi.org/10.1016/j.neuroimage.2022.119277
.. [3] Alvermann and Fehske, J. Comput. Phys. 230 (2011) 5930,
   https://doi.org/10.1016/j.jcp.2011.04.006
.. [4] Karger, Ber. Bunsenges. 75 (1971) 976, https://doi.org/10.1002/bbpc.19710750727
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from numba import njit
from torch import Tensor

from dipy_spinverse.compartments.signals.encoding import Encoding
from dipy_spinverse.compartments.signals.kernels import KERNELS, CustomKernel

# Four times as exact as eight steps with the mean q^2 (benchmarks/notes/compartments.md).
_PULSE_STEPS = 2
_SITES = "first", "second"
_LEAST_SIGNAL = 1e-30  # of a site: its logarithm is finite, also in single precision
# All of fastmath that does not assume finite numbers.
_FAST = {"contract", "reassoc", "arcp", "nsz"}


def exchange_attenuation(
    encoding: Encoding,
    square: Tensor,
    *,
    inside: Tensor,
    outside: Tensor,
    fraction: Tensor,
    exchange_time: Tensor,
) -> Tensor:
    """Attenuation (V, S, Q) of exchanging water at cos^2 (Q,) between gradient and neurites.

    `inside` and `outside` (V,) are diffusivities in um^2/ms, `fraction` is that of the water in
    neurites, `exchange_time` in ms.
    """
    fraction = fraction.clamp(1e-6, 1 - 1e-6)
    parameters = torch.stack([inside, outside, fraction, exchange_time])
    q_square, small = encoding.q[:, None] ** 2, encoding.small_delta[:, None]
    pause = 0.5 * (encoding.big_delta[:, None] - small)
    encoded = torch.broadcast_tensors(q_square * square, q_square, small, pause)
    if parameters.requires_grad:
        return _differentiable(*parameters[..., None, None], *encoded)
    arrays = (array.double().reshape(-1).numpy() for array in encoded)
    signals = _signals(parameters.T.double().numpy(), *arrays, _pulse_steps())
    return torch.from_numpy(signals).to(inside.dtype).unflatten(1, encoded[0].shape)


def _differentiable(inside, outside, fraction, time, along, q_square, small, pause):
    leaving, entering = (1 - fraction) / time, fraction / time
    coupling, state = (leaving * entering) ** 0.5, (fraction**0.5, (1 - fraction) ** 0.5)
    rates = along * inside, q_square * outside
    times = [(share, time_share * small) for share, time_share in _pulse_steps().tolist()]
    for share, duration in [*times, (1.0, pause)]:
        neurite, extra = share * rates[0] + leaving, share * rates[1] + entering
        state = _step(neurite, extra, coupling, duration, *state, lambda x: torch.exp(-x))
    return state[0] ** 2 + state[1] ** 2


def _step(neurite_rate, extra_rate, coupling, time, neurite, extra, decay):
    """exp(-R time) of a state, R = [[neurite rate, -coupling], [-coupling, extra rate]]."""
    mean, half_difference = 0.5 * (neurite_rate + extra_rate), 0.5 * (neurite_rate - extra_rate)
    root = (half_difference * half_difference + coupling * coupling) ** 0.5
    slow, ratio = decay((mean - root) * time), decay(2 * root * time)
    symmetric, antisymmetric = 0.5 * slow * (1 + ratio), 0.5 * slow * (1 - ratio) / root
    return (
        symmetric * neurite - antisymmetric * (half_difference * neurite - coupling * extra),
        symmetric * extra + antisymmetric * (coupling * neurite + half_difference * extra),
    )


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _decay(x):
    """exp(-x) for x >= 0: a polynomial of x / 256, squared eight times, which compilers can
    vectorise."""
    y = x / 256
    p = 1 + y * (1 + y / 2 * (1 + y / 3 * (1 + y / 4 * (1 + y / 5 * (1 + y / 6 * (1 + y / 7))))))
    for _ in range(8):
        p *= p
    return 1 / p


_compiled_step = njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")(_step)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _signals(parameters, along, q_square, small, pause, pulse_steps):
    """Signals (V, N) of parameters (V, 4) at N pairs of shells and directions."""
    n = len(along)
    result, neurite, extra = np.empty((len(parameters), n)), np.empty(n), np.empty(n)
    for v in range(len(parameters)):
        inside, outside, fraction, time = parameters[v]
        leaving, entering = (1 - fraction) / time, fraction / time
        coupling = np.sqrt(leaving * entering)
        neurite[:], extra[:] = np.sqrt(fraction), np.sqrt(1 - fraction)
        for k in range(len(pulse_steps)):
            share, time_share = pulse_steps[k]
            for m in range(n):
                neurite[m], extra[m] = _compiled_step(
                    share * along[m] * inside + leaving, share * q_square[m] * outside + entering,
                    coupling, time_share * small[m], neurite[m], extra[m], _decay,
                )  # fmt: skip
        for m in range(n):
            neurite_end, extra_end = _compiled_step(
                along[m] * inside + leaving, q_square[m] * outside + entering, coupling, pause[m],
                neurite[m], extra[m], _decay,
            )  # fmt: skip
            result[v, m] = neurite_end * neurite_end + extra_end * extra_end
    return result


@lru_cache
def _pulse_steps():
    """q^2 over that at the end, and duration over the pulse's, of each exponential of a pulse."""
    gauss, steps = np.sqrt(3) / 6, []
    for k in range(_PULSE_STEPS):
        early, late = (((k + 0.5 + sign * gauss) / _PULSE_STEPS) ** 2 for sign in (-1, 1))
        for main, minor in ((early, late), (late, early)):
            share = (0.5 + 2 * gauss) * main + (0.5 - 2 * gauss) * minor
            steps.append((share, 0.5 / _PULSE_STEPS))
    return np.array(steps)


def exchanging(first: str | CustomKernel, second: str | CustomKernel) -> CustomKernel:
    """A kernel of two sites that exchange water, each with the signal of a kernel [4]_.

    Logarithms of the sites' signals are taken to grow in proportion to the diffusion time, as
    with short pulses; of a stick and its surroundings, `TWO_SITES` has finite pulses.

    Parameters
    ----------
    first, second : str or CustomKernel
        As `kernel` of :class:`Compartment`. Arguments of the result are theirs with "first_" and
        "second_" before the name, the `fraction` of the first, and `exchange_time` (ms, the
        inverse of the sum of both rates).

    Returns
    -------
    CustomKernel

    Raises
    ------
    ValueError
        An unknown kernel.

    Examples
    --------
    >>> exchanging("sphere", "ball").arguments[2:]
    ('second_diffusivity', 'fraction', 'exchange_time')
    """
    unknown = [site for site in (first, second) if isinstance(site, str) and site not in KERNELS]
    if unknown:
        raise ValueError(
            f"There is no kernel {unknown[0]!r} to exchange with; give {', '.join(KERNELS)} "
            "or a CustomKernel."
        )
    sites = [KERNELS[site] if isinstance(site, str) else site for site in (first, second)]
    names = [f"{prefix}_{name}" for prefix, site in zip(_SITES, sites, strict=True)
             for name in site.arguments]  # fmt: skip
    return CustomKernel(
        f"exchanging {sites[0].name} and {sites[1].name}",
        (*names, "fraction", "exchange_time"),
        partial(_exchanging_signal, sites),
        oriented=any(site.oriented for site in sites),
        timed=True,
    )


def _exchanging_signal(sites, encoding, square, *, fraction, exchange_time, **arguments):
    fraction, exchange_time = (x[:, None, None] for x in (fraction, exchange_time))
    fraction = fraction.clamp(1e-6, 1 - 1e-6)
    leaving, entering = (1 - fraction) / exchange_time, fraction / exchange_time
    time = encoding.diffusion_time[:, None]
    rates = []
    for prefix, site in zip(_SITES, sites, strict=True):
        own = {name: arguments[f"{prefix}_{name}"] for name in site.arguments}
        signal = site(encoding, **own).at(square)
        rates.append(-torch.log(signal.clamp_min(_LEAST_SIGNAL)) / time)
    state = fraction**0.5, (1 - fraction) ** 0.5
    end = _step(
        rates[0] + leaving, rates[1] + entering, (leaving * entering) ** 0.5, time, *state,
        lambda x: torch.exp(-x),
    )  # fmt: skip
    return state[0] * end[0] + state[1] * end[1]


TWO_SITES = CustomKernel(
    "exchanging neurite",
    ("inside", "outside", "fraction", "exchange_time"),
    exchange_attenuation,
    timed=True,
)
