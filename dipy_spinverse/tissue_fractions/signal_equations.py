"""Signal equations of gradient and spin echoes, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass

import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.mr_simulator import is_variable
from dipy_spinverse.tissue_fractions.sequences import (
    MPRAGE,
    DoubleInversionPreparation,
    InversionPreparation,
    Sequence,
    SpoiledGradientEcho,
    T2Preparation,
    TurboSpinEcho,
)


class SignalEquations:
    """Closed forms of spoiled gradient echoes, extended phase graphs of spin echoes.

    A sequence maps longitudinal magnetisation as ``M -> a M + b``; the periodic steady state is
    ``b / (1 - a)``. Transverse magnetisation is spoiled before each excitation; inversions and
    crushers are ideal except for their flip angle. Diffusion is neglected. Differentiable by
    constants, B1, B0 and parameters of sequences that are tensors [1]_, [2]_.

    References
    ----------
    .. [1] Ernst and Anderson, Rev. Sci. Instrum. 37 (1966), https://doi.org/10.1063/1.1719961
    .. [2] Hennig, J. Magn. Reson. 78 (1988), https://doi.org/10.1016/0022-2364(88)90128-X

    Examples
    --------
    >>> from dipy_spinverse.tissue_fractions import constants_of, tissues_at
    >>> flash = SpoiledGradientEcho(tr=0.02, te=0.004, flip_angle=20)
    >>> one = torch.ones((), dtype=torch.float64)
    >>> signals = SignalEquations().signals([flash], constants_of(tissues_at(3)), one, 0 * one)
    >>> csf, gm, wm = signals[:, 0]
    >>> bool(csf < gm < wm)
    True
    """

    def signals(
        self, sequences: Sequences[Sequence], constants: Tensor, b1: Tensor, b0: Tensor
    ) -> Tensor:
        """See :class:`MRSimulator`.

        Raises
        ------
        ValueError
            A sequence without a signal equation.
        """
        for sequence in sequences:
            if type(sequence) not in _SIGNALS:
                raise ValueError(
                    f"sequences has a {type(sequence).__name__}, of which there is no equation; "
                    "use MRzeroSimulator."
                )
            if isinstance(sequence, TurboSpinEcho) and is_variable(sequence.effective_te):
                raise ValueError(
                    "effective_te is a tensor with gradient, but it is rounded to an echo; "
                    "differentiate by echo_spacing."
                )
        density, t1, t2, t2_prime, _ = constants.unbind(dim=-1)
        matter = _Matter(t1, t2, 1 / (1 / t2 + 1 / t2_prime), b1[..., None], b0[..., None])
        shape = torch.broadcast_shapes(density.shape, matter.b1.shape)
        signals = [density * _SIGNALS[type(s)](s, matter) for s in sequences]
        return torch.stack([signal.expand(shape) for signal in signals], dim=-1)


@dataclass(frozen=True)
class _Matter:
    """Relaxation times (..., T) and fields (..., 1)."""

    t1: Tensor
    t2: Tensor
    t2_star: Tensor
    b1: Tensor
    b0: Tensor

    def cosine_and_sine(self, degrees, duration):
        """Of the angle by which a rectangular pulse rotates longitudinal magnetisation."""
        angle = degrees * (math.pi / 180) * self.b1  # `degrees` may be a tensor
        if duration == 0:
            return torch.cos(angle), torch.sin(angle)
        precession = 2 * math.pi * self.b0 * duration
        # Rotation about the effective field. 1e-24 keeps the roots differentiable at 0.
        rotation = torch.sqrt(angle**2 + precession**2 + 1e-24)
        half_sine, half_cosine = torch.sin(rotation / 2), torch.cos(rotation / 2)
        transverse, axial = angle / rotation * half_sine, precession / rotation * half_sine
        remaining = torch.sqrt(half_cosine**2 + axial**2 + 1e-24)
        return 1 - 2 * transverse**2, 2 * transverse * remaining


@dataclass(frozen=True)
class _Affine:
    """Map of longitudinal magnetisation M by a piece of a sequence: a M + b."""

    a: Tensor = torch.tensor(1.0, dtype=torch.float64)  # noqa: RUF009
    b: Tensor = torch.tensor(0.0, dtype=torch.float64)  # noqa: RUF009

    def then(self, following: _Affine) -> _Affine:
        return _Affine(following.a * self.a, following.a * self.b + following.b)

    def __call__(self, magnetisation):
        return self.a * magnetisation + self.b

    @property
    def periodic(self) -> Tensor:
        return self.b / (1 - self.a)


def _recovery(time, matter):
    decay = torch.exp(-time / matter.t1)
    return _Affine(decay, 1 - decay)


def _inversion(matter, adiabatic, duration):
    return _Affine(-1.0 if adiabatic else matter.cosine_and_sine(180, duration)[0])


def _preparation(preparation, matter, duration):
    match preparation:
        case None:
            return _Affine()
        case InversionPreparation(ti, adiabatic):
            return _inversion(matter, adiabatic, duration).then(_recovery(ti, matter))
        case DoubleInversionPreparation(ti1, ti2, adiabatic):
            inversion = _inversion(matter, adiabatic, duration)
            between_inversions = _recovery(ti1 - ti2, matter)
            twice = inversion.then(between_inversions).then(inversion)
            return twice.then(_recovery(ti2, matter))
        case T2Preparation(time, adiabatic):
            decay = torch.exp(-time / matter.t2)
            if adiabatic:
                return _Affine(decay)
            cosine, sine = matter.cosine_and_sine(90, duration)
            refocusing = matter.cosine_and_sine(180, duration)[0]
            recovery = _recovery(time / 2, matter)
            axial = _Affine(cosine).then(recovery).then(_Affine(refocusing)).then(recovery)
            # Crushers dephase transverse magnetisation that the pulse does not refocus.
            echo = sine**2 * decay * (1 - refocusing) / 2
            return _Affine(cosine * axial.a + echo, cosine * axial.b)


def _pulses(n, cosine, tr, matter):
    """n excitations, each followed by recovery."""
    pulse = _Affine(cosine).then(_recovery(tr, matter))
    a = pulse.a**n
    return _Affine(a, (1 - a) * pulse.periodic)


def _gradient_echo(sequence: SpoiledGradientEcho | MPRAGE, matter: _Matter) -> Tensor:
    if isinstance(sequence, MPRAGE):
        sequence = sequence.as_gradient_echo()
    cosine, sine = matter.cosine_and_sine(sequence.flip_angle, sequence.pulse_duration)
    if sequence.preparation is None and sequence.n_pulses == 1:
        magnetisation = _pulses(1, cosine, sequence.tr, matter).periodic
    else:
        prepared = _preparation(sequence.preparation, matter, sequence.pulse_duration)
        shot = prepared.then(_pulses(sequence.n_pulses, cosine, sequence.tr, matter))
        start = _start(shot, sequence.shot_interval - sequence.duration, matter)
        to_centre = prepared.then(_pulses(sequence.centre, cosine, sequence.tr, matter))
        magnetisation = to_centre(start)
    return magnetisation * sine * torch.exp(-sequence.te / matter.t2_star)


def _start(shot, delay, matter):
    """Magnetisation at the beginning of a shot that is repeated after a delay."""
    if math.isinf(delay):
        return torch.ones_like(matter.t1)
    return shot.then(_recovery(delay, matter)).periodic


def _spin_echoes(sequence: TurboSpinEcho, matter: _Matter) -> Tensor:
    prepared = _preparation(sequence.preparation, matter, sequence.pulse_duration)
    echo, final = _echo_train(
        matter.cosine_and_sine(sequence.excitation_angle, sequence.pulse_duration),
        matter.cosine_and_sine(sequence.refocusing_angle, sequence.pulse_duration),
        sequence, matter.t1, matter.t2,
    )  # fmt: skip
    train = _Affine(final[1] - final[0], final[0])
    start = _start(prepared.then(train), sequence.tr - sequence.duration, matter)
    return torch.lerp(echo[0], echo[1], prepared(start))


def _echo_train(excitation, refocusing, sequence, t1, t2):
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


_SIGNALS: dict[type, Callable[..., Tensor]] = {
    SpoiledGradientEcho: _gradient_echo, MPRAGE: _gradient_echo, TurboSpinEcho: _spin_echoes,
}  # fmt: skip
