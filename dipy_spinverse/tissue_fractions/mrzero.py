"""Signals of pure tissues by phase distribution graphs, as MRzero simulates them."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence as Sequences
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.sequences import (
    MPRAGE,
    DoubleInversion,
    Inversion,
    Sequence,
    SpoiledGradientEcho,
    T2Preparation,
    TurboSpinEcho,
)

try:
    import MRzeroCore as mr0
    from MRzeroCore.phantom.sim_data import SimData, calc_avg_B1_trig
except ImportError:
    mr0 = None

_SPOILER = 1.0  # turns across a voxel, whose transverse magnetisation any turn cancels
_RF_SPOILING = 50.0  # degrees, of the quadratic phase of excitations
_SETTLING = 100  # excitations until transverse magnetisation is periodic
_GRAPH_B1 = 0.87
_MOST = 64  # configurations at a time
_LEAST = 1e-4  # magnetisation of a configuration that is followed


@dataclass(frozen=True)
class _Step:
    """A pulse and what follows until the next: intervals (time, turns of the spoiler)."""

    degrees: float
    phase: float
    adiabatic: bool
    intervals: tuple[tuple[float, float], ...]
    echo: int | None = None  # the interval at the end of which the signal is read
    receiver: float = 0.0  # its phase, degrees


class MRzeroSimulator:
    """Phase distribution graphs of whole sequences; slower, with fewer assumptions.

    Beside :class:`SignalEquations` it follows what is transverse through the sequence: spoiling
    is by gradients and the phase of excitations, not ideal, so that stimulated echoes and the
    rest of an imperfect pulse are in the signal. Pulses take no time. Needs `MRzeroCore`
    (``pip install dipy_spinverse[mr]``). Differentiable by torch; computes in float32.

    Raises
    ------
    ImportError
        Without `MRzeroCore`.

    References
    ----------
    Endres et al., Magn. Reson. Med. 92 (2024), https://doi.org/10.1002/mrm.30055

    Examples
    --------
    >>> from dipy_spinverse.tissue_fractions import TissueFractionModel
    >>> flash = SpoiledGradientEcho(tr=0.02, te=0.004, flip_angle=20)
    >>> model = TissueFractionModel([flash], simulator=MRzeroSimulator())  # doctest: +SKIP
    """

    def __init__(self):
        if mr0 is None:
            raise ImportError(
                "MRzeroSimulator needs MRzeroCore; install it (pip install dipy_spinverse[mr]), "
                "or use SignalEquations."
            )

    def signals(
        self, sequences: Sequences[Sequence], constants: Tensor, b1: Tensor, b0: Tensor
    ) -> Tensor:
        """See :class:`MRSimulator`.

        Raises
        ------
        ValueError
            A sequence whose pulses take time.
        """
        shape = torch.broadcast_shapes(constants.shape[:-1], (*b1.shape, 1))
        each = [part.expand(shape).reshape(-1) for part in constants.unbind(dim=-1)]
        fields = [field[..., None].expand(shape).reshape(-1) for field in (b1, b0)]
        matter = _matter(*each, *fields)
        parts = [_signal(sequence, matter) for sequence in sequences]
        return torch.stack(parts, dim=-1).reshape(*shape, len(sequences)).to(constants.dtype)


def _matter(density, t1, t2, t2_prime, diffusivity, b1, b0):
    """A voxel of MRzero for each tissue and place."""
    values = [each.to(torch.float32) for each in (density, t1, t2, t2_prime, diffusivity, b0, b1)]
    # A second transmitter without errors plays the adiabatic pulses.
    transmit = torch.stack([values[-1], torch.ones_like(values[-1])])
    return SimData(
        *values[:-1], transmit, torch.ones_like(transmit[:1]), torch.ones(3), torch.eye(3, 4),
        torch.zeros(len(transmit[0]), 3), torch.full((3,), torch.inf), _rephased,
    )  # fmt: skip


def _rephased(turns, nyquist):
    return (turns.abs().amax(dim=-1) < 0.01 * _SPOILER).to(torch.float32)


def _signal(sequence, matter):
    if sequence.pulse_duration:
        raise ValueError(
            f"pulse_duration is {sequence.pulse_duration} s, pulses of MRzero take no time; give "
            "0, or use SignalEquations."
        )
    if isinstance(sequence, TurboSpinEcho):
        steps, rest = _spin_echoes(sequence)
        demodulation = 1j * torch.ones_like(matter.B0)
    else:
        if isinstance(sequence, MPRAGE):
            sequence = sequence.as_gradient_echo()
        steps, rest = _gradient_echoes(sequence)
        demodulation = 1j * torch.exp(2j * math.pi * matter.B0 * sequence.te)
    start = torch.ones_like(matter.T1)
    if math.isfinite(rest):
        end = [*steps, _Step(0, 0, False, ((rest, 1.0),)), _Step(90, 0, True, ((0, 0),), 0)]
        ends = [_run(end, matter, level * start, 1j / matter.PD)[-1] for level in (0.0, 1.0)]
        start = ends[0] / (1 - (ends[1] - ends[0]))
    return _run(steps, matter, start, demodulation)[0]


def _preparation(preparation):
    # Turns that none of the readout's cancel, nor each other.
    first, second = 97 * _SPOILER, 211 * _SPOILER
    match preparation:
        case None:
            return []
        case Inversion(ti, adiabatic):
            return [_Step(180, 0, adiabatic, ((ti, first),))]
        case DoubleInversion(ti1, ti2, adiabatic):
            return [
                _Step(180, 0, adiabatic, ((ti1 - ti2, first),)),
                _Step(180, 0, adiabatic, ((ti2, second),)),
            ]
        case T2Preparation(duration, adiabatic):
            return [
                _Step(90, 0, adiabatic, ((duration / 2, first),)),
                _Step(180, 90, adiabatic, ((duration / 2, first),)),
                _Step(90, 180, adiabatic, ((0, second),)),
            ]


def _gradient_echoes(sequence: SpoiledGradientEcho):
    """Steps of a shot, to the echo where all relaxes after it; and the rest, s."""
    rest, n, centre = sequence.shot_interval - sequence.duration, sequence.n_pulses, None
    if sequence.preparation is None and n == 1:
        rest, n = 0.0, _SETTLING
        centre = n - 1
    else:
        centre = sequence.centre
        n = n if math.isfinite(rest) else centre + 1
    intervals = ((sequence.te, 0), (sequence.tr - sequence.te, _SPOILER))
    excitations = [
        _Step(sequence.flip_angle, phase, False, intervals, 0 if k == centre else None, phase)
        for k, phase in enumerate(_RF_SPOILING * np.cumsum(np.arange(n)) % 360)
    ]
    return [*_preparation(sequence.preparation), *excitations], rest


def _spin_echoes(sequence: TurboSpinEcho):
    rest = sequence.tr - sequence.duration
    n = sequence.echo_train_length if math.isfinite(rest) else sequence.echo
    half = (sequence.echo_spacing / 2, _SPOILER)
    excitation = _Step(sequence.excitation_angle, 0, False, (half,))
    echoes = [
        _Step(
            sequence.refocusing_angle,
            90,
            False,
            (half, half) if k < n else (half,),
            0 if k == sequence.echo else None,
        )  # fmt: skip
        for k in range(1, n + 1)
    ]
    return [*_preparation(sequence.preparation), excitation, *echoes], rest


def _run(steps, matter, start, demodulation):
    """Signals (N,) of each echo of the steps, from this longitudinal magnetisation."""
    # In a thread of its own, tensors are plain ones inside of transforms of torch.func too.
    with ThreadPoolExecutor(1) as outside:
        sequence, graph = outside.submit(_followed, steps).result()
    _, magnetisation = mr0.execute_graph(
        graph, sequence, matter, min_emitted_signal=0, min_latent_signal=_LEAST,
        print_progress=False, return_mag_adc=True, intitial_mag=start.to(torch.complex64),
    )  # fmt: skip
    return [
        (sum(parts)[0] * demodulation * cmath.exp(-1j * math.radians(step.receiver))).real
        for step, parts in zip(steps, magnetisation, strict=True)
        if step.echo is not None
    ]


def _followed(steps):
    """The sequence as MRzero has it, and the graph of configurations that matter in it."""
    sequence = mr0.Sequence(normalized_grads=False)
    for step in steps:
        repetition = sequence.new_rep(len(step.intervals))
        repetition.pulse.angle = torch.tensor(math.radians(step.degrees))
        repetition.pulse.phase = torch.tensor(math.radians(step.phase))
        plays = [[0.0, 0.0], [1.0, 0.0]] if step.adiabatic else [[1.0, 0.0], [0.0, 0.0]]
        repetition.pulse.shim_array = torch.tensor(plays)
        times, turns = zip(*step.intervals, strict=True)
        repetition.event_time[:] = torch.tensor(times)
        repetition.gradm[:, 2] = torch.tensor(turns)
        if step.echo is not None:
            repetition.adc_usage[step.echo] = 1
    # They hardly depend on the tissue: those of one that lasts, in a transmit field with an
    # error, so that what ideal pulses do not make is not left out.
    field = torch.tensor([_GRAPH_B1])
    graph = mr0.compute_graph_ext(
        sequence, T1=1.0, T2=1.0, T2dash=1.0, D=0.0, max_state_count=_MOST, min_state_mag=_LEAST,
        avg_b1_trig=calc_avg_B1_trig(field[None], torch.ones_like(field)),
    )  # fmt: skip
    return sequence, graph
