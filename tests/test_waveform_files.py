"""Waveforms that are read from files, and samples that are refused."""

from __future__ import annotations

import numpy as np
import pytest

from dipy_spinverse.acquisition.encodings import (
    b_tensor_encoding,
    double_diffusion,
    oscillating_gradients,
    pulsed_gradients,
)
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.waveform_files import (
    _spin_echoes,
    read_pulseq,
    read_text_waveforms,
)
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO

TRAPEZOID = np.array([[0, 0, 0], *[[1, 0, 0]] * 8, [0, 0, 0]])  # 9 intervals


def write_samples(path, samples, style="siemens"):
    separator = {"siemens": "  ", "ge": ","}[style]
    lines = [separator.join(f"{x:.5f}" for x in row) for row in samples]
    header = [f"{len(samples):8d}"] if style == "siemens" else ["x,y,z"]
    path.write_text("\r\n".join([*header, *lines]) + "\n")
    return path


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("style", ["siemens", "ge"])
def test_text_of_trapezoids_is_the_pulsed_gradient_with_ramps(tmp_path, style):
    path = write_samples(tmp_path / "lobe.txt", 0.7 * TRAPEZOID, style)
    read = read_text_waveforms(
        path, path, b=[1.0, 2.0], duration_before=9, duration_after=9, pause=11, te=40
    )
    made = pulsed_gradients([1.0, 2.0], [[1, 0, 0]] * 2, 8, 20, ramp=1, te=40)
    t = np.linspace(0, 40, 81)
    np.testing.assert_allclose(read.waveforms[0].q(t), made.waveforms[0].q(t), atol=1e-12)
    np.testing.assert_allclose(read.b, [1, 2])


def test_parts_of_different_length_have_the_refocusing_pulse_in_the_middle(tmp_path):
    before = write_samples(tmp_path / "a.txt", TRAPEZOID)
    after = write_samples(tmp_path / "b.txt", 2 * TRAPEZOID)
    read = read_text_waveforms(
        before, after, b=[1.0], duration_before=9, duration_after=4.5, pause=6
    )
    assert read.te == pytest.approx(24)
    on = read.waveforms[0].times[1:-1]
    assert (on.min(), on.max()) == pytest.approx((1.0, 19.5))


def test_rotations_turn_the_b_tensors(tmp_path):
    path = write_samples(tmp_path / "lobe.txt", TRAPEZOID)
    turn = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])  # x to y
    read = read_text_waveforms(
        path, path, b=[1.0, 1.0], duration_before=9, duration_after=9, pause=11,
        rotations=[np.eye(3), turn],
    )  # fmt: skip
    np.testing.assert_allclose(read.directions, [[1, 0, 0], [0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pause": -1}, "pause are 9, 9 and -1 ms"),
        ({"duration_before": 0}, "duration_before, .* are 0"),
        ({"te": 20.0}, "te is 20 ms, but the encoding takes 29 ms"),
        ({"rotations": np.eye(3)}, r"rotations has shape \(3, 3\)"),
        ({"rotations": [2 * np.eye(3)]}, "rotations: .* is 3 at measurement 0"),
        ({"b": [-1.0]}, "b is"),
        ({"duration_after": 8}, "do not refocus"),
    ],
)
def test_bad_arguments_of_text_waveforms_are_refused(tmp_path, change, message):
    path = write_samples(tmp_path / "lobe.txt", TRAPEZOID)
    arguments = {"b": [1.0], "duration_before": 9, "duration_after": 9, "pause": 11}
    with pytest.raises(ValueError, match=message):
        read_text_waveforms(path, path, **arguments | change)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "at least two rows"), ("1 0 0\n1 0\n", "line 2 is '1 0'"), ("nan 0 0\n1 0 0", "finite")],
)
def test_bad_text_waveforms_are_refused(tmp_path, text, message):
    path = tmp_path / "lobe.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_text_waveforms(path, path, b=[1.0], duration_before=9, duration_after=9, pause=11)


# ---------------------------------------------------------------- Pulseq


def write_sequence(path, refocusing=True, directions=((1, 0, 0), (0, 0.6, 0.8))):
    """Spin echoes: trapezoids of 8 ms with ramps of 0.5 ms, 20 ms apart, 30 mT/m, TE 40 ms."""
    pypulseq = pytest.importorskip("pypulseq")
    system = pypulseq.Opts(max_grad=80, grad_unit="mT/m", max_slew=200, slew_unit="T/m/s")
    sequence = pypulseq.Sequence(system)
    pulses = [
        pypulseq.make_block_pulse(angle, duration=1e-3, system=system, use=use)
        for angle, use in ((np.pi / 2, "excitation"), (np.pi, "refocusing"))
    ]
    if not refocusing:
        pulses[1] = pypulseq.make_block_pulse(0.1, duration=1e-3, system=system, use="inversion")
    readout = pypulseq.make_adc(10, duration=1e-3, system=system)
    ring_down = system.rf_ringdown_time
    for direction in directions:
        lobes = [
            pypulseq.make_trapezoid(
                axis, amplitude=0.03 * system.gamma * component, rise_time=5e-4, flat_time=7.5e-3,
                fall_time=5e-4, system=system,
            )
            for axis, component in zip("xyz", direction, strict=True)
            if component
        ]  # fmt: skip

        def wait(seconds):
            sequence.add_block(pypulseq.make_delay(round(seconds, 8)))

        sequence.add_block(pulses[0])
        wait(5e-3 - ring_down)
        sequence.add_block(*lobes)
        after_lobe = 40e-3 / 2 - (0.5e-3 + 5e-3 + 8.5e-3 + 0.5e-3)
        wait(after_lobe)
        sequence.add_block(pulses[1])
        wait(20e-3 - 8.5e-3 - after_lobe - 1e-3 - ring_down)
        sequence.add_block(*lobes)
        wait(5e-3)
        sequence.add_block(readout)
        wait(50e-3)
    sequence.write(str(path))
    return path, sequence.system.gamma


def test_pulseq_sequence_is_the_pulsed_gradient_that_was_written(tmp_path):
    path, gamma = write_sequence(tmp_path / "spin_echo.seq")
    read = read_pulseq(path)
    delta, separation, ramp = 8.0, 20.0, 0.5
    np.testing.assert_allclose(read.te, 40, atol=1e-3)
    factor = delta**2 * (separation - delta / 3) + ramp**3 / 30 - delta * ramp**2 / 6
    b = (2 * np.pi * gamma * 0.03e-9) ** 2 * factor
    # Pulseq writes amplitudes with six digits
    np.testing.assert_allclose(read.b, b, rtol=1e-5)
    np.testing.assert_allclose(read.directions, [[1, 0, 0], [0, 0.6, 0.8]], atol=1e-5)
    assert len(read.waveforms) == 1


@pytest.mark.parametrize(("turns", "echo"), [([20], 40), ([10, 30], 40), ([10, 30, 45], 50)])
def test_the_echo_is_where_the_refocusing_pulses_put_it(turns, echo):
    # between pulses the phase of a resting offset runs forth and back, and is zero at the echo
    excitations, readout = np.array([1.0]), np.array([1.2])
    refocusings = 1 + np.array(turns) / 1000
    ((start, te, found),) = _spin_echoes("", excitations, refocusings, readout, None)
    assert (start, te) == (1.0, pytest.approx(echo))
    np.testing.assert_allclose(found, turns)


def test_refocusing_pulses_without_an_echo_are_refused():
    refocusings = 1 + np.array([10, 40, 55]) / 1000
    with pytest.raises(ValueError, match="make no echo"):
        _spin_echoes("", np.array([1.0]), refocusings, np.array([1.2]), None)


def test_pulseq_sequence_without_refocusing_is_refused(tmp_path):
    path, _ = write_sequence(tmp_path / "gradient_echo.seq", refocusing=False)
    with pytest.raises(ValueError, match="no refocusing pulse"):
        read_pulseq(path)


# ---------------------------------------------------------------- samples that are refused

LOBE = np.zeros((40, 3))
LOBE[:10, 0], LOBE[30:, 0] = 0.05, -0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"gradients_T_per_m": [np.abs(LOBE)]},
            "do not refocus: .* at measurement 0; .*refocusing_s",
        ),
        ({"gradients_T_per_m": [LOBE, LOBE[:-1]]}, "do not refocus: .* at measurement 1"),
        ({"gradients_T_per_m": []}, "is empty"),
        ({"gradients_T_per_m": [LOBE[:, :2]]}, r"shape \(40, 2\) at measurement 0"),
        ({"gradients_T_per_m": [LOBE * np.nan]}, "finite"),
        ({"gradients_T_per_m": [1000 * LOBE]}, "looks like mT/m"),
        ({"gradients_T_per_m": "wave"}, "gradients_T_per_m"),
        ({"dt_s": 0}, "dt_s is 0"),
        ({"dt_s": 0.5}, "dt_s is 0.5"),
        ({"dt_s": [1e-3, 1e-3]}, r"dt_s has shape \(2,\)"),
        ({"te": 0.03}, "te is 0.03 s at measurement 0"),
        ({"te": 40}, "te is 40 s, which looks like milliseconds"),
        ({"storage_s": (0.02, 0.01)}, "storage_s is"),
        ({"storage_s": (0.005, 0.02)}, "not zero during storage_s"),
    ],
)
def test_bad_samples_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WaveformAcquisition.from_samples(**{"gradients_T_per_m": [LOBE], "dt_s": 1e-3} | arguments)


def test_waveforms_that_disagree_with_the_gradient_table_are_refused():
    acquisition = WaveformAcquisition.from_samples([LOBE], 1e-3)
    gtab = acquisition.to_gtab()
    with pytest.raises(
        ValueError, match="difference of the b-tensors of gtab and waveforms is 21 % of b"
    ):
        WaveformAcquisition.from_samples([1.1 * LOBE], 1e-3, gtab=gtab)
    with pytest.raises(ValueError, match="gtab has 1 measurements"):
        WaveformAcquisition.from_samples([LOBE, LOBE], 1e-3, gtab=gtab)
    gtab.btens[0, 0, 1] = 500
    with pytest.raises(ValueError, match="not symmetric"):
        WaveformAcquisition.from_samples([LOBE], 1e-3, gtab=gtab)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pulsed_gradients([1], [[1, 0, 0]], 8, 7), "big_delta is 7 ms"),
        (lambda: pulsed_gradients([1], [[1, 0, 0]], 8, 20, ramp=9), "small_delta is 8 ms"),
        (lambda: pulsed_gradients([1], [[1, 0, 0]], 8, 20, te=20), "te is 20 ms"),
        (lambda: pulsed_gradients([1], [[1, 0, 0]], 8, 20, mixing_time=13), "mixing_time is 13"),
        (lambda: pulsed_gradients([1], [[2, 0, 0]], 8, 20), "not a unit vector"),
        (lambda: pulsed_gradients([-1], [[1, 0, 0]], 8, 20), "b is -1"),
        (lambda: double_diffusion([1], [[1, 0, 0]], [[1, 0, 0]], 8, 20, 5), "mixing_time is 5"),
        (lambda: oscillating_gradients([1], [[1, 0, 0]], 10, 1.5, 30), "n_periods is 1.5"),
        (lambda: oscillating_gradients([1], [[1, 0, 0]], 10, 2, 5), "separation is 5 ms"),
        (lambda: oscillating_gradients([1], [[1, 0, 0]], 10, 2, 30, shape="saw"), "shape is"),
        (lambda: b_tensor_encoding([[[1, 1, 0], [0, 1, 0], [0, 0, 1]]], 40), "not symmetric"),
        (lambda: b_tensor_encoding([np.diag([1, 1, -1])], 40), "eigenvalue of b_tensors is -1"),
        (lambda: b_tensor_encoding(np.eye(3), 40), r"shape \(3, 3\)"),
    ],
)
def test_encodings_that_cannot_be_played_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_strength_of_samples_is_in_tesla_per_metre():
    acquisition = WaveformAcquisition.from_samples([LOBE], 1e-3)
    q = GYROMAGNETIC_RATIO * 0.05 * 0.01 * 1e-6  # rad/um after 10 ms
    np.testing.assert_allclose(acquisition.b, q**2 * (30 - 10 / 3), rtol=1e-12)
