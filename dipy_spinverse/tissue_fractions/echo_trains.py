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
    """Echo at the centre of k-space, and what is longitudinal after the train.

    Configurations F+_k, F-_k and Z_k of k turns by the crushers are mixed by pulses, decay, and
    are shifted by half of an echo spacing. Excitation and refocusing are a quarter of a turn
    apart (CPMG).

    Parameters
    ----------
    excitation, refocusing : (Tensor, Tensor)
        Cosine and sine (...) of the pulses.
    sequence : TurboSpinEcho
    t1, t2 : Tensor (...)
        s.

    Returns
    -------
    echo, after : Tensor (2, ...)
        For longitudinal magnetisation 0 and 1 before the excitation; both are affine in it.

    References
    ----------
    Weigel, J. Magn. Reson. Imaging 41 (2015), https://doi.org/10.1002/jmri.24619
    """
    shape = torch.broadcast_shapes(excitation[0].shape, t1.shape)
    before = torch.stack([torch.zeros(shape, dtype=t1.dtype), torch.ones(shape, dtype=t1.dtype)])
    n_orders = 2 * sequence.echo_train_length + 1
    rest = torch.zeros((2, *shape, n_orders - 1), dtype=t1.dtype)
    transverse = torch.cat([(before * excitation[1])[..., None], rest], dim=-1).to(
        torch.complex128
    )
    stored = torch.cat([(before * excitation[0])[..., None], rest], dim=-1).to(torch.complex128)
    state = transverse, transverse, stored
    half = sequence.echo_spacing / 2
    relaxation = torch.exp(-half / t1)[..., None], torch.exp(-half / t2)[..., None]
    cosine, sine = (part[..., None] for part in refocusing)
    echo = state[0][..., 0].real
    for n in range(1, sequence.echo_train_length + 1):
        state = _shifted(*_relaxed(state, *relaxation))
        state = _refocused(state, cosine, sine)
        state = _shifted(*_relaxed(state, *relaxation))
        if n == sequence.echo:
            echo = state[0][..., 0].real
    return echo, state[2][..., 0].real


def _relaxed(state, e1, e2):
    plus, minus, stored = state
    recovered = torch.nn.functional.pad(1 - e1, (0, stored.shape[-1] - 1))
    return plus * e2, minus * e2, stored * e1 + recovered


def _shifted(plus, minus, stored):
    minus = torch.nn.functional.pad(minus[..., 1:], (0, 1))
    plus = torch.cat([minus[..., :1].conj(), plus[..., :-1]], dim=-1)
    return plus, minus, stored


def _refocused(state, cosine, sine):
    plus, minus, stored = state
    keeps, swaps = (1 + cosine) / 2, (1 - cosine) / 2
    tipped = 1j * sine * stored
    return (
        keeps * plus + swaps * minus - tipped,
        swaps * plus + keeps * minus + tipped,
        cosine * stored - 0.5j * sine * (plus - minus),
    )
