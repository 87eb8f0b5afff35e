"""Two simulations of the same sequences, by equations and by MRzero, and one by isochromats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dipy_spinverse.tissue_fractions import (
    MPRAGE,
    DoubleInversion,
    Inversion,
    SignalEquations,
    SpoiledGradientEcho,
    T2Preparation,
    TurboSpinEcho,
    constants_of,
    mrzero,
    tissues_at,
)
from dipy_spinverse.tissue_fractions.mrzero import MRzeroSimulator

needs_mrzero = pytest.mark.skipif(mrzero.mr0 is None, reason="needs MRzeroCore")
TISSUES = tissues_at(3)
B1 = torch.tensor([1.0, 0.85, 1.15, 1.0], dtype=torch.float64)
B0 = torch.tensor([0.0, 0.0, 0.0, 20.0], dtype=torch.float64)


def flash(preparation, **more):
    return SpoiledGradientEcho(0.0056, 0.0025, 5, preparation, n_pulses=64, **more)


def relaxed_before():
    """Sequences in which nothing transverse lasts until the echo."""
    return [
        flash(None),
        flash(Inversion(0.5)),
        flash(Inversion(0.5, adiabatic=True)),
        flash(DoubleInversion(3.2, 0.5)),
        flash(T2Preparation(0.1)),
        TurboSpinEcho(math.inf, 0.02, 4, 0.08, refocusing_angle=150),
        TurboSpinEcho(math.inf, 0.02, 3, 0.06, preparation=Inversion(2.5)),
    ]


def signals(simulator, sequences):
    return simulator.signals(sequences, constants_of(TISSUES), B1, B0)


def echo_of_isochromats(sequence, tissue, b1, n=256):
    """Echo of n isochromats that crushers turn by all angles, pulses as rotations."""
    turns = np.exp(2j * np.pi * np.arange(n) / n)
    across, along = np.zeros(n, dtype=complex), np.ones(n)

    def wait(time):
        nonlocal across, along
        across = across * np.exp(-time / tissue.t2_s) * turns
        along = 1 + (along - 1) * np.exp(-time / tissue.t1_s)

    def tip(degrees, phase):
        nonlocal across, along
        angle = np.radians(degrees) * b1
        turned = across * np.exp(-1j * phase)
        y, z = turned.imag, along
        y, along = np.cos(angle) * y - np.sin(angle) * z, np.sin(angle) * y + np.cos(angle) * z
        across = (turned.real + 1j * y) * np.exp(1j * phase)

    tip(sequence.excitation_angle, 0)
    for _ in range(sequence.echo):
        wait(sequence.echo_spacing / 2)
        tip(sequence.refocusing_angle, np.pi / 2)
        wait(sequence.echo_spacing / 2)
    return tissue.proton_density * -across.mean().imag


@needs_mrzero
def test_equations_and_mrzero_agree_where_all_is_relaxed_before():
    sequences = relaxed_before()
    found, expected = signals(MRzeroSimulator(), sequences), signals(SignalEquations(), sequences)
    # MRzero computes in float32 and leaves configurations below 1e-4 out.
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-4)


@needs_mrzero
def test_steady_states_differ_by_the_stimulated_echoes_that_equations_leave_out():
    sequences = [
        flash(Inversion(0.5), centre=32, shot_interval=2.0),
        TurboSpinEcho(0.5, 0.015, 1, 0.015),
        MPRAGE(2.3, 0.9, 0.003, 9, 0.007, 32),
    ]
    found, expected = signals(MRzeroSimulator(), sequences), signals(SignalEquations(), sequences)
    largest = expected.abs().amax(dim=(0, 1))
    # 1 to 2 %, of CSF, whose T2 is many repetitions.
    assert ((found - expected).abs() / largest).max() < 0.03


@pytest.mark.parametrize(
    "simulator", [SignalEquations, pytest.param(MRzeroSimulator, marks=needs_mrzero)]
)
@pytest.mark.parametrize("b1", [1.0, 0.85])
def test_trains_of_spin_echoes_are_those_of_isochromats(simulator, b1):
    train = TurboSpinEcho(math.inf, 0.02, 4, 0.08, refocusing_angle=150)
    field = torch.tensor(b1, dtype=torch.float64)
    found = simulator().signals([train], constants_of(TISSUES), field, 0 * field)[:, 0]
    expected = [echo_of_isochromats(train, tissue, b1) for tissue in TISSUES]
    # float32, and configurations below 1e-4.
    np.testing.assert_allclose(found, expected, atol=3e-4)


@needs_mrzero
def test_derivatives_by_constants_are_those_of_the_equations():
    sequences = [flash(Inversion(0.5)), flash(T2Preparation(0.1))]
    logarithms = torch.log(constants_of(TISSUES))
    slopes = []
    for simulator in (MRzeroSimulator(), SignalEquations()):

        def by_logarithms(x, simulator=simulator):
            return simulator.signals(sequences, torch.exp(x), B1, B0)

        direction = torch.zeros_like(logarithms)
        direction[:, 1] = 1
        slopes.append(torch.func.jvp(by_logarithms, (logarithms,), (direction,))[1])
    # float32.
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-4)


@needs_mrzero
def test_pulses_that_take_time_are_refused():
    with pytest.raises(ValueError, match="pulse_duration is 0.001 s, pulses of MRzero take no"):
        signals(MRzeroSimulator(), [flash(None, pulse_duration=0.001)])


def test_without_mrzero_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(mrzero, "mr0", None)
    with pytest.raises(ImportError, match=r"pip install dipy_spinverse\[mr\]"):
        MRzeroSimulator()
