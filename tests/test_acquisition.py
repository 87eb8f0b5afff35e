"""Acquisition: what it reads, what it knows, what it refuses."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest
import scipy.constants
from dipy.core.gradients import gradient_table, unique_bvals_magnitude

from dipy_spinverse import PackedCellsModel
from dipy_spinverse.acquisition import (
    BaseAcquisition,
    acquisition_from_arrays,
    as_acquisition,
    require_pulsed,
)
from dipy_spinverse.acquisition.encodings import concatenate, double_diffusion, pulsed_gradients
from dipy_spinverse.acquisition.files import read_text
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO

AXES = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0]])
BVALS = np.array([0.0, 1000, 1000, 2000, 3000])
GOOD = {
    "b": BVALS / 1000,
    "directions": AXES,
    "small_delta": 10.0,
    "big_delta": 40.0,
    "te": 80.0,
}
STIMULATED = {"te": 36.0, "mixing_time": [20.0, 20, 20, 15, 20]}
# One rounding of a product or quotient in float64
ROUNDING = 1e-12


def acquisition(**changes) -> Acquisition:
    return Acquisition(**{**GOOD, **changes})


def gtab(**changes):
    arguments = {"bvecs": AXES, "big_delta": 0.04, "small_delta": 0.01, **changes}
    return gradient_table(BVALS, **arguments)


def write_scheme(path, rows, header="VERSION: STEJSKALTANNER\n"):
    path.write_text(header + "\n".join(" ".join(f"{x:.9g}" for x in row) for row in rows) + "\n")
    return path


def write_bids(folder, fields):
    np.savetxt(folder / "sub-01_dwi.bval", BVALS[None], fmt="%g")
    np.savetxt(folder / "sub-01_dwi.bvec", AXES.T, fmt="%g")
    path = folder / "sub-01_dwi.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return path


# What it knows


def test_q_and_gradient_follow_from_b_and_timing():
    a = acquisition()
    time = 40 - 10 / 3
    np.testing.assert_allclose(a.diffusion_time, time, rtol=ROUNDING)
    np.testing.assert_allclose(a.q, np.sqrt(a.b / time), rtol=ROUNDING)
    np.testing.assert_allclose(a.q_vectors, a.q[:, None] * AXES, rtol=ROUNDING, atol=ROUNDING)
    q_per_m = GYROMAGNETIC_RATIO * a.gradient_t_per_m * 10e-3
    np.testing.assert_allclose(q_per_m * 1e-6, a.q, rtol=ROUNDING)


def test_gradient_strength_agrees_with_dipy():
    table = gtab()
    mine = Acquisition.from_gtab(table).gradient_t_per_m
    # DIPY gives T/mm, with a gyromagnetic ratio that is 8e-6 smaller
    np.testing.assert_allclose(mine, table.gradient_strength * 1000, rtol=2e-5)


def test_gyromagnetic_ratio_is_that_of_the_proton_in_water():
    codata = scipy.constants.physical_constants["shielded proton gyromag. ratio"][0]
    # Camino's digits stop where CODATA values of the last decades still moved
    assert GYROMAGNETIC_RATIO == pytest.approx(codata, rel=1e-6)


def test_numbers_hold_for_all_measurements():
    a = Acquisition(b=1, directions=AXES[1:], small_delta=10, big_delta=40)
    assert a.b.shape == a.small_delta.shape == a.big_delta.shape == a.te.shape == (4,)
    assert len(Acquisition(b=[1, 2, 3], directions=[0, 0, 1], small_delta=1, big_delta=9)) == 3
    assert len(Acquisition(b=1, directions=[0, 0, 1], small_delta=1, big_delta=9)) == 1


def test_echo_time_defaults_to_the_end_of_the_second_pulse():
    np.testing.assert_array_equal(acquisition(te=None).te, 50.0)


def test_without_echo_times_timings_share_one_and_its_signal_without_diffusion():
    shared = acquisition(te=None, big_delta=[0, 20, 40, 40, 60], small_delta=[0, 10, 10, 10, 10])
    assert shared.echo_times.tolist() == [70] and len(shared.timings) == 3
    assert shared.b0_per_te.sum() == 1


def test_echo_time_short_by_rounding_is_the_end_of_the_second_pulse():
    np.testing.assert_array_equal(acquisition(te=49.999).te, 50.0)


def test_timings_and_echo_times_are_distinct_and_sorted():
    a = acquisition(big_delta=[40, 20, 20, 40, 40], te=[80, 60, 60, 80, 60])
    np.testing.assert_array_equal(a.timings, [[10, 20, 60], [10, 40, 60], [10, 40, 80]])
    np.testing.assert_array_equal(a.timing_index, [2, 0, 0, 2, 1])
    np.testing.assert_array_equal(a.echo_times, [60, 80])
    np.testing.assert_array_equal(a.te_index, [1, 0, 0, 1, 0])


def test_rounding_does_not_split_a_timing():
    big = np.array([0.0431 * 1000, 43.1, 43.1 + 1e-9, 43.1 - 1e-9, 43.1])
    a = acquisition(big_delta=big, te=80 + 1e-9 * np.arange(5))
    assert len(a.timings) == 1
    assert len(a.echo_times) == 1


def test_b0_are_known_per_echo_time_and_per_timing():
    a = acquisition(b=[0, 1, 0, 0.04, 3], te=[60, 60, 80, 80, 80])
    np.testing.assert_array_equal(a.b0_mask, [1, 0, 1, 1, 0])
    np.testing.assert_array_equal(a.b0_per_te, [[1, 0, 0, 0, 0], [0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(a.b0_per_timing, a.b0_per_te)


def test_b0_have_the_gradient_of_their_b():
    a = acquisition(b=[0.04, 1, 1, 2, 3], directions=AXES[[1, 1, 2, 3, 4]])
    assert a.b0_mask[0] and a.b[0] == 0.04
    assert a.gradient_t_per_m[0] == pytest.approx(0.2 * a.gradient_t_per_m[1])
    np.testing.assert_array_equal(a.directions[0], a.directions[1])
    assert not a.direction_averaged.any()
    without = acquisition(b=[0.04, 1, 1, 2, 3], directions=AXES[[0, 1, 2, 3, 4]])
    assert without.direction_averaged.tolist() == [True] + [False] * 4
    np.testing.assert_allclose(without.b_tensors[0], 0.04 / 3 * np.eye(3))


def test_undefined_directions_of_b0_do_not_matter():
    directions = AXES.copy()
    directions[0] = np.nan
    np.testing.assert_array_equal(acquisition(directions=directions).directions[0], 0)


def test_directions_are_normalised_exactly():
    a = acquisition(directions=AXES * 1.005)
    np.testing.assert_allclose(np.linalg.norm(a.directions[1:], axis=1), 1, rtol=ROUNDING)


def test_b0_without_pulses_get_the_timing_of_their_echo_time():
    a = acquisition(
        b=[0, 1, 0, 2, 3],
        small_delta=[0, 5, 0, 10, 10],
        big_delta=[0, 20, 0, 40, 40],
        te=[60, 60, 80, 80, 80],
    )
    np.testing.assert_array_equal(a.timings, [[5, 20, 60], [10, 40, 80]])
    np.testing.assert_array_equal(a.timing_index, [0, 0, 1, 1, 1])


def test_a_stimulated_echo_is_transverse_for_its_echo_time_and_stored_for_its_mixing_time():
    echo = acquisition(te=36.0, mixing_time=20.0)
    (waveforms,) = echo.waveforms
    assert waveforms.echo_time == pytest.approx(36) and waveforms.mixing_time == pytest.approx(20)
    # One diffusion weighting, whether the magnetisation is stored between the pulses or not.
    np.testing.assert_allclose(waveforms.b_tensors(), echo.b_tensors, atol=1e-9)
    assert waveforms.symmetric().all() and waveforms.refocused().all()
    assert acquisition(te=None, mixing_time=30).te.tolist() == [20] * 5


def test_each_mixing_time_has_its_own_signal_without_diffusion():
    echo = acquisition(b=[0, 0, 1, 2, 3], te=36.0, mixing_time=[15, 20, 20, 15, 15])
    assert echo.echo_times.tolist() == [36, 36] and echo.mixing_times.tolist() == [15, 20]
    assert echo.b0_per_te.tolist() == [[True, *[False] * 4], [False, True, *[False] * 3]]
    assert len(echo.timings) == 2 and echo.te_index.tolist() == [0, 1, 1, 0, 0]


def test_seconds_of_a_stimulated_echo_are_those_of_dipy():
    echo = Acquisition.from_gtab(gtab(), te=0.036, mixing_time=0.02)
    assert echo.te[0] == pytest.approx(36) and echo.mixing_time[0] == pytest.approx(20)
    with pytest.raises(ValueError, match="mixing_time is 20 s, which looks like milliseconds"):
        Acquisition.from_gtab(gtab(), te=0.036, mixing_time=20)


def test_averages_over_directions_need_none_and_turn_with_nothing():
    powder = acquisition(directions=np.zeros(3), isotropic=True)
    assert powder.isotropic.tolist() == [False, True, True, True, True]  # not at b0
    # The average of b n n^T over the sphere.
    np.testing.assert_allclose(powder.b_tensors[4], np.eye(3))
    made_up = acquisition(isotropic=[0, 1, 0, 0, 0])
    assert not made_up.directions[1].any() and made_up.directions[2].any()
    assert "4 averages over directions" in repr(powder)
    assert powder.subset([0, 1]).isotropic.tolist() == [False, True]


def test_averages_over_directions_are_read_without_bvecs(tmp_path):
    np.savetxt(tmp_path / "bval", BVALS[None])
    np.savetxt(tmp_path / "isotropic", [0, 1, 1, 1, 1])
    timing = {"big_delta": 0.04, "small_delta": 0.01}
    for said in (True, tmp_path / "isotropic"):
        read = Acquisition.from_files(tmp_path / "bval", isotropic=said, **timing)
        assert read.isotropic.sum() == 4 and not read.directions.any()
    with pytest.raises(ValueError, match="zero vector; .*isotropic=True"):
        Acquisition.from_files(tmp_path / "bval", **timing)


def test_an_average_is_not_taken_for_a_measurement_of_one_direction():
    powder = acquisition(isotropic=True)
    for what in (lambda: powder.q_vectors, lambda: powder.waveforms):
        with pytest.raises(ValueError, match="averages over directions.*PackedCellsModel"):
            what()
    with pytest.raises(ValueError, match="a gradient table cannot"):
        powder.to_gtab()


def test_arrays_are_read_only_copies():
    b = BVALS / 1000
    a = acquisition(b=b)
    b[1] = 7
    assert a.b[1] == 1
    for name in ("b", "directions", "small_delta", "big_delta", "te", "q", "q_vectors", "timings",
                 "timing_index", "echo_times", "te_index", "b0_mask", "b0_per_te"):  # fmt: skip
        with pytest.raises(ValueError, match="read-only"):
            getattr(a, name)[0] = 1


def test_attributes_cannot_be_replaced():
    with pytest.raises(AttributeError):
        acquisition().b = 1


@pytest.mark.parametrize(
    "index", [slice(1, 3), [3, 0], BVALS > 0, np.array([2, 2]), 4, -1], ids=str
)
def test_subset_takes_everything_along(index):
    a = acquisition(big_delta=[20, 30, 40, 50, 60], te=[71, 72, 73, 74, 75], b0_threshold=0.01)
    part = a.subset(index)
    assert len(part) == np.atleast_1d(np.arange(5)[index]).size
    assert part.b0_threshold == 0.01
    for name in ("b", "directions", "small_delta", "big_delta", "te", "q"):
        whole = getattr(a, name)
        np.testing.assert_array_equal(
            getattr(part, name), whole[index].reshape(-1, *whole.shape[1:])
        )


def test_empty_subset_is_refused():
    with pytest.raises(ValueError, match="b and directions have shapes"):
        acquisition().subset([False] * 5)


def test_repr_counts():
    text = repr(acquisition(te=[80, 80, 80, 80, 90]))
    assert text == (
        "Acquisition(5 measurements, 1 b0, 3 shells, b <= 3 ms/um^2, 2 timings, 2 echo times)"
    )


def test_survives_pickling():
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(acquisition())).q, acquisition().q)


# Gradient tables


@pytest.mark.parametrize("deltas", ["numbers", "arrays"])
def test_gradient_table_comes_back_as_it_went(deltas):
    times = {"big_delta": 0.0431, "small_delta": 0.0106}
    if deltas == "arrays":
        times = {"big_delta": np.linspace(0.02, 0.06, 5), "small_delta": np.full(5, 0.007)}
    there = gtab(**times, b0_threshold=20)
    a = Acquisition.from_gtab(there, te=0.09)
    back = a.to_gtab()
    for name in ("bvals", "bvecs", "big_delta", "small_delta"):
        want = np.asarray(getattr(there, name))
        np.testing.assert_allclose(getattr(back, name), want + 0 * getattr(back, name), rtol=1e-12)
    assert back.b0_threshold == 20
    assert back.btens is None
    assert back.big_delta.shape == back.small_delta.shape == (5,)
    again = Acquisition.from_gtab(back, te=a.te / 1000)
    for name in ("b", "directions", "small_delta", "big_delta", "te"):
        np.testing.assert_allclose(getattr(again, name), getattr(a, name), rtol=1e-12)


def test_dipy_sees_the_shells_of_the_acquisition():
    np.testing.assert_array_equal(
        unique_bvals_magnitude(acquisition().to_gtab().bvals), [0, 1000, 2000, 3000]
    )


def test_b0_threshold_of_the_gradient_table_holds():
    table = gradient_table([5, 30, 1000], bvecs=AXES[1:4], big_delta=0.04, small_delta=0.01)
    np.testing.assert_array_equal(Acquisition.from_gtab(table).b0_mask, [1, 1, 0])
    table = gradient_table(
        [5, 30, 1000], bvecs=AXES[1:4], big_delta=0.04, small_delta=0.01, b0_threshold=10
    )
    np.testing.assert_array_equal(Acquisition.from_gtab(table).b0_mask, [1, 0, 0])


@pytest.mark.parametrize("missing", ["big_delta", "small_delta"])
def test_missing_deltas_say_how_to_give_them(missing):
    with pytest.raises(ValueError, match=rf"{missing} is None.*gradient_table\(.*from_files"):
        Acquisition.from_gtab(gtab(**{missing: None}))


def test_sliced_gradient_table_points_to_subset():
    table = gtab(big_delta=np.full(5, 0.04))[[1, 2]]
    with pytest.raises(ValueError, match=r"big_delta has shape \(5,\).*Acquisition.subset"):
        Acquisition.from_gtab(table)


def test_linear_b_tensors_pass_and_others_are_refused():
    assert len(Acquisition.from_gtab(gtab(btens="LTE"))) == 5
    with pytest.raises(ValueError, match="gtab.btens.*LTE"):
        Acquisition.from_gtab(gtab(btens="STE"))
    table = gtab(btens="LTE")
    table.btens[2, 0, 1] += 1
    with pytest.raises(ValueError, match="gtab.btens is not symmetric: .* at measurement 2"):
        Acquisition.from_gtab(table)


# Files


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("as_paths", [False, True])
def test_files_and_arrays_in_either_orientation_are_the_same(tmp_path, transposed, as_paths):
    bvals, bvecs = BVALS, AXES.T if transposed else AXES
    times = {"big_delta": np.linspace(0.02, 0.06, 5), "small_delta": 0.01, "te": 0.09}
    if as_paths:
        np.savetxt(tmp_path / "dwi.bval", bvals[None])
        np.savetxt(tmp_path / "dwi.bvec", bvecs)
        bvals, bvecs = str(tmp_path / "dwi.bval"), tmp_path / "dwi.bvec"
        for name, value in times.items():
            times[name] = tmp_path / f"{name}.txt"
            np.savetxt(times[name], np.atleast_1d(value))
    a = Acquisition.from_files(bvals, bvecs, **times)
    np.testing.assert_allclose(a.b, BVALS / 1000, rtol=ROUNDING)
    np.testing.assert_allclose(a.directions, AXES, atol=ROUNDING)
    np.testing.assert_allclose(a.big_delta, [20, 30, 40, 50, 60], rtol=ROUNDING)
    np.testing.assert_allclose(a.small_delta, 10, rtol=ROUNDING)
    np.testing.assert_allclose(a.te, 90, rtol=ROUNDING)


def test_deltas_may_be_numbers_as_text_as_on_a_command_line():
    a = Acquisition.from_files(BVALS, AXES, big_delta="0.04", small_delta="0.01")
    np.testing.assert_allclose(a.big_delta, 40, rtol=ROUNDING)


def test_delta_file_may_be_a_row_or_separated_by_commas(tmp_path):
    path = tmp_path / "big.delta"
    path.write_text("0.02, 0.03,0.04\t0.05 0.06\n")
    a = Acquisition.from_files(BVALS, AXES, big_delta=path, small_delta=0.01)
    np.testing.assert_allclose(a.big_delta, [20, 30, 40, 50, 60], rtol=ROUNDING)


def test_delta_file_of_the_wrong_length_is_refused(tmp_path):
    (tmp_path / "big.txt").write_text("0.02 0.03")
    with pytest.raises(ValueError, match=r"big_delta has shape \(2,\) for 5 measurements"):
        Acquisition.from_files(BVALS, AXES, big_delta=tmp_path / "big.txt", small_delta=0.01)


def test_delta_file_of_words_is_refused(tmp_path):
    (tmp_path / "big.txt").write_text("forty")
    with pytest.raises(ValueError, match="big_delta: .*big.txt is not a text file of numbers"):
        Acquisition.from_files(BVALS, AXES, big_delta=tmp_path / "big.txt", small_delta=0.01)


def test_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.bval"):
        Acquisition.from_files(tmp_path / "none.bval", AXES, big_delta=0.04, small_delta=0.01)
    with pytest.raises(FileNotFoundError, match="none.txt"):
        Acquisition.from_files(BVALS, AXES, big_delta=tmp_path / "none.txt", small_delta=0.01)


@pytest.mark.parametrize("bvecs", [AXES[:4], AXES[:, :2], AXES[0]], ids=["short", "2-D", "one"])
def test_bvecs_that_do_not_fit_bvals_are_refused(bvecs, tmp_path):
    with pytest.raises(ValueError, match="bvals and bvecs have shapes"):
        Acquisition.from_files(BVALS, bvecs, big_delta=0.04, small_delta=0.01)
    np.savetxt(tmp_path / "dwi.bval", BVALS)
    np.savetxt(tmp_path / "dwi.bvec", bvecs)
    with pytest.raises(ValueError, match="bvals and bvecs have shapes"):
        Acquisition.from_files(
            tmp_path / "dwi.bval", tmp_path / "dwi.bvec", big_delta=0.04, small_delta=0.01
        )


def test_bvals_in_package_units_are_refused():
    with pytest.raises(ValueError, match="bvals reach only 3, .*s/mm"):
        Acquisition.from_files(BVALS / 1000, AXES, big_delta=0.04, small_delta=0.01)


# Camino schemes


SCHEME = [
    (0, 0, 0, 0, 0.04, 0.01, 0.08),
    (1, 0, 0, 0.05, 0.04, 0.01, 0.08),
    (0, 0.6, 0.8, 0.1, 0.03, 0.008, 0.06),
]


@pytest.mark.parametrize(
    "header",
    ["VERSION: STEJSKALTANNER   \n", "# g Delta\n\nVERSION: 1\n", "%-x-y-z-|G|\n", "version: 1\n"],
)
def test_scheme_gives_b_and_timing(tmp_path, header):
    a = Acquisition.from_scheme(write_scheme(tmp_path / "a.scheme", SCHEME, header))
    gamma_g_delta = 2.6751525e8 * 0.1 * 0.008
    # b in s/m^2 is 1e9 times b in ms/um^2
    assert a.b[2] == pytest.approx(gamma_g_delta**2 * (0.03 - 0.008 / 3) * 1e-9, rel=ROUNDING)
    np.testing.assert_allclose(a.gradient_t_per_m, [0, 0.05, 0.1], rtol=ROUNDING)
    np.testing.assert_allclose(a.timings, [[8, 30, 60], [10, 40, 80]], rtol=ROUNDING)
    np.testing.assert_array_equal(a.b0_mask, [1, 0, 0])
    np.testing.assert_allclose(a.directions[2], [0, 0.6, 0.8], rtol=ROUNDING)


def test_weak_gradients_of_a_scheme_are_not_b0_unless_asked(tmp_path):
    rows = [*SCHEME, (1, 0, 0, 0.005, 0.04, 0.01, 0.08)]
    path = write_scheme(tmp_path / "a.scheme", rows)
    np.testing.assert_array_equal(Acquisition.from_scheme(path).b0_mask, [1, 0, 0, 0])
    weak = Acquisition.from_scheme(path, b0_threshold=50)
    np.testing.assert_array_equal(weak.b0_mask, [1, 0, 0, 1])


def test_scheme_b0_without_timing_get_that_of_their_echo_time(tmp_path):
    rows = [*SCHEME, (0, 0, 0, 0, 0, 0, 0.06), (0, 0, 0, 0, 0, 0, 0.08)]
    a = Acquisition.from_scheme(write_scheme(tmp_path / "a.scheme", rows))
    np.testing.assert_array_equal(a.timing_index, [1, 1, 0, 0, 1])


def test_scheme_b0_without_timing_at_an_echo_time_of_their_own_are_refused(tmp_path):
    path = write_scheme(tmp_path / "a.scheme", [*SCHEME, (0, 0, 0, 0, 0, 0, 0.1)])
    with pytest.raises(ValueError, match="b0 measurement 3, and no other measurement.* 100 ms"):
        Acquisition.from_scheme(path)


@pytest.mark.parametrize("version", ["BVECTOR", "2", "GRADIENT_WAVEFORM"])
def test_other_scheme_versions_are_named(tmp_path, version):
    path = write_scheme(tmp_path / "a.scheme", SCHEME, f"VERSION: {version}\n")
    with pytest.raises(ValueError, match=f"version '{version}'.*STEJSKALTANNER.*from_files"):
        Acquisition.from_scheme(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1 0 0 0.05 0.04 0.01", "line 5 is '1 0 0 0.05 0.04 0.01'.*7 numbers"),
        ("1 0 0 0.05 0.04 0.01 long", "line 5 is .*7 numbers"),
        ("1 0 0 -0.05 0.04 0.01 0.08", r"\|G\| is -0.05 T/m at measurement 3"),
        ("1 0 0 0.05 0.04 0 0.08", "shorter of Delta and delta is 0 s at measurement 3"),
        ("1 0 0 0.05 0.001 0.01 0.08", "big_delta - small_delta is -9 ms at measurement 3"),
        ("1 0 0 0.05 0.04 0.01 0.04", r"te - \(big_delta .* is -10 ms"),
        ("1 0 0 0.05 40 10 80", "big_delta is 40 s, which looks like milliseconds"),
        ("0 0 0 0.05 0.04 0.01 0.08", "directions has a zero vector"),
        ("1 0 0 nan 0.04 0.01 0.08", "b is nan"),
    ],
)
def test_bad_scheme_rows_are_refused(tmp_path, row, message):
    path = write_scheme(tmp_path / "a.scheme", SCHEME)
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(ValueError, match=message):
        Acquisition.from_scheme(path)


def test_scheme_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no measurements"):
        Acquisition.from_scheme(write_scheme(tmp_path / "a.scheme", []))


# BIDS


@pytest.mark.parametrize(
    "fields",
    [
        {"BigDelta": 0.04, "SmallDelta": 0.01, "EchoTime": 0.08},
        {"BigDelta": [0.04] * 5, "SmallDelta": [0.01] * 5, "EchoTime": [0.08] * 5},
        {"LargeDelta": 0.04, "SmallDelta": 0.01, "EchoTime": 0.08, "BigDelta": None},
        {
            "DiffusionGradientSeparation": 0.04,
            "DiffusionGradientDuration": 0.01,
            "EchoTime": 0.08,
        },
    ],
)
def test_bids_sidecar_is_read(tmp_path, fields):
    a = Acquisition.from_bids(write_bids(tmp_path, fields))
    np.testing.assert_allclose(a.timings, [[10, 40, 80]], rtol=ROUNDING)
    np.testing.assert_allclose(a.b, BVALS / 1000, rtol=ROUNDING)
    np.testing.assert_allclose(a.directions, AXES, atol=ROUNDING)


def test_bids_echo_time_is_optional(tmp_path):
    a = Acquisition.from_bids(write_bids(tmp_path, {"BigDelta": 0.04, "SmallDelta": 0.01}))
    np.testing.assert_allclose(a.te, 50, rtol=ROUNDING)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"EchoTime": 0.08}, "big_delta: BigDelta or .*small_delta: SmallDelta or .*from_files"),
        ({"BigDelta": 0.04}, r"lacks the timing of the pulses \(small_delta: SmallDelta"),
        ({"LargeDelta": 43.0, "SmallDelta": 0.01}, "big_delta is 43 s, .*milliseconds"),
        ({"BigDelta": 0.04, "SmallDelta": 14.2}, "small_delta is 14.2 s, .*milliseconds"),
        ({"BigDelta": [0.04] * 3, "SmallDelta": 0.01}, r"big_delta has shape \(3,\)"),
        ({"BigDelta": "soon", "SmallDelta": 0.01}, "big_delta .BigDelta in sub-01_dwi.json. is"),
        ({"BigDelta": [0.04] * 4 + [None], "SmallDelta": 0.01}, "big_delta is nan ms at .* 4"),
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
    ],
)
def test_bids_sidecar_that_does_not_do_says_why(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        Acquisition.from_bids(write_bids(tmp_path, fields))


@pytest.mark.parametrize("suffix", ["bval", "bvec"])
def test_bids_needs_its_neighbours(tmp_path, suffix):
    path = write_bids(tmp_path, {"BigDelta": 0.04, "SmallDelta": 0.01})
    (tmp_path / f"sub-01_dwi.{suffix}").unlink()
    with pytest.raises(ValueError, match=f"has no sub-01_dwi.{suffix} in its folder"):
        Acquisition.from_bids(path)


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": [0, 1, -1, 2, 3]}, "b is -1 ms/um.* at measurement 2.*>= 0"),
        ({"b": [0, 1, np.nan, 2, 3]}, "b is nan"),
        ({"b": [0, 1, 1, 2, np.inf]}, "b is inf"),
        ({"b": BVALS}, "b is 3000 ms/um.*looks like s/mm"),
        ({"b": [0, 1, 2]}, r"b and directions have shapes \(3,\) and \(5, 3\)"),
        ({"b": "high"}, "b is 'high'; it must be a number"),
        ({"b": [], "directions": np.empty((0, 3))}, r"shapes \(0,\)"),
        ({"directions": AXES.T}, r"b and directions have shapes \(5,\) and \(3, 5\)"),
        (
            {"directions": AXES * 1.1},
            "not a unit vector; its length is 1.1 at measurement 1 .and 3 more",
        ),
        ({"directions": AXES * np.array([[1], [1], [np.nan], [1], [1]])}, "length is nan"),
        ({"directions": AXES[[0, 1, 0, 3, 4]]}, "zero vector; b is 1 ms/um.* at measurement 2"),
        ({"small_delta": None}, "small_delta is None; give it in ms"),
        ({"big_delta": [40, 40]}, r"big_delta has shape \(2,\) for 5 measurements"),
        ({"te": [80, 80]}, r"te has shape \(2,\)"),
        ({"small_delta": [10, 10, -10, 10, 10]}, "small_delta is -10 ms at measurement 2"),
        ({"big_delta": np.inf}, "big_delta is inf ms"),
        ({"te": np.nan}, "te is nan ms"),
        ({"small_delta": [10, 0, 10, 10, 10]}, "small_delta is 0 ms at measurement 1.*> 0"),
        ({"small_delta": 40, "big_delta": 10}, "big_delta - small_delta is -30 ms.*swapped"),
        ({"te": 49.9}, r"te - \(big_delta \+ small_delta - mixing_time\) is -0.1 ms"),
        ({"te": 0.08}, "check the times and their units.*stimulated echo.*mixing_time"),
        ({"mixing_time": 31}, r"mixing_time - \(big_delta - small_delta\) is 1 ms.*spin echo"),
        ({"mixing_time": -1}, "mixing_time is -1 ms"),
        ({"te": 29, "mixing_time": 20}, "te - .* is -1 ms"),
        ({"isotropic": [True, False]}, r"isotropic has shape \(2,\) for 5 measurements"),
        ({"isotropic": [0, 1, 2, 0, 0]}, "isotropic is 2 at measurement 2; .*True or False"),
        ({"small_delta": 0.01, "big_delta": 0.04, "te": 0.08}, "big_delta .*looks like seconds"),
        ({"b0_threshold": -1}, "b0_threshold is -1"),
        ({"b0_threshold": np.nan}, "b0_threshold is nan"),
        ({"small_delta": 0, "big_delta": 0, "b": 0}, "b0 measurement 0, and no other"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        acquisition(**changes)


@pytest.mark.parametrize(
    ("times", "name"),
    [
        ({"big_delta": 0.04, "small_delta": 10}, "small_delta"),
        ({"big_delta": 40, "small_delta": 0.01}, "big_delta"),
        ({"big_delta": 0.04, "small_delta": 0.01, "te": 80}, "te"),
    ],
)
def test_milliseconds_for_seconds_are_refused(times, name):
    with pytest.raises(ValueError, match=f"{name} is .* s, which looks like milliseconds"):
        Acquisition.from_files(BVALS, AXES, **times)


# Both kinds


def stimulated_and_double():
    """Waveforms of two durations, one with storage."""
    stimulated = pulsed_gradients([0, 1], [1, 0, 0], 8, 100, mixing_time=80)
    return concatenate(stimulated, double_diffusion([1], [0, 1, 0], [0, 0, 1], 5, 20, 25))


def stimulated():
    return acquisition(**STIMULATED)


BOTH = pytest.mark.parametrize("make", [acquisition, stimulated, stimulated_and_double])


@BOTH
def test_arrays_in_a_file_are_enough_to_make_the_measurements_again(make, tmp_path):
    np.savez(tmp_path / "saved.npz", **make().arrays())
    with np.load(tmp_path / "saved.npz", allow_pickle=False) as arrays:
        again = acquisition_from_arrays(arrays)
    assert repr(again) == repr(make())
    assert again.b0_threshold == make().b0_threshold
    for name in ("b", "directions", "te", "mixing_time", "b_tensors"):
        # directions are normalised once more
        np.testing.assert_allclose(
            getattr(again, name), getattr(make(), name), rtol=ROUNDING, atol=ROUNDING
        )
    t = np.linspace(0, 40, 50)
    for one, other in zip(again.waveforms, make().waveforms, strict=True):
        np.testing.assert_allclose(one.q(t), other.q(t), rtol=ROUNDING, atol=ROUNDING)
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.stored, other.stored)


def test_averages_over_directions_are_kept_in_arrays():
    powder = acquisition(isotropic=[0, 0, 1, 0, 0])
    again = acquisition_from_arrays(powder.arrays())
    np.testing.assert_array_equal(again.isotropic, powder.isotropic)


@BOTH
def test_measurements_are_taken_as_they_are_and_keep_their_echo_times(make):
    given = make()
    assert isinstance(given, BaseAcquisition)
    assert as_acquisition(given) is given
    with pytest.raises(ValueError, match="te is given in addition"):
        as_acquisition(given, te=0.08)
    with pytest.raises(ValueError, match="isotropic is given in addition"):
        as_acquisition(given, isotropic=True)


def test_a_gradient_table_becomes_a_pulsed_acquisition():
    np.testing.assert_array_equal(as_acquisition(gtab(), te=0.08).te, 80)
    with pytest.raises(ValueError, match="gtab is a list; give an Acquisition"):
        as_acquisition([0, 1000])


def test_waveforms_have_no_pulses_and_what_needs_pulses_says_so():
    free, pulsed = stimulated_and_double(), acquisition()
    for name in ("small_delta", "big_delta", "timings", "q", "gradient_t_per_m"):
        assert hasattr(pulsed, name)
        assert not hasattr(free, name)
    assert require_pulsed(pulsed) is pulsed
    with pytest.raises(ValueError, match="has free gradient waveforms, and no small_delta"):
        require_pulsed(free)


@BOTH
def test_arrays_of_measurements_are_read_only_and_survive_pickling(make):
    again = pickle.loads(pickle.dumps(make()))
    np.testing.assert_array_equal(again.b_tensors, make().b_tensors)
    for name in ("b", "directions", "te", "mixing_time", "b_tensors", "b0_mask"):
        assert not getattr(make(), name).flags.writeable


def test_delta_given_as_the_gap_between_pulses_is_named():
    """One largest gradient for three diffusion times, which only Delta + delta explains."""
    small, big, gradient = 10.0, np.repeat([20.0, 40.0, 60.0], 9), np.tile(np.arange(9) / 8, 3)
    q = 0.2 * gradient  # rad/um at the largest gradient, of 75 mT/m
    right, gap = (
        Acquisition(q**2 * (big - small / 3), np.tile([1.0, 0, 0], (27, 1)), small, d, te=90)
        for d in (big, big - small)
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        PackedCellsModel(right)
    with pytest.warns(UserWarning, match="all would be 75 mT/m if big_delta were the gap"):
        PackedCellsModel(gap)


def test_gradients_that_no_scanner_has_are_named():
    acquisition = Acquisition([0, 1, 5], np.eye(3), small_delta=0.5, big_delta=20)
    with pytest.warns(UserWarning, match="gradients of up to 3.75 T"):
        PackedCellsModel(acquisition)


def test_text_of_windows_is_read_without_its_mark(tmp_path):
    path = tmp_path / "of_windows.txt"
    path.write_bytes("\ufeff1 2".encode())
    assert read_text("bvals", path) == "1 2"
