"""Inputs from which nothing right can come are refused, before anything is computed or written."""

from __future__ import annotations

import io
import json
import sys
import warnings
import zipfile
from itertools import repeat

import meshio
import nibabel as nib
import numpy as np
import pytest

from benchmarks.decay_model import ACQUISITION, DecayModel, decays
from benchmarks.hostile import TWO_SHELLS
from dipy_spinverse import (
    Acquisition,
    IVIMModel,
    LearnedModel,
    NODDIModel,
    PackedCellsModel,
    Status,
    load_fit,
    read_grid,
)
from dipy_spinverse.acquisition import TensorAcquisition, WaveformAcquisition, checks
from dipy_spinverse.acquisition.waveform_files import read_text_waveforms
from dipy_spinverse.grid import mesh_files
from dipy_spinverse.packed_cells.emulator import signals as emulator
from dipy_spinverse.tissue_fractions import sequence_from
from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.image import image_of
from dipy_spinverse.voxels.image_files import StoredImage, mask_of
from dipy_spinverse.workflows.cli import command, main
from dipy_spinverse.workflows.command import Command, check_inputs_kept, check_names

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (3, 2, 1)
DATA = decays(SHAPE)


@pytest.fixture(scope="module")
def model():
    return DecayModel(ACQUISITION)


@pytest.fixture(scope="module")
def fit():
    return IVIMModel(ACQUISITION).fit(DATA[:1], sigma=1.0, n_draws=0)


def saved(values, path, affine=AFFINE):
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def test_nan_in_a_mask_is_outside_and_fractions_are_neither(model):
    mask = np.full(SHAPE, np.nan)
    mask[0] = 1
    status = model.fit(DATA, mask, sigma=1.0, n_draws=0).status
    assert (status[0] != Status.NOT_FITTED).all() and (status[1:] == Status.NOT_FITTED).all()
    for wrong in (0.3, -1.0, np.inf):
        with pytest.raises(ValueError, match="^mask has .* values that are fractions"):
            model.fit(DATA, np.full(SHAPE, wrong))


@pytest.mark.parametrize("sigma", [np.inf, -1.0, np.nan, 1j, "one", 10**400])
def test_noise_is_a_finite_number(model, sigma):
    with pytest.raises(ValueError, match="^sigma has"):
        model.fit(DATA, sigma=sigma)


@pytest.mark.parametrize("S0", ["one", 1j, [1.0, 2.0]])
def test_signal_without_diffusion_is_a_number_of_each_voxel(model, S0):
    with pytest.raises(ValueError, match="^S0 has (values of type|shape)"):
        model.fit(DATA, n_draws=0).predict(S0=S0)


@pytest.mark.parametrize("data", [DATA + 0j, DATA.astype(str), DATA.astype(object)])
def test_data_are_real_numbers(model, data):
    with pytest.raises(ValueError, match="^data has"):
        model.fit(data)


@pytest.mark.parametrize("dtype", [">f4", "<f4", "f2", ">i2", "u1", "i8"])
def test_the_type_and_order_of_data_do_not_matter(model, dtype):
    data = DATA.astype(dtype)
    expected = model.fit(data.astype(float), sigma=1.0, n_draws=0)
    for same in (data, np.asfortranarray(data), np.repeat(data, 2, axis=-1)[..., ::2]):
        found = model.fit(same, sigma=1.0, n_draws=0)
        np.testing.assert_array_equal(found.diffusivity, expected.diffusivity)


def test_masked_samples_are_bad_samples(model):
    data = np.ma.masked_greater(DATA, DATA[0, 0].max())
    data[0, 0, 0, 3] = np.ma.masked
    assert model.fit(data, sigma=1.0, n_draws=0).status[0, 0, 0] == Status.BAD_SAMPLES


def test_an_image_is_read_from_its_file_volume_by_volume(model, tmp_path):
    expected = model.fit(DATA, sigma=1.0, n_draws=0)
    for name in ("dwi.nii", "dwi.nii.gz"):
        stored = StoredImage(saved(DATA.astype("f8"), tmp_path / name), "input_files")
        found = model.fit(stored, np.ones(SHAPE), sigma=1.0, n_draws=0)
        np.testing.assert_array_equal(found.diffusivity, expected.diffusivity)


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path):
    mask = np.ones(SHAPE, dtype=np.uint8)
    for voxels in (25, 1, -0.2):
        moved = AFFINE.copy()
        moved[:3, 3] += voxels * AFFINE[:3, 0]
        with pytest.raises(ValueError, match=f"mask_file: .* position: .* {abs(2 * voxels)} mm"):
            mask_of(saved(mask, tmp_path / "far.nii.gz", moved), (SHAPE, AFFINE), "mask_file")
    # What other software makes of the same affine in single precision.
    nearly = AFFINE + 1e-4
    nearly[3] = AFFINE[3]
    near = mask_of(saved(mask, tmp_path / "near.nii.gz", nearly), (SHAPE, AFFINE), "mask_file")
    assert near.all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(SHAPE), "has no voxels; give"),
        (np.full(SHAPE, np.nan), "has no voxels; give"),
        (np.full(SHAPE, 0.4), "values that are fractions"),
        (np.ones((*SHAPE, 2)), "has shape"),
        (np.ones(SHAPE) + 1j, "complex values"),
    ],
)
def test_a_mask_file_without_voxels_or_of_fractions_is_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        mask_of(saved(values, tmp_path / "mask.nii.gz"), (SHAPE, AFFINE), "mask_file")


def test_complex_images_are_refused_instead_of_losing_their_imaginary_part(tmp_path):
    stored = StoredImage(saved(DATA + 1j, tmp_path / "dwi.nii.gz"), "input_files")
    with pytest.raises(ValueError, match="input_files: .* has complex values"):
        stored.check_real()


@pytest.mark.parametrize("name", ["dwi.nii", "dwi.nii.gz"])
def test_truncated_foreign_and_boasting_images_are_refused(model, tmp_path, name):
    whole = saved(DATA.astype("f4"), tmp_path / name).read_bytes()

    def broken(content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"input_files: .*dwi.nii"):
            model.fit(StoredImage(tmp_path / name, "input_files"), sigma=1.0, n_draws=0)

    for size in (0, 10, 300, len(whole) // 2, len(whole) - 40):
        broken(whole[:size])
    broken(b"a photograph of a brain" * 100)
    if name == "dwi.nii":
        header = bytearray(whole)
        header[48:50] = np.int16(32767).tobytes()  # dim[4], the number of volumes
        broken(bytes(header))


@pytest.mark.parametrize(
    "name",
    ["../../x.nii.gz", "/tmp/x.nii.gz", "maps/../../x", "", ".", ".unfinished_x.nii.gz", ".nii.gz",
     "new\nline.nii.gz"],
)  # fmt: skip
def test_output_names_stay_inside_of_out_dir(name):
    with pytest.raises(ValueError, match="^out_status is .* not in out_dir"):
        check_names({"out_S0": "S0.nii.gz", "out_status": name})


@pytest.mark.parametrize("name", ["S0", "S0.txt", "S0.nii.txt", "predicted.mgz"])
def test_the_name_of_an_image_that_is_none_is_refused_before_anything_is_read(tmp_path, name):
    files = [str(tmp_path / f"none.{end}") for end in ("nii.gz", "bval", "bvec")]
    with pytest.raises(ValueError, match=f"^out_S0 is '{name}', .* ends with .nii or .nii.gz"):
        command("dipy_fit_ivim_varpro")().run(*files, out_S0=name, out_dir=str(tmp_path))


def test_outputs_have_names_of_their_own_and_spare_the_inputs(tmp_path):
    check_names({"out_S0": "S0.nii.gz", "out_status": "maps/S0.nii.gz"})
    with pytest.raises(ValueError, match="out_b and out_a are both"):
        check_names({"out_a": "x.nii.gz", "out_b": "x.nii.gz"})
    dwi = tmp_path / "dwi.nii.gz"
    with pytest.raises(ValueError, match="input_files: .* would be overwritten"):
        check_inputs_kept({"sigma": 1.0, "input_files": str(dwi)}, [tmp_path / "." / "dwi.nii.gz"])
    check_inputs_kept({"input_files": [str(dwi)], "engine": "serial"}, [tmp_path / "S0.nii.gz"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report": "D.nii.gz"}, "two outputs would be written to .*D.nii.gz"),
        ({"report": "../r.html"}, "^report is '../r.html', .*not in out_dir"),
        ({"report": "in_the_way"}, "in_the_way is a folder"),
        ({"out_D": "x.nii.gz", "out_S0": "x_std.nii.gz"}, "written to .*x_std.nii.gz"),
    ],
)
def test_names_of_outputs_are_checked_before_anything_is_read(tmp_path, options, message):
    (tmp_path / "out" / "in_the_way").mkdir(parents=True)
    files = [str(tmp_path / f"none.{end}") for end in ("nii.gz", "bval", "bvec")]
    for file in files:
        open(file, "w").close()
    for force in (False, True):
        with pytest.raises((ValueError, OSError), match=message):
            command("dipy_fit_ivim_varpro")(force=force).run(
                *files, out_dir=str(tmp_path / "out"), **options
            )


@pytest.mark.parametrize(
    ("name", "message"),
    [("status", "status.nii.gz"), ("csf_low", "csf_low.nii.gz"), ("../x", "not in out_dir")],
)
def test_maps_of_tissues_take_the_place_of_no_other_file(tmp_path, name, message):
    (tmp_path / "tissues.json").write_text(json.dumps([{"name": name}]))
    (tmp_path / "image.nii.gz").touch()
    with pytest.raises(ValueError, match=message):
        command("dipy_fit_tissue_fractions")().run(
            [str(tmp_path / "image.nii.gz")], tissues_file=str(tmp_path / "tissues.json"),
            out_dir=str(tmp_path),
        )  # fmt: skip


def test_one_run_at_a_time_writes_to_a_folder_and_replaces_nothing_that_came_meanwhile(tmp_path):
    class Slow(Command):
        steps = ("step",)
        outputs = {"map": ("map.txt", "A file.")}

        def step(self, *, input_files: str, other: bool = False) -> None:
            """A step.

            Parameters
            ----------
            input_files : string
                An input.
            other : bool, optional
                Another program writes here, too.
            """
            if other:
                (tmp_path / "out" / "map.txt").write_text("kept")
            else:
                Slow().run(str(tmp_path / "in"), other=True, out_dir=str(tmp_path / "out"))

        def process(self, arguments, paths):
            paths["map"].write_text("new")
            self.call("step", arguments)

    (tmp_path / "in").touch()
    with pytest.raises(OSError, match="another run writes to"):
        Slow().run(str(tmp_path / "in"), out_dir=str(tmp_path / "out"))
    with pytest.raises(FileExistsError, match="map.txt exists; add --force"):
        Slow().run(str(tmp_path / "in"), other=True, out_dir=str(tmp_path / "out"))
    assert (tmp_path / "out" / "map.txt").read_text() == "kept"
    Slow(force=True).run(str(tmp_path / "in"), other=True, out_dir=str(tmp_path / "out"))
    assert (tmp_path / "out" / "map.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["map.txt"]


def test_what_the_screen_cannot_show_is_written_as_a_number(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dipy_check_acquisition", "--version"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit):
        main()
    print("1 \u00b1 2", flush=True)
    assert sys.stdout.buffer.getvalue().splitlines()[-1] == rb"1 \xb1 2"


def test_nested_aliases_of_yaml_are_shown_in_one_line():
    nested = ["x"] * 9
    for _ in range(30):  # 9^30 elements, of which repr would print each
        nested = [nested] * 9
    assert len(checks.shortened(nested)) < 70


def rewritten(path, change):
    """The file of a fit with other arrays, by what `change` makes of them."""
    with np.load(path) as stored:
        arrays = dict(stored)
    header = json.loads(str(arrays.pop("header")))
    change(header, arrays)
    np.savez(path, header=np.array(json.dumps(header)), **arrays)


def _shorter(header, arrays):
    arrays["value/S0"] = arrays["value/S0"][:-1]


def _missing(header, arrays):
    del arrays["value/sigma"]


def _unknown_status(header, arrays):
    arrays["of/status"] = arrays["of/status"] + 40


def _fewer_voxels(header, arrays):
    arrays["of/status"][0] = 0


def _not_numbers(header, arrays):
    arrays["value/S0"] = arrays["value/S0"].astype(str)


def _nan(header, arrays):
    arrays["value/S0"][:] = np.nan


def _other_settings(header, arrays):
    header["settings"]["likelihood"] = "guessed"


def _more_settings(header, arrays):
    header["settings"]["colour"] = "blue"


def _other_measurements(header, arrays):
    arrays["acquisition/b"] = arrays["acquisition/b"][:-1]


CHANGES = [
    _shorter, _missing, _unknown_status, _fewer_voxels, _not_numbers, _nan, _other_settings,
    _more_settings, _other_measurements,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("with_checksum", [False, True])
def test_a_fit_that_was_tampered_with_is_refused(fit, tmp_path, change, with_checksum):
    path = tmp_path / "fit.npz"
    fit.save(path)

    def altered(header, arrays):
        change(header, arrays)
        if with_checksum:
            del header["checksum"]
            header["checksum"] = storage.digest(header, arrays)

    rewritten(path, altered)
    with pytest.raises(ValueError, match="^path: .*fit.npz"):
        load_fit(path)


def test_damaged_and_bursting_files_of_fits_are_refused(fit, tmp_path):
    path = tmp_path / "fit.npz"
    fit.save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        path.write_bytes(content[: rng.integers(1, 2 * len(content))])
        try:
            found = load_fit(path)
        except ValueError as error:
            assert "fit.npz" in str(error)
        else:  # bits that no reader looks at
            np.testing.assert_array_equal(found.S0, fit.S0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.npy", b"\0" * 10**6)
        archive.infolist()[0].file_size = 2**62
    with pytest.raises((ValueError, MemoryError), match=r"fit.npz"):
        load_fit(path)


@pytest.mark.parametrize("value", ["30ms", "0.03,0.04", ".", "empty.npy", "x" * 5000, True, 2.9])
def test_timings_and_gradients_that_are_none_are_refused_by_their_name(tmp_path, value):
    (tmp_path / "empty.npy").touch()
    value = str(tmp_path / value) if isinstance(value, str) else value
    with pytest.raises((ValueError, OSError), match="^big_delta"):
        Acquisition.from_files([0, 1000], np.eye(3)[:2], big_delta=value, small_delta=0.01)
    if isinstance(value, str):
        with pytest.raises((ValueError, OSError), match="^bvals"):
            Acquisition.from_files(value, np.eye(3)[:2], big_delta=0.03, small_delta=0.01)
    with pytest.raises(ValueError, match="^gtab is a (str|bool|float)"):
        Acquisition.from_gtab(value)


@pytest.mark.parametrize("threshold", [10**400, "x", np.nan, -1.0, [1.0, 2.0]])
def test_the_threshold_of_b0_is_a_number(threshold):
    gradient = np.zeros((4, 3))
    calls = [
        lambda: Acquisition.from_files([0, 1000], np.eye(3)[:2], big_delta=0.03, small_delta=0.01,
                                       b0_threshold=threshold),
        lambda: WaveformAcquisition.from_samples([gradient], 1e-3, b0_threshold=threshold),
        lambda: TensorAcquisition(np.eye(3)[None], b0_threshold=threshold),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="^b0_threshold is"):
            call()


def test_waveforms_without_samples_are_refused():
    with pytest.raises(ValueError, match="gradients_T_per_m has shape \\(0, 3\\)"):
        WaveformAcquisition.from_samples([np.zeros((0, 3))], 1e-3)


def test_byte_order_marks_of_windows_are_no_numbers(tmp_path):
    for name, text in (
        ("dwi.bval", "0 1000"), ("dwi.bvec", "0 1\n0 0\n0 0"), ("times.txt", "0.03 0.03"),
        ("dwi.json", '{"BigDelta": 0.03, "SmallDelta": 0.01}'),
    ):  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
    acquisition = Acquisition.from_bids(tmp_path / "dwi.json")
    assert acquisition.b.tolist() == [0, 1] and acquisition.big_delta.tolist() == [30, 30]
    files = tmp_path / "dwi.bval", tmp_path / "dwi.bvec"
    times = Acquisition.from_files(*files, big_delta=tmp_path / "times.txt", small_delta=0.01)
    assert times.big_delta.tolist() == [30, 30]


@pytest.mark.parametrize(
    "sequence",
    [
        {"tr": 20, "te": 4}, {"tr": 2500, "te": 0.004}, {"tr": 5, "te": 0.004, "flip_angle": 720},
        {"tr": True, "te": 0.004}, {"tr": 0.02, "te": np.nan},
    ],
)  # fmt: skip
def test_sequences_in_milliseconds_are_refused(sequence):
    with pytest.raises(ValueError, match=r"in seconds, degrees"):
        sequence_from({"type": "SpoiledGradientEcho", "flip_angle": 20} | sequence)
    assert sequence_from({"type": "TurboSpinEcho", "tr": np.inf, "echo_spacing": 0.01,
                          "echo_train_length": 9, "effective_te": 0.08})  # fmt: skip


@pytest.mark.parametrize(
    "timing",
    [
        {"small_delta": 1e-9}, {"te": 1e300}, {"big_delta": 1e6}, {"small_delta": 10**400},
        {"small_delta": 1j}, {"te": np.inf}, {"big_delta": [10**5000]}, {"mixing_time": 1e12},
    ],
)  # fmt: skip
def test_timings_that_no_scanner_plays_are_refused(timing):
    usual = {"small_delta": 10.0, "big_delta": 30.0}
    with pytest.raises(ValueError, match=f"^{next(iter(timing))} is|^mixing_time"):
        Acquisition(b=[0, 1], directions=np.eye(3)[:2], **usual | timing)


def test_waveforms_that_last_for_ages_are_refused(tmp_path):
    path = tmp_path / "lobe.txt"
    path.write_text("4\n0 0 0\n1 0 0\n1 0 0\n0 0 0\n")
    times = {"duration_before": 9.0, "duration_after": 9.0, "pause": 8.0}
    for name in times:
        with pytest.raises(ValueError, match="give positive durations"):
            read_text_waveforms(path, path, b=[1.0], **times | {name: 1e300})


def _short_weights(header, arrays):
    name = next(name for name in arrays if name.startswith("learner/"))
    arrays[name] = arrays[name][..., :-1]


def _infinite_scaling(header, arrays):
    arrays["features/mean"][:] = np.inf


def _no_probe(header, arrays):
    del arrays["probe_signals"]


def _no_seed(header, arrays):
    header["seed"] = None


@pytest.mark.parametrize("change", [_short_weights, _infinite_scaling, _no_probe, _no_seed])
def test_a_learner_that_was_tampered_with_is_refused(tmp_path, change):
    training = {"n_train": 100, "max_epochs": 1, "width": 4, "depth": 1}
    path, model = tmp_path / "learner.npz", NODDIModel(TWO_SHELLS)
    LearnedModel(model, snr=(20, 50), **training).save(path)

    def altered(header, arrays):
        change(header, arrays)
        del header["checksum"]
        header["checksum"] = storage.digest(header, arrays)

    rewritten(path, altered)
    with pytest.raises(ValueError, match=r"learner\.npz"):
        LearnedModel.load(path, model)


def test_a_damaged_list_of_sequences_is_refused(tmp_path):
    pytest.importorskip("yaml")
    saved(DATA[..., :2], tmp_path / "images.nii")
    for text in ("[1, 'two", "!!python/object/apply:os.system ['true']", "[" * 10_000, "\0"):
        (tmp_path / "sequences.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"sequences.yaml"):
            command("dipy_fit_tissue_fractions")().run(
                [str(tmp_path / "images.nii")], sequences_file=str(tmp_path / "sequences.yaml"),
                out_dir=str(tmp_path),
            )  # fmt: skip


def test_an_emulator_with_nan_is_refused(tmp_path, monkeypatch):
    with (emulator.files("dipy_spinverse.packed_cells.emulator") / "networks.npz").open("rb") as f:
        arrays = dict(np.load(f))
    name = next(name for name in arrays if name.startswith("sphere_weight"))
    arrays[name] = np.full_like(arrays[name], np.nan)
    np.savez(tmp_path / "networks.npz", **arrays)
    monkeypatch.setattr(emulator, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match=r"networks.npz has NaN or infinite"):
        emulator.load_network.__wrapped__("sphere")


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"a":' * 50_000, "9" * 5000, "null"])
def test_empty_and_endlessly_nested_texts_are_no_fit(tmp_path, text):
    np.savez(tmp_path / "fit.npz", header=np.array(text))
    with pytest.raises(ValueError, match=r"^path: .*fit.npz"):
        load_fit(tmp_path / "fit.npz")
    (tmp_path / "fit.npz").write_text(text)
    with pytest.raises(ValueError, match=r"^path: .*fit.npz"):
        load_fit(tmp_path / "fit.npz")


def _endless(path):
    for _ in repeat(None):
        pass


def _broken(path):
    raise AssertionError


@pytest.mark.parametrize("reader", [_endless, _broken, sys.exit])
def test_a_mesh_whose_reader_hangs_or_ends_the_program_is_refused(tmp_path, monkeypatch, reader):
    path = tmp_path / "mesh.msh"
    path.touch()
    monkeypatch.setattr(meshio, "read", reader)
    monkeypatch.setattr(mesh_files, "_LONGEST_S", 0.2)
    with pytest.raises(ValueError, match=r"^path: .*mesh.msh cannot be read as a mesh"):
        read_grid(path)


@pytest.mark.parametrize("n_b0", [1, 3])
def test_b0_that_differ_between_timings_are_named_and_noise_is_not(n_b0):
    """Without te, or with gains, b0 differ; in all models, and with a known S0."""
    b, big = np.tile(np.r_[np.zeros(n_b0), np.ones(6)], 2), np.repeat([20.0, 50.0], n_b0 + 6)
    acquisition = Acquisition(b, np.ones((len(b), 3)) / 3**0.5, 8.0, big)
    rng, signals = np.random.default_rng(0), 100 * np.exp(-b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):  # 2 % of such tests would fail, each with a false-alarm rate of 1e-3
            image_of(signals + rng.normal(size=(50, len(b))), None, 1.0, acquisition, 100.0)
    data = np.where(big > 30, 0.9, 1) * signals + rng.normal(size=(50, len(b)))
    with pytest.warns(UserWarning, match=r"b0 of different pulse timings .* give te"):
        image_of(data, None, 1.0, acquisition, 100.0)
    with pytest.warns(UserWarning, match="b0 of different pulse timings"):
        PackedCellsModel(acquisition).fit(data[:2], sigma=1.0, n_draws=0)
