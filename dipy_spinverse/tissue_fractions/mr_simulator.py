"""Signals of pure tissues in MR images: the protocol, and signal equations in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.echo_trains import echo_train
from dipy_spinverse.tissue_fractions.sequences import (
    MPRAGE,
    DoubleInversionPreparation,
    InversionPreparation,
    PulseqFile,
    Sequence,
    SpoiledGradientEcho,
    T2Preparation,
    TurboSpinEcho,
)


class MRSimulator(Protocol):
    """Signals of pure tissues in images.

    What a :class:`TissueFractionModel` asks of the physics.
    """

    def signals(
        self, sequences: Sequences[Sequence], constants: Tensor, b1: Tensor, b0: Tensor
    ) -> Tensor:
        """Signals (..., T, C) of each tissue in each image, real, with their sign.

        Parameters
        ----------
        sequences : sequence of Sequence
            C of them.
        constants : Tensor (..., T, 5)
            In the order of `tissues.CONSTANTS`.
        b1 : Tensor (...)
            Flip angles over the nominal ones.
        b0 : Tensor (...)
            Off-resonance, Hz.
        """


class SignalEquations:
    """Closed forms of spoiled gradient echoes, extended phase graphs of spin echoes.

    Longitudinal magnetisation goes through a sequence as ``M -> a M + b``, so that periodic
    steady states are ``b / (1 - a)``. What is transverse is spoiled before each excitation;
    inversions and crushers are ideal but for their flip angle. Differentiable by torch in
    constants, B1 and B0. Diffusion between gradients of an image is not in it.

    References
    ----------
    Ernst and Anderson, Rev. Sci. Instrum. 37 (1966), https://doi.org/10.1063/1.1719961;
    Hennig, J. Magn. Reson. 78 (1988), https://doi.org/10.1016/0022-2364(88)90128-X

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
            A sequence that they have no equation of.
        """
        for each in sequences:
            if type(each) not in _SIGNALS:
                raise ValueError(
                    f"sequences has a {type(each).__name__}, of which there is no equation; use "
                    "MRzeroSimulator."
                )
        density, t1, t2, t2_prime, _ = constants.unbind(dim=-1)
        matter = _Matter(t1, t2, 1 / (1 / t2 + 1 / t2_prime), b1[..., None], b0[..., None])
        shape = torch.broadcast_shapes(density.shape, matter.b1.shape)
        parts = [
            (density * _SIGNALS[type(each)](each, matter)).expand(shape) for each in sequences
        ]
        return torch.stack(parts, dim=-1)


@dataclass(frozen=True)
class _Matter:
    """Relaxation times (..., T) and fields (..., 1)."""

    t1: Tensor
    t2: Tensor
    t2_star: Tensor
    b1: Tensor
    b0: Tensor

    def cosine_and_sine(self, degrees, duration):
        """Of the angle by which a rectangular pulse tips the longitudinal magnetisation."""
        angle = math.radians(degrees) * self.b1
        if duration == 0:
            return torch.cos(angle), torch.sin(angle)
        off = 2 * math.pi * self.b0 * duration
        # The axis of rotation is tilted towards z; tiny: the root has a slope at 0.
        turn = torch.sqrt(angle**2 + off**2 + 1e-24)
        half_sine, half_cosine = torch.sin(turn / 2), torch.cos(turn / 2)
        across, along = angle / turn * half_sine, off / turn * half_sine
        rest = torch.sqrt(half_cosine**2 + along**2 + 1e-24)
        return 1 - 2 * across**2, 2 * across * rest


@dataclass(frozen=True)
class _Affine:
    """What a part of a sequence makes of longitudinal magnetisation: a M + b."""

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
    remains = torch.exp(-time / matter.t1)
    return _Affine(remains, 1 - remains)


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
            first = inversion.then(_recovery(ti1 - ti2, matter))
            return first.then(inversion).then(_recovery(ti2, matter))
        case T2Preparation(time, adiabatic):
            decay = torch.exp(-time / matter.t2)
            if adiabatic:
                return _Affine(decay)
            cosine, sine = matter.cosine_and_sine(90, duration)
            refocusing = matter.cosine_and_sine(180, duration)[0]
            half = _recovery(time / 2, matter)
            stored = _Affine(cosine).then(half).then(_Affine(refocusing)).then(half)
            # Of the transverse part, crushers leave what the pulse refocuses.
            echo = sine**2 * decay * (1 - refocusing) / 2
            return _Affine(cosine * stored.a + echo, cosine * stored.b)


def _pulses(n, cosine, tr, matter):
    """n excitations, each followed by recovery."""
    recovery = _recovery(tr, matter)
    each = _Affine(cosine).then(recovery)
    remains = each.a**n
    return _Affine(remains, (1 - remains) * each.periodic)


def _gradient_echo(sequence: SpoiledGradientEcho, matter: _Matter) -> Tensor:
    cosine, sine = matter.cosine_and_sine(sequence.flip_angle, sequence.pulse_duration)
    if sequence.preparation is None and sequence.n_pulses == 1:
        before = _pulses(1, cosine, sequence.tr, matter).periodic
    else:
        prepared = _preparation(sequence.preparation, matter, sequence.pulse_duration)
        shot = prepared.then(_pulses(sequence.n_pulses, cosine, sequence.tr, matter))
        start = _start(shot, sequence.shot_interval - sequence.duration, matter)
        before = prepared.then(_pulses(sequence.centre, cosine, sequence.tr, matter))(start)
    return before * sine * torch.exp(-sequence.te / matter.t2_star)


def _start(shot, rest, matter):
    """Magnetisation at the beginning of a shot that is repeated after a rest."""
    if math.isinf(rest):
        return torch.ones_like(matter.t1)
    return shot.then(_recovery(rest, matter)).periodic


def _mprage(sequence: MPRAGE, matter: _Matter) -> Tensor:
    return _gradient_echo(sequence.as_gradient_echo(), matter)


def _spin_echoes(sequence: TurboSpinEcho, matter: _Matter) -> Tensor:
    prepared = _preparation(sequence.preparation, matter, sequence.pulse_duration)
    echo, after = echo_train(
        matter.cosine_and_sine(sequence.excitation_angle, sequence.pulse_duration),
        matter.cosine_and_sine(sequence.refocusing_angle, sequence.pulse_duration),
        sequence, matter.t1, matter.t2,
    )  # fmt: skip
    train = _Affine(after[1] - after[0], after[0])
    start = _start(prepared.then(train), sequence.tr - sequence.duration, matter)
    return torch.lerp(echo[0], echo[1], prepared(start))


_SIGNALS: dict[type, Callable[..., Tensor]] = {
    SpoiledGradientEcho: _gradient_echo, MPRAGE: _mprage, TurboSpinEcho: _spin_echoes,
}  # fmt: skip


def simulator_of(sequences: Sequences[Sequence]) -> MRSimulator:
    """The fastest that knows all of them."""
    if any(isinstance(each, PulseqFile) for each in sequences):
        from dipy_spinverse.tissue_fractions.mrzero import MRzeroSimulator

        return MRzeroSimulator()
    return SignalEquations()
