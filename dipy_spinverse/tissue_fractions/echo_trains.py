"""Echoes of a train of refocusing pulses, by extended phase graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.sequences import TurboSpinEcho


def echo_train(
    excitation: tuple[Tensor, Tensor],
    refocusing: tuple[Tensor, Tensor],
    sequence: TurboSpinEcho,
    t1: Tensor,
    t2: Tensor,
) -> tuple[Tensor, Tensor]:
    """Echo at the centre of k-space and final longitudinal magnetisation, each (2, ...).

    For longitudinal magnetisation 0 and 1 before the excitation: both are affine in it. Pulses,
    cosine and sine (...), mix the configurations F+_k, F-_k and Z_k, dephased k times by the
    crushers; in each half of an echo spacing they relax and their order rises by one. The phases
    of excitation and refocusing differ by 90 degrees (CPMG); https://doi.org/10.1002/jmri.24619.
    """
    shape = torch.broadcast_shapes(excitation[0].shape, t1.shape)
    initial = torch.stack([torch.zeros(shape, dtype=t1.dtype), torch.ones(shape, dtype=t1.dtype)])
    higher_orders = torch.zeros((2, *shape, 2 * sequence.echo_train_length), dtype=t1.dtype)
    longitudinal, transverse = (
        torch.cat([(initial * factor)[..., None], higher_orders], dim=-1).to(torch.complex128)
        for factor in excitation
    )
    state = transverse, transverse, longitudinal
    half_spacing = sequence.echo_spacing / 2
    relaxation = [torch.exp(-half_spacing / t)[..., None] for t in (t1, t2)]
    cosine, sine = (factor[..., None] for factor in refocusing)
    echo = state[0][..., 0].real
    for n in range(1, sequence.echo_train_length + 1):
        state = _shifted(*_relaxed(state, *relaxation))
        state = _refocused(state, cosine, sine)
        state = _shifted(*_relaxed(state, *relaxation))
        if n == sequence.echo:
            echo = state[0][..., 0].real
    return echo, state[2][..., 0].real


def _relaxed(state, e1, e2):
    plus, minus, longitudinal = state
    recovered = torch.nn.functional.pad(1 - e1, (0, longitudinal.shape[-1] - 1))
    return plus * e2, minus * e2, longitudinal * e1 + recovered


def _shifted(plus, minus, longitudinal):
    minus = torch.nn.functional.pad(minus[..., 1:], (0, 1))
    plus = torch.cat([minus[..., :1].conj(), plus[..., :-1]], dim=-1)
    return plus, minus, longitudinal


def _refocused(state, cosine, sine):
    plus, minus, longitudinal = state
    keeps, swaps = (1 + cosine) / 2, (1 - cosine) / 2
    rotated = 1j * sine * longitudinal
    return (
        keeps * plus + swaps * minus - rotated,
        swaps * plus + keeps * minus + rotated,
        cosine * longitudinal - 0.5j * sine * (plus - minus),
    )
