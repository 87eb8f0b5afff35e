"""Two simulations of the same sequences, by equations and by MRzero, and one by isochromats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dipy_spinverse import load_fit
from dipy_spinverse.tissue_fractions import (
    MPRAGE,
    DoubleInversionPreparation,
    InversionPreparation,
    PulseqFile,
    SignalEquations,
    SpoiledGradientEcho,
    T2Preparation,
    TissueFractionModel,
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
        flash(InversionPreparation(0.5)),
        flash(InversionPreparation(0.5, adiabatic=True)),
        flash(DoubleInversionPreparation(3.2, 0.5)),
        flash(T2Preparation(0.1)),
        TurboSpinEcho(math.inf, 0.02, 4, 0.08, refocusing_angle=150),
        TurboSpinEcho(math.inf, 0.02, 3, 0.06, preparation=InversionPreparation(2.5)),
    ]


def signals(simulator, sequences):
    return simulator.signals(sequences, constants_of(TISSUES), B1, B0)


def test_diffusivities_of_mrzero_are_those_of_tissues_in_its_unit(monkeypatch):
    monkeypatch.setattr(mrzero, "SimData", lambda *quantities: quantities, raising=False)
    matter = mrzero._matter(*constants_of(TISSUES).T, torch.ones(3), torch.zeros(3))
    torch.testing.assert_close(matter[4], torch.tensor([3.04, 0.83, 0.7]))  # um^2/ms


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
        flash(InversionPreparation(0.5), centre=32, shot_interval=2.0),
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
    sequences = [flash(InversionPreparation(0.5)), flash(T2Preparation(0.1))]
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


N, FIELD_OF_VIEW = 8, 0.2  # samples and lines of k-space; m


def pulseq_file(path, ti, n_echoes=1):
    """A file of gradient echoes after an inversion, centre first; TR, and times of its echoes."""
    pp = pytest.importorskip("pypulseq")
    system = pp.Opts(
        max_grad=80, grad_unit="mT/m", max_slew=200, slew_unit="T/m/s", rf_dead_time=0,
        adc_dead_time=1e-5,
    )  # fmt: skip
    sequence, pulse_s, step_s, turn = pp.Sequence(system), 1e-4, 1e-3, N / FIELD_OF_VIEW
    read = pp.make_trapezoid("x", flat_area=turn, flat_time=6.4e-4, system=system)

    def tip(degrees, phase, use):
        angle, phase = math.radians(degrees), math.radians(phase)
        sequence.add_block(
            pp.make_block_pulse(
                angle, duration=pulse_s, phase_offset=phase, system=system, use=use
            )
        )

    def move(**areas):
        steps = [
            pp.make_trapezoid(axis, area=area, duration=step_s, system=system)
            for axis, area in areas.items()
        ]
        sequence.add_block(*steps)

    tip(180, 0, "inversion")
    move(z=4 * turn)
    sequence.add_block(pp.make_delay(ti - pulse_s - step_s))
    prepared = sequence.duration()[0]
    for k, line in enumerate(sorted(range(-N // 2, N // 2), key=abs)):
        phase = 50 * k * (k + 1) / 2 % 360
        sampling = pp.make_adc(
            N, duration=6.4e-4, delay=read.rise_time, phase_offset=math.radians(phase),
            system=system,
        )  # fmt: skip
        start = sequence.duration()[0] + pulse_s / 2
        tip(5, phase, "excitation")
        move(x=-read.area / 2, y=line / FIELD_OF_VIEW)
        echoes = []
        for _ in range(n_echoes):
            echoes.append(sequence.duration()[0] + pp.calc_duration(read) / 2 - start)
            sequence.add_block(read, sampling)
            move(x=-read.area)
        move(x=2 * turn, y=-line / FIELD_OF_VIEW)
    sequence.write(str(path))
    return (sequence.duration()[0] - prepared) / N, echoes


@needs_mrzero
def test_a_pulseq_file_has_the_contrast_of_the_centre_of_its_k_space(tmp_path):
    path = str(tmp_path / "flash.seq")
    tr, (te,) = pulseq_file(path, ti=0.5)
    found = signals(MRzeroSimulator(), [PulseqFile(path, 1e3 * FIELD_OF_VIEW / N)])
    expected = signals(SignalEquations(), [flash_after(0.5, tr, te)])
    # Half a sample from the centre, .04 ms, T2* takes .1 %; diffusion between spoilers .2 %.
    off = (found.abs() - expected.abs()).abs().max()
    assert off < 0.006 * expected.abs().max()
    assert (torch.sign(found * expected)[0] == torch.sign(found * expected)[0, 0]).all()


def flash_after(ti, tr, te):
    return SpoiledGradientEcho(tr, te, 5, InversionPreparation(ti), n_pulses=N)


@needs_mrzero
def test_each_pass_through_the_centre_of_k_space_is_an_image(tmp_path):
    path = str(tmp_path / "echoes.seq")
    _, (first, second) = pulseq_file(path, ti=1.0, n_echoes=2)
    files = [PulseqFile(path, 25.0, echo) for echo in (1, 2)]
    found = signals(MRzeroSimulator(), files)[0]
    decay = [math.exp((first - second) / tissue.t2_star_s) for tissue in TISSUES]
    np.testing.assert_allclose(found[:, 1] / found[:, 0], decay, rtol=2e-3)  # diffusion
    with pytest.raises(ValueError, match=r"echo is 17, .* passes the centre of k-space 2 times"):
        signals(MRzeroSimulator(), [PulseqFile(path, 25.0, 17)])


@needs_mrzero
def test_fractions_are_found_from_images_of_pulseq_files(tmp_path):
    described = []
    for ti in (0.1, 0.6, 1.5, 3.0):
        path = tmp_path / f"{ti}.seq"
        pulseq_file(path, ti)
        described.append({"type": "PulseqFile", "path": str(path), "voxel_mm": 25.0})
    model = TissueFractionModel(described, unknown=())
    truth = {"csf": [0.1, 0.0], "gm": [0.6, 0.2], "wm": [0.3, 0.5]}
    fit = model.fit(model.signals(truth), sigma=1e-6, n_draws=0)
    for name, fractions in truth.items():
        np.testing.assert_allclose(getattr(fit, name), fractions, atol=1e-3)  # float32
    fit.save(tmp_path / "fit.npz")
    again = load_fit(tmp_path / "fit.npz")
    np.testing.assert_allclose(again.predict(), fit.predict(), rtol=1e-6)


@needs_mrzero
def test_what_is_no_pulseq_file_is_named(tmp_path):
    path = tmp_path / "notes.seq"
    path.write_text("not a sequence")
    for each in (path, tmp_path / "nowhere.seq"):
        with pytest.raises(ValueError, match=rf"path .*{each.name} cannot be read"):
            signals(MRzeroSimulator(), [PulseqFile(str(each), 2.0)])


def test_equations_know_no_pulseq_file():
    with pytest.raises(ValueError, match="a PulseqFile, of which there is no equation"):
        signals(SignalEquations(), [PulseqFile("scan.seq", 2.0)])
    with pytest.raises(ValueError, match="voxel_mm of PulseqFile is 0"):
        PulseqFile("scan.seq", 0)


@needs_mrzero
def test_simulations_print_nothing(capfd):
    signals(MRzeroSimulator(), [flash(None)])
    assert capfd.readouterr().out == ""


@needs_mrzero
def test_pulses_that_take_time_are_refused():
    with pytest.raises(ValueError, match="pulse_duration is 0.001 s, but pulses of MRzero"):
        signals(MRzeroSimulator(), [flash(None, pulse_duration=0.001)])


@needs_mrzero
@pytest.mark.parametrize("name", ["te", "tr", "flip_angle"])
def test_slopes_by_parameters_of_sequences_are_refused(name):
    parameters = {"tr": 0.02, "te": 0.004, "flip_angle": 20.0}
    parameters[name] = torch.tensor(parameters[name], requires_grad=True)
    with pytest.raises(ValueError, match=f"{name} is a tensor with gradient"):
        signals(MRzeroSimulator(), [SpoiledGradientEcho(**parameters)])


def test_without_mrzero_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(mrzero, "mr0", None)
    with pytest.raises(ImportError, match=r"pip install dipy_spinverse\[mr\]"):
        MRzeroSimulator()


def test_steps_of_sequences_take_the_times_of_their_parameters():
    """Between pulses, and from an excitation to the echo; needs no MRzero."""
    flash = SpoiledGradientEcho(0.02, 0.004, 20, n_pulses=5, centre=2, shot_interval=0.5)
    steps, delay = mrzero._gradient_echoes(flash)
    times = [sum(time for time, _ in step.intervals) for step in steps]
    np.testing.assert_allclose(times, 0.02)
    assert sum(times) + delay == pytest.approx(0.5)
    (echo,) = (step for step in steps if step.echo is not None)
    assert steps.index(echo) == 2 and echo.intervals[0] == (0.004, 0)
    assert echo.intervals[1][1] != 0  # spoiled after the echo only
    train = TurboSpinEcho(3.0, 0.01, 4, 0.03)
    steps, delay = mrzero._spin_echoes(train)
    # Refocusing pulses at 1/2, 3/2, ... spacings, and echoes half a spacing after them.
    pulses = np.cumsum([0, *(sum(t for t, _ in step.intervals) for step in steps)])
    np.testing.assert_allclose(pulses, [0, 0.005, 0.015, 0.025, 0.035, 0.04])
    (k,) = (k for k, step in enumerate(steps) if step.echo is not None)
    assert pulses[k] + steps[k].intervals[0][0] == pytest.approx(0.03)
    assert pulses[-1] + delay == pytest.approx(3.0)
