"""Signals of pure tissues by the phase distribution graphs of MRzero."""

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

from dipy_spinverse.tissue_fractions.mr_simulator import is_variable
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
from dipy_spinverse.units import MM2_PER_S

try:
    import MRzeroCore as mr0
    from MRzeroCore.phantom.sim_data import SimData, calc_avg_B1_trig
except ImportError:
    mr0 = None

_SPOILER = 1.0  # cycles of dephasing across a voxel; any integer cancels its signal
_RF_SPOILING = 50.0  # degrees, increment of the quadratic phase, as on Siemens scanners
_STEADY_STATE = 100  # excitations until transverse magnetisation is stationary; by hand
_GRAPH_B1 = 0.87  # imperfect pulses, so that the graph has the configurations they create; by hand
_MOST_CONFIGURATIONS = 64  # at a time
_LEAST_MAGNETISATION = 1e-4  # of configurations that are simulated
_TRANSMITTER_1 = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # amplitude and phase of two


@dataclass(frozen=True)
class _Step:
    """A pulse and the intervals (time, cycles of the spoiler) until the next."""

    degrees: float
    phase: float
    adiabatic: bool
    intervals: tuple[tuple[float, float], ...]
    echo: int | None = None  # interval at the end of which the signal is sampled
    receiver: float = 0.0  # phase, degrees


class MRzeroSimulator:
    """Phase distribution graphs of complete sequences [1]_; slower, with fewer assumptions.

    Unlike :class:`SignalEquations` it includes transverse magnetisation between pulses: spoiling
    is by gradients and RF phase, with stimulated echoes and the effects of imperfect pulses.
    Pulses are instantaneous. Needs `MRzeroCore` (``pip install dipy_spinverse[mr]``).
    Differentiable by constants, B1 and B0; computes in float32.

    Raises
    ------
    ImportError
        Without `MRzeroCore`.

    References
    ----------
    .. [1] Endres et al., Magn. Reson. Med. 92 (2024), https://doi.org/10.1002/mrm.30055

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
            A sequence with pulses of finite duration or with parameters that are tensors with
            gradient, a file that is not a Pulseq file.
        """
        for sequence in sequences:
            parts = vars(sequence), vars(getattr(sequence, "preparation", None) or sequence)
            names = [name for part in parts for name, value in part.items() if is_variable(value)]
            if names:
                raise ValueError(
                    f"{names[0]} is a tensor with gradient, but MRzeroSimulator differentiates by "
                    "constants, B1 and B0 only; use SignalEquations."
                )
        shape = torch.broadcast_shapes(constants.shape[:-1], (*b1.shape, 1))
        quantities = [quantity.expand(shape).reshape(-1) for quantity in constants.unbind(dim=-1)]
        fields = [field[..., None].expand(shape).reshape(-1) for field in (b1, b0)]
        signals = [
            _file_signals(sequence, *quantities, *fields)
            if isinstance(sequence, PulseqFile)
            else _signal(sequence, _matter(*quantities, *fields))
            for sequence in sequences
        ]
        return torch.stack(signals, dim=-1).reshape(*shape, len(sequences)).to(constants.dtype)


def _rephased(cycles, nyquist):
    return (cycles.abs().amax(dim=-1) < 0.01 * _SPOILER).to(torch.float32)


def _matter(density, t1, t2, t2_prime, diffusivity, b1, b0, dephasing=_rephased):
    """MRzero voxels, one per tissue and field, with the signal loss by dephasing."""
    quantities = density, t1, t2, t2_prime, MM2_PER_S * diffusivity, b0, b1
    values = [quantity.to(torch.float32) for quantity in quantities]
    # The second transmitter, without field errors, is for adiabatic pulses.
    transmit = torch.stack([values[-1], torch.ones_like(values[-1])])
    return SimData(
        *values[:-1], transmit, torch.ones_like(transmit[:1]), torch.ones(3), torch.eye(3, 4),
        torch.zeros(len(transmit[0]), 3), torch.full((3,), torch.inf), dephasing,
    )  # fmt: skip


def _signal(sequence, matter):
    if sequence.pulse_duration:
        raise ValueError(
            f"pulse_duration is {sequence.pulse_duration} s, but pulses of MRzero are "
            "instantaneous; give 0, or use SignalEquations."
        )
    if isinstance(sequence, TurboSpinEcho):
        steps, delay = _spin_echoes(sequence)
        demodulation = 1j * torch.ones_like(matter.B0)
    else:
        if isinstance(sequence, MPRAGE):
            sequence = sequence.as_gradient_echo()
        steps, delay = _gradient_echoes(sequence)
        demodulation = 1j * torch.exp(2j * math.pi * matter.B0 * sequence.te)
    start = torch.ones_like(matter.T1)
    if math.isfinite(delay):
        to_steady_state = [
            *steps,
            _Step(0, 0, False, ((delay, 1.0),)),
            _Step(90, 0, True, ((0, 0),), 0),
        ]
        finals = [
            _run(to_steady_state, matter, level * start, 1j / matter.PD)[-1]
            for level in (0.0, 1.0)
        ]
        start = finals[0] / (1 - (finals[1] - finals[0]))
    return _run(steps, matter, start, demodulation)[0]


def _preparation(preparation):
    # Cycles that neither the readout nor the other spoiler can rephase.
    spoiler_1, spoiler_2 = 97 * _SPOILER, 211 * _SPOILER
    match preparation:
        case None:
            return []
        case InversionPreparation(ti, adiabatic):
            return [_Step(180, 0, adiabatic, ((ti, spoiler_1),))]
        case DoubleInversionPreparation(ti1, ti2, adiabatic):
            return [
                _Step(180, 0, adiabatic, ((ti1 - ti2, spoiler_1),)),
                _Step(180, 0, adiabatic, ((ti2, spoiler_2),)),
            ]
        case T2Preparation(duration, adiabatic):
            return [
                _Step(90, 0, adiabatic, ((duration / 2, spoiler_1),)),
                _Step(180, 90, adiabatic, ((duration / 2, spoiler_1),)),
                _Step(90, 180, adiabatic, ((0, spoiler_2),)),
            ]


def _gradient_echoes(sequence: SpoiledGradientEcho):
    """Steps of a shot (up to the echo if followed by complete relaxation), and its delay, s."""
    delay, n = sequence.shot_interval - sequence.duration, sequence.n_pulses
    if sequence.preparation is None and n == 1:
        delay, n = 0.0, _STEADY_STATE
        centre = n - 1
    else:
        centre = sequence.centre
        n = n if math.isfinite(delay) else centre + 1
    intervals = ((sequence.te, 0), (sequence.tr - sequence.te, _SPOILER))
    excitations = [
        _Step(sequence.flip_angle, phase, False, intervals, 0 if k == centre else None, phase)
        for k, phase in enumerate(_RF_SPOILING * np.cumsum(np.arange(n)) % 360)
    ]
    return [*_preparation(sequence.preparation), *excitations], delay


def _spin_echoes(sequence: TurboSpinEcho):
    delay = sequence.tr - sequence.duration
    n = sequence.echo_train_length if math.isfinite(delay) else sequence.echo
    half_spacing = (sequence.echo_spacing / 2, _SPOILER)
    excitation = _Step(sequence.excitation_angle, 0, False, (half_spacing,))
    echoes = [
        _Step(
            sequence.refocusing_angle,
            90,
            False,
            (half_spacing, half_spacing) if k < n else (half_spacing,),
            0 if k == sequence.echo else None,
        )  # fmt: skip
        for k in range(1, n + 1)
    ]
    return [*_preparation(sequence.preparation), excitation, *echoes], delay


def _file_signals(file: PulseqFile, *values):
    """Signals (N,) of a complete scan from equilibrium."""
    sequence, time = _in_thread(_up_to_centre, file)
    graph = _in_thread(_graph, sequence)

    def dephasing(cycles, nyquist):
        return torch.sinc(cycles * file.voxel_mm / 1e3).prod(dim=-1)

    def signals(*values):
        matter = _matter(*values, dephasing)
        transverse = sum(_magnetisation(sequence, graph, matter)[-1])[0]
        return transverse * torch.exp(2j * math.pi * time * matter.B0)

    # Tissues differ in sign: along the phase of the brightest published one, which is positive.
    *published, b1, b0 = *constants_of(PUBLISHED_TISSUES).T, torch.ones(3), torch.zeros(3)
    reference = signals(*published, b1, b0)
    axis = reference[reference.abs().argmax()]
    return (signals(*values) * axis.conj() / axis.abs()).real


def _up_to_centre(file: PulseqFile):
    """MRzero's sequence up to the centre of k-space, and the precession time there, s."""
    try:
        sequence = mr0.Sequence.import_file(
            file.path, exact_trajectories=False, default_shim=_TRANSMITTER_1.clone()
        )
    except Exception as error:  # of its parser, without a class of its own
        raise ValueError(f"path {file.path} cannot be read as a Pulseq file: {error}") from error
    radius = sequence.get_kspace()[:, :3].norm(dim=1).numpy()
    if len(radius) == 0:
        raise ValueError(f"path {file.path} has no readout; give the file of a scan.")
    spacing = np.median(np.abs(np.diff(radius))) if len(radius) > 1 else 0.0
    central = radius <= radius.min() + spacing / 4
    passes = np.flatnonzero(central & ~np.append(False, central[:-1]))
    if file.echo > len(passes):
        raise ValueError(
            f"echo is {file.echo}, {file.path} passes the centre of k-space {len(passes)} times; "
            "give one of these passes, from 1."
        )
    sample = passes[file.echo - 1]
    samples = [(r, int(e)) for r, rep in enumerate(sequence) for e in rep.adc_usage.nonzero()]
    repetition, event = samples[sample]
    time = float(sequence.get_kspace()[sample, 3])
    del sequence[repetition + 1 :]
    for rep in sequence:
        rep.adc_usage[:] = 0
    sequence[-1].adc_usage[event] = 1
    return sequence, time


def _run(steps, matter, start, demodulation):
    """Signals (N,) of each echo of the steps, from initial longitudinal magnetisation."""
    sequence = _in_thread(_sequence, steps)
    graph = _in_thread(_graph, sequence)
    magnetisation = _magnetisation(sequence, graph, matter, start)
    return [
        (sum(samples)[0] * demodulation * cmath.exp(-1j * math.radians(step.receiver))).real
        for step, samples in zip(steps, magnetisation, strict=True)
        if step.echo is not None
    ]


def _in_thread(function, argument):
    """Result computed in another thread: plain tensors, also within torch.func transforms."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, argument).result()


def _magnetisation(sequence, graph, matter, start=None):
    """Transverse magnetisation of the samples of each repetition."""
    return mr0.execute_graph(
        graph, sequence, matter, min_emitted_signal=0, min_latent_signal=_LEAST_MAGNETISATION,
        print_progress=False, return_mag_adc=True,
        intitial_mag=None if start is None else start.to(torch.complex64),
    )[1]  # fmt: skip


def _sequence(steps):
    """MRzero sequence of steps."""
    sequence = mr0.Sequence(normalized_grads=False)
    for step in steps:
        repetition = sequence.new_rep(len(step.intervals))
        repetition.pulse.angle = torch.tensor(math.radians(step.degrees))
        repetition.pulse.phase = torch.tensor(math.radians(step.phase))
        repetition.pulse.shim_array = _TRANSMITTER_1.flip(0) if step.adiabatic else _TRANSMITTER_1
        times, cycles = zip(*step.intervals, strict=True)
        repetition.event_time[:] = torch.tensor(times)
        repetition.gradm[:, 2] = torch.tensor(cycles)
        if step.echo is not None:
            repetition.adc_usage[step.echo] = 1
    return sequence


def _graph(sequence):
    """Graph of the relevant configurations, which hardly depend on the tissue."""
    field = torch.tensor([_GRAPH_B1])
    tipped = calc_avg_B1_trig(field[None], torch.ones_like(field))
    with _silenced():
        return mr0.compute_graph_ext(
            sequence, T1=1.0, T2=1.0, T2dash=1.0, D=0.0, max_state_count=_MOST_CONFIGURATIONS,
            min_state_mag=_LEAST_MAGNETISATION, avg_b1_trig=tipped,
        )  # fmt: skip


@contextmanager
def _silenced():
    """Suppress the standard output of compiled code, which bypasses that of Python."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
