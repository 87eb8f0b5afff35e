"""Signals of pure tissues by phase distribution graphs, as MRzero simulates them."""

from __future__ import annotations

import cmath
import math
import os
import sys
from collections.abc import Sequence as Sequences
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
from dipy_spinverse.tissue_fractions.tissues import PUBLISHED_TISSUES, constants_of

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
_PLAYS_FIRST = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # of two transmitters


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
            A sequence whose pulses take time, a file that is no Pulseq file.
        """
        shape = torch.broadcast_shapes(constants.shape[:-1], (*b1.shape, 1))
        each = [part.expand(shape).reshape(-1) for part in constants.unbind(dim=-1)]
        fields = [field[..., None].expand(shape).reshape(-1) for field in (b1, b0)]
        parts = [
            _of_file(sequence, *each, *fields)
            if isinstance(sequence, PulseqFile)
            else _signal(sequence, _matter(*each, *fields))
            for sequence in sequences
        ]
        return torch.stack(parts, dim=-1).reshape(*shape, len(sequences)).to(constants.dtype)


def _rephased(turns, nyquist):
    return (turns.abs().amax(dim=-1) < 0.01 * _SPOILER).to(torch.float32)


def _matter(density, t1, t2, t2_prime, diffusivity, b1, b0, left=_rephased):
    """A voxel of MRzero for each tissue and place, and what gradients leave of its signal."""
    values = [each.to(torch.float32) for each in (density, t1, t2, t2_prime, diffusivity, b0, b1)]
    # A second transmitter without errors plays the adiabatic pulses.
    transmit = torch.stack([values[-1], torch.ones_like(values[-1])])
    return SimData(
        *values[:-1], transmit, torch.ones_like(transmit[:1]), torch.ones(3), torch.eye(3, 4),
        torch.zeros(len(transmit[0]), 3), torch.full((3,), torch.inf), left,
    )  # fmt: skip


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
        case InversionPreparation(ti, adiabatic):
            return [_Step(180, 0, adiabatic, ((ti, first),))]
        case DoubleInversionPreparation(ti1, ti2, adiabatic):
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


def _of_file(file: PulseqFile, *values):
    """Signals (N,) of a whole scan that begins with relaxed tissue."""
    sequence, time = _outside(_played, file)
    graph = _outside(_graph, sequence)

    def left(turns, nyquist):
        return torch.sinc(turns * file.voxel_mm / 1e3).prod(dim=-1)

    def signals(*values):
        matter = _matter(*values, left)
        transverse = sum(_magnetisation(sequence, graph, matter)[-1])[0]
        return transverse * torch.exp(2j * math.pi * time * matter.B0)

    # Tissues differ by a sign: the brightest of these is positive, and has the others' axis.
    *known, b1, b0 = *constants_of(PUBLISHED_TISSUES).T, torch.ones(3), torch.zeros(3)
    reference = signals(*known, b1, b0)
    axis = reference[reference.abs().argmax()]
    return (signals(*values) * axis.conj() / axis.abs()).real


def _played(file: PulseqFile):
    """MRzero's sequence up to the centre of k-space, and for how long B0 acts there, s."""
    try:
        sequence = mr0.Sequence.import_file(
            file.path, exact_trajectories=False, default_shim=_PLAYS_FIRST.clone()
        )
    except Exception as error:  # of its parser, which has no class for them
        raise ValueError(f"path is {file.path}, no Pulseq file that MRzero reads: {error}") from (
            error
        )
    radius = sequence.get_kspace()[:, :3].norm(dim=1).numpy()
    if len(radius) == 0:
        raise ValueError(f"path is {file.path}, which samples no signal; give the file of a scan.")
    between = np.median(np.abs(np.diff(radius))) if len(radius) > 1 else 0.0
    near = radius <= radius.min() + between / 4
    passes = np.flatnonzero(near & ~np.append(False, near[:-1]))
    if file.echo > len(passes):
        raise ValueError(
            f"echo is {file.echo}, {file.path} passes the centre of k-space {len(passes)} times; "
            "give one of these passes, from 1."
        )
    sample = passes[file.echo - 1]
    samples = [(r, int(e)) for r, part in enumerate(sequence) for e in part.adc_usage.nonzero()]
    repetition, event = samples[sample]
    time = float(sequence.get_kspace()[sample, 3])
    del sequence[repetition + 1 :]
    for part in sequence:
        part.adc_usage[:] = 0
    sequence[-1].adc_usage[event] = 1
    return sequence, time


def _run(steps, matter, start, demodulation):
    """Signals (N,) of each echo of the steps, from this longitudinal magnetisation."""
    sequence = _outside(_sequence, steps)
    graph = _outside(_graph, sequence)
    magnetisation = _magnetisation(sequence, graph, matter, start)
    return [
        (sum(parts)[0] * demodulation * cmath.exp(-1j * math.radians(step.receiver))).real
        for step, parts in zip(steps, magnetisation, strict=True)
        if step.echo is not None
    ]


def _outside(function, argument):
    """Result in a thread of its own: plain tensors, inside of transforms of torch.func too."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, argument).result()


def _magnetisation(sequence, graph, matter, start=None):
    """Transverse magnetisation of the samples of each repetition."""
    return mr0.execute_graph(
        graph, sequence, matter, min_emitted_signal=0, min_latent_signal=_LEAST,
        print_progress=False, return_mag_adc=True,
        intitial_mag=None if start is None else start.to(torch.complex64),
    )[1]  # fmt: skip


def _sequence(steps):
    """Steps as MRzero has them."""
    sequence = mr0.Sequence(normalized_grads=False)
    for step in steps:
        repetition = sequence.new_rep(len(step.intervals))
        repetition.pulse.angle = torch.tensor(math.radians(step.degrees))
        repetition.pulse.phase = torch.tensor(math.radians(step.phase))
        repetition.pulse.shim_array = _PLAYS_FIRST.flip(0) if step.adiabatic else _PLAYS_FIRST
        times, turns = zip(*step.intervals, strict=True)
        repetition.event_time[:] = torch.tensor(times)
        repetition.gradm[:, 2] = torch.tensor(turns)
        if step.echo is not None:
            repetition.adc_usage[step.echo] = 1
    return sequence


def _graph(sequence):
    """Of the configurations that matter."""
    # They hardly depend on the tissue: those of one that lasts, in a transmit field with an
    # error, so that what ideal pulses do not make is not left out.
    field = torch.tensor([_GRAPH_B1])
    tipped = calc_avg_B1_trig(field[None], torch.ones_like(field))
    with _without_chatter():
        return mr0.compute_graph_ext(
            sequence, T1=1.0, T2=1.0, T2dash=1.0, D=0.0, max_state_count=_MOST,
            min_state_mag=_LEAST, avg_b1_trig=tipped,
        )  # fmt: skip


@contextmanager
def _without_chatter():
    """Leave out what compiled code prints, past Python's own output, of each graph."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
