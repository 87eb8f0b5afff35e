"""What all commands have in common: help, arguments, outputs, refusals, exit codes."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dipy.workflows.base import IntrospectiveArgumentParser

import dipy_spinverse
from dipy_spinverse import load_fit
from dipy_spinverse.report import bids
from dipy_spinverse.report.descriptions import STATUS_DESCRIPTIONS
from dipy_spinverse.voxels import Status
from dipy_spinverse.workflows import cli
from dipy_spinverse.workflows.command import _log_folders
from dipy_spinverse.workflows.diffusion import read_acquisition
from dipy_spinverse.workflows.fit_command import FitCommand, Images
from dipy_spinverse.workflows.simulate_spinverse import SimulateFlow

INPUTS = ("dwi.nii.gz", "dwi.bval", "dwi.bvec")
TIMING = {"small_delta": "0.01", "te": "0.08"}
MODELS = {
    "dipy_fit_packed_cells": "PackedCellsModel",
    "dipy_fit_noddi": "NODDIModel",
    "dipy_fit_activeax": "ActiveAxModel",
    "dipy_fit_zcd": "ZCDModel",
    "dipy_fit_smex": "NEXIModel",
    "dipy_fit_ivim_varpro": "IVIMModel",
}


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Folder of a simulated scan: three shells at two diffusion times, noise of 2 %."""
    folder = tmp_path_factory.mktemp("scan")
    directions = np.random.default_rng(1).normal(size=(6, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    once = np.vstack([np.zeros((2, 3)), *[directions] * 3])
    np.savetxt(
        folder / "dwi.bval", np.tile(np.repeat([0, 200, 1000, 2500], [2, 6, 6, 6]), 2)[None]
    )
    np.savetxt(folder / "dwi.bvec", np.tile(once, (2, 1)).T)
    np.savetxt(folder / "big_delta.txt", np.repeat([0.02, 0.05], 20))
    SimulateFlow().run(
        *(str(folder / name) for name in INPUTS[1:]), big_delta=str(folder / "big_delta.txt"),
        **TIMING, radius=[4.0], permeability=[0.0], repeats=2, cells=6, cell_size=2.0,
        out_dir=str(folder),
    )  # fmt: skip
    return folder


def run(program, scan, **options):
    """A command in this process, on the scan."""
    files = [str(scan / name) for name in INPUTS]
    timing = TIMING | {"big_delta": str(scan / "big_delta.txt")}
    cli.command(program)().run(*files, **{**timing, **options})


def test_commands_end_with_where_to_look(tmp_path, caplog):
    paths = {"fit": tmp_path / "fit" / "fit.npz", "report": tmp_path / "fit" / "report.html"}
    with caplog.at_level(logging.INFO, "dipy_spinverse"):
        _log_folders(paths)
        assert f"Files are in {tmp_path / 'fit'}." in caplog.text
        paths["report"].parent.mkdir()
        paths["report"].touch()
        _log_folders(paths)
    assert f"open {paths['report']} in a browser" in caplog.text


def test_every_command_is_a_console_script():
    installed = {e.name: e.value for e in entry_points(group="console_scripts")}
    for program in cli.COMMANDS:
        assert installed[program] == "dipy_spinverse.workflows.cli:main", program


@pytest.mark.parametrize("program", cli.COMMANDS)
def test_every_option_has_words_and_is_off_or_usual_by_default(program):
    parser = IntrospectiveArgumentParser()
    parser.add_workflow(cli.command(program)())
    for action in parser._actions:
        assert len(action.help) > 10, action.dest
        if action.nargs == 0 and action.dest != "help":
            assert action.default is False  # DIPY makes every bool a flag


def test_help_does_not_wait_for_torch_or_the_kernels():
    code = (
        "import sys; from dipy_spinverse.workflows import cli; sys.argv[1:] = ['-h']\n"
        "for name in cli.COMMANDS:\n"
        "    sys.argv[0] = '/somewhere/' + name\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'numba', 'meshio', 'plotly'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--big_delta") >= 2 * (len(cli.COMMANDS) - 1)


@pytest.mark.filterwarnings("ignore:The acquisition hardly determines")
@pytest.mark.parametrize(
    "program", [*MODELS, pytest.param("dipy_fit_cell_shapes", marks=pytest.mark.slow)]
)
def test_every_fit_writes_its_maps_with_units_and_what_became_of_each_voxel(
    program, scan, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    draws = 0 if "packed" in program else 20  # which take long
    run(program, scan, n_draws=draws, report="report.html", out_dir=str(tmp_path))
    assert (tmp_path / "report.html").stat().st_size > 1e6
    fit, flow = load_fit(tmp_path / "fit.npz"), cli.command(program)
    assert type(fit.model).__name__ == MODELS.get(program, "CellShapeModel")
    assert set(flow.maps) == set(fit.MAPS) - {"S0"}
    said = json.loads((tmp_path / "settings.json").read_text())
    for name in (*flow.maps, *(name for name in flow.others if hasattr(fit, name))):
        image = nib.load(tmp_path / f"{name}.nii.gz")
        np.testing.assert_allclose(image.get_fdata(), getattr(fit, name), rtol=1e-5, atol=1e-7)
        assert said["map_units"][name] in image.header["descrip"].item().decode()
        assert image.header.get_xyzt_units()[0] == "mm"
    for name in flow.maps if draws else ():
        low, high = (tmp_path / f"{name}_{end}.nii.gz" for end in ("low", "high"))
        assert (nib.load(low).get_fdata() <= nib.load(high).get_fdata()).all()
    assert "2 voxels" in caplog.text
    assert STATUS_DESCRIPTIONS[Status(fit.status.flat[0]).name] in caplog.text


def test_parameters_with_known_values_are_read_from_images(scan, tmp_path):
    dwi = nib.load(scan / INPUTS[0])
    known = np.full(dwi.shape[:3], 1.2e-3)
    known[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(known, dwi.affine), tmp_path / "d.nii.gz")
    name = "parallel_diffusivity"
    options = {name: "free", "known": [f"{name}={tmp_path / 'd.nii.gz'}"], "n_draws": 0}
    run("dipy_fit_noddi", scan, **options, out_dir=str(tmp_path))
    found = nib.load(tmp_path / f"{name}.nii.gz").get_fdata()
    np.testing.assert_allclose(found, np.nan_to_num(known), rtol=1e-6)  # single precision
    assert nib.load(tmp_path / "status.nii.gz").get_fdata()[0, 0, 0] == Status.BAD_SAMPLES


def test_every_status_has_plain_words():
    assert set(STATUS_DESCRIPTIONS) == {status.name for status in Status}


def test_what_exists_is_named_and_kept_and_the_program_ends_with_one(
    scan, tmp_path, monkeypatch, capsys
):
    run("dipy_fit_ivim_varpro", scan, n_draws=0, out_dir=str(tmp_path))
    before = (tmp_path / "fit.npz").stat().st_mtime_ns
    call = ["/bin/dipy_fit_ivim_varpro", *(str(scan / name) for name in INPUTS)]
    call += ["--n_draws", "0", "--out_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit, match="D.nii.gz exists|D_star.nii.gz exists|fraction.nii.gz"):
        cli.main()
    assert (tmp_path / "fit.npz").stat().st_mtime_ns == before
    monkeypatch.setattr(sys, "argv", [*call, "--force"])
    cli.main()
    assert (tmp_path / "fit.npz").stat().st_mtime_ns > before


def test_a_mistyped_option_names_those_it_resembles_and_not_all(monkeypatch, capsys):
    for call, words in (
        (["a", "b", "c", "--out_dri", "x"], " or --out_dir? "),
        (["a", "b"], "required: bvectors_files."),
    ):
        monkeypatch.setattr(sys, "argv", ["dipy_fit_noddi", *call])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr().err
        assert end.value.code == 2 and told.startswith("dipy_fit_noddi: ") and words in told
        assert told.endswith("dipy_fit_noddi -h lists all.\n") and len(told.splitlines()) == 1


@pytest.mark.parametrize("fails", ["os.makedirs", "filelock.FileLock.acquire"])
def test_a_folder_that_cannot_be_written_to_is_named(fails, scan, tmp_path, monkeypatch):
    folder = tmp_path / "locked"

    def denied(*_, **__):
        path = folder / ".lock" if "acquire" in fails else folder
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(fails, denied)
    call = ["dipy_fit_noddi", *(str(scan / name) for name in INPUTS), "--out_dir", str(folder)]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit) as end:
        cli.main()
    words = f"dipy_fit_noddi: cannot write to the folder {folder} (permission denied); give"
    assert str(end.value).startswith(words)


def test_a_command_that_fails_leaves_no_files(scan, tmp_path, monkeypatch):
    def broken(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dipy_spinverse.voxels.fit.VoxelFit.save", broken)
    with pytest.raises(
        OSError, match=f"out_dir: .*No space left .*; free disk space in {tmp_path}"
    ):
        run("dipy_fit_ivim_varpro", scan, n_draws=0, out_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_fit_gets_what_the_command_line_says(monkeypatch):
    seen = {}

    class Model:
        def fit(self, data, mask, **options):
            seen.update(options, data=data, mask=mask)

    asked = {"sigma": 3.0, "n_draws": 7, "engine": "joblib", "n_jobs": 2, "journal": "folder",
             "verbose": True}  # fmt: skip
    flow = cli.command("dipy_fit_noddi")()
    flow.fit(Model(), Images("data", np.eye(4), "mask", None), {"more": 1}, **asked)
    assert seen == asked | {"more": 1, "data": "data", "mask": "mask"}


def test_inputs_are_never_replaced(scan, tmp_path):
    for name in INPUTS:
        (tmp_path / name).write_bytes((scan / name).read_bytes())
    files = [str(tmp_path / name) for name in INPUTS]
    flow = cli.command("dipy_fit_ivim_varpro")(force=True)
    with pytest.raises(ValueError, match="input_files: .*dwi.nii.gz would be overwritten"):
        flow.run(*files, out_S0="dwi.nii.gz", out_dir=str(tmp_path))
    assert (tmp_path / "dwi.nii.gz").read_bytes() == (scan / "dwi.nii.gz").read_bytes()


def test_two_scans_that_would_be_written_to_one_file_are_refused(scan, tmp_path):
    for name in INPUTS:
        for k in range(2):
            (tmp_path / f"{k}_{name}").symlink_to(scan / name)
    files = [str(tmp_path / f"*_{name}") for name in INPUTS]
    with pytest.raises(ValueError, match="2 inputs would all be written to .*--mix_names"):
        cli.command("dipy_fit_noddi")().run(*files, out_dir=str(tmp_path / "fit"))


def test_timings_of_the_sidecar_are_used_where_none_are_given(scan, tmp_path):
    for name in INPUTS[1:]:
        (tmp_path / name).symlink_to(scan / name)
    files = {"bvalues_files": tmp_path / "dwi.bval", "bvectors_files": tmp_path / "dwi.bvec"}
    assert not hasattr(read_acquisition(**files), "timings")
    sidecar = {"BigDelta": 0.03, "SmallDelta": 0.01, "EchoTime": 0.07}
    (tmp_path / "dwi.json").write_text(json.dumps(sidecar))
    assert read_acquisition(**files).timings.tolist() == [[10, 30, 70]]
    assert read_acquisition(**files, protocol="hcp-3t").timings.tolist() == [[10.6, 43.1, 89.5]]
    mixed = read_acquisition(**files, protocol="hcp-mgh", te="0.1")
    assert mixed.timings.tolist() == [[12.9, 21.8, 100]]
    with pytest.raises(ValueError, match="protocol is 'hcp'; give one of hcp-3t"):
        read_acquisition(**files, protocol="hcp")
    assert read_acquisition(**files, big_delta="0.04").timings.tolist() == [[10, 40, 70]]


@pytest.mark.parametrize("program", ["dipy_fit_packed_cells", "dipy_fit_zcd"])
def test_a_model_that_needs_timings_says_how_to_give_them(program, scan, tmp_path):
    files = [str(scan / name) for name in INPUTS]
    with pytest.raises(ValueError, match="give --big_delta in seconds"):
        cli.command(program)().run(*files, out_dir=str(tmp_path))


def test_mask_of_another_shape_is_refused(scan, tmp_path):
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match=r"mask_file: .* \(3, 3, 3\), but .* have \(1, 1, 2\)"):
        run("dipy_fit_noddi", scan, mask_file=str(tmp_path / "mask.nii.gz"), out_dir=str(tmp_path))


def test_simulated_signals_are_those_of_the_solver_and_the_truth_is_written(scan):
    truth = json.loads((scan / "truth.json").read_text())["voxels"]
    assert [voxel["pore_diameter"] for voxel in truth] == [8.0]
    data = nib.load(scan / "dwi.nii.gz").get_fdata()
    assert data.shape == (1, 1, 2, 40)
    bvals = np.loadtxt(scan / "dwi.bval")
    # Eight samples with noise of 2 %.
    assert abs(data[..., bvals == 0].mean() / 1000 - 1) < 0.03
    assert data[..., bvals >= 1000].max() < 0.8 * 1000
    assert float((scan / "sigma.txt").read_text()) == 20


def test_a_check_says_what_the_scan_cannot_tell(scan, tmp_path, capsys):
    files = [str(scan / name) for name in INPUTS[1:]]
    timing = TIMING | {"big_delta": str(scan / "big_delta.txt")}
    flow = cli.command("dipy_check_acquisition")()
    flow.run(*files, **timing, n_draws=30, out_dir=str(tmp_path))
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "acquisition.txt").read_text().strip()
    rows = {row["map"]: row for row in json.loads((tmp_path / "acquisition.json").read_text())
            ["maps"]}  # fmt: skip
    assert "pore_diameter" in rows and "verdict" in rows["pore_diameter"]
    assert (tmp_path / "acquisition.png").stat().st_size > 0


def test_maps_go_into_a_bids_derivative_with_units_and_meanings(scan, tmp_path):
    options = {"n_draws": 5, "bids": str(tmp_path / "maps")}
    flow = cli.command("dipy_fit_ivim_varpro")
    for subject, out_dir in (("02", "other"), ("01", "one")):  # a data set of two subjects
        for name in INPUTS:
            (tmp_path / f"sub-{subject}_ses-2_{name}").symlink_to(scan / name)
        files = [str(tmp_path / f"sub-{subject}_ses-2_{name}") for name in INPUTS]
        with pytest.warns(UserWarning, match="hardly determines"):
            flow().run(*files, out_dir=str(tmp_path / out_dir), **options)
    assert len([*(tmp_path / "maps").glob("sub-*/ses-2/dwi/*_param-S0_dwimap.nii.gz")]) == 2
    status = json.loads(
        next((tmp_path / "maps" / "sub-02").rglob("*_param-status_dwimap.json")).read_text()
    )
    assert status["Levels"]["3"].startswith("MISFIT")
    folder = tmp_path / "maps" / "sub-01" / "ses-2" / "dwi"
    stem = "sub-01_ses-2_model-IVIM_param-perfusionFraction"
    np.testing.assert_array_equal(
        nib.load(folder / f"{stem}_desc-low_dwimap.nii.gz").get_fdata(),
        nib.load(tmp_path / "one" / "perfusion_fraction_low.nii.gz").get_fdata(),
    )
    sidecar = json.loads((folder / "sub-01_ses-2_model-IVIM_param-D_dwimap.json").read_text())
    assert sidecar["Units"] == "mm^2/s" and "diffusivity" in sidecar["Description"]
    described = json.loads((tmp_path / "maps" / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and described["BIDSVersion"]
    with pytest.raises(FileExistsError, match="dwimap.nii.gz exists"):
        flow().run(*files, out_dir=str(tmp_path / "two"), **options)
    with pytest.raises(ValueError, match="dwi.nii.gz is not a BIDS name"):
        run("dipy_fit_ivim_varpro", scan, out_dir=str(tmp_path / "three"), **options)


@pytest.mark.filterwarnings("ignore:The acquisition hardly determines")
@pytest.mark.filterwarnings("ignore:The noise level is unknown")
def test_the_documented_loop_fits_all_participants_of_qsiprep(scan, tmp_path, monkeypatch):
    """The loop of doc/from_qsiprep.md on two participants; IVIM in the place of packed cells."""
    for subject in ("sub-01", "sub-02"):
        folder = tmp_path / "derivatives" / "qsiprep" / subject / "dwi"
        folder.mkdir(parents=True)
        for name in INPUTS:
            ending = name.removeprefix("dwi")
            target = folder / f"{subject}_space-ACPC_desc-preproc_dwi{ending}"
            target.symlink_to(scan / name)
        image = nib.load(scan / INPUTS[0])
        mask = nib.Nifti1Image(np.ones(image.shape[:3], np.uint8), image.affine)
        nib.save(mask, folder / f"{subject}_space-ACPC_desc-brain_mask.nii.gz")
    text = (Path(__file__).parents[1] / "doc" / "from_qsiprep.md").read_text()
    loop = text.partition("## All participants\n\n```\n")[2].partition("```")[0]
    noted = 'dipy_fit_packed_cells() { echo "$@" >> calls; }\n' + loop
    subprocess.run(["bash", "-ec", noted], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    for call in (tmp_path / "calls").read_text().splitlines():
        arguments = ["dipy_fit_ivim_varpro", *call.split(), "--n_draws", "0"]
        monkeypatch.setattr(sys, "argv", arguments)
        cli.main()
    assert len([*(tmp_path / "fits").glob("*/report.html")]) == 2
    for subject in ("sub-01", "sub-02"):
        folder = tmp_path / "derivatives" / "dipy_spinverse" / subject / "dwi"
        names = {path.name for path in folder.iterdir()}
        assert f"{subject}_space-ACPC_model-IVIM_param-status_dwimap.nii.gz" in names


def test_bids_derivatives_appear_when_all_are_complete_or_not_at_all(scan, tmp_path, monkeypatch):
    for name in INPUTS:
        (tmp_path / f"sub-01_{name}").symlink_to(scan / name)
    files = [str(tmp_path / f"sub-01_{name}") for name in INPUTS]

    def disk_full(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(bids, "save_description", disk_full)
    flow = cli.command("dipy_fit_ivim_varpro")
    with pytest.raises(OSError, match="No space left"):
        flow().run(*files, out_dir=str(tmp_path / "one"), n_draws=5, bids=str(tmp_path / "maps"))
    left = [path for path in (tmp_path / "maps").rglob("*") if path.is_file()]
    assert left == [] and not list((tmp_path / "one").glob("*.nii.gz"))


def test_a_program_that_is_none_says_which_there_are(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dipy_fit_everything"])
    with pytest.raises(SystemExit, match="dipy_fit_noddi"):
        cli.main()


def test_fit_commands_declare_their_outputs():
    for program in cli.COMMANDS:
        flow = cli.command(program)
        if issubclass(flow, FitCommand):
            assert {"status", "fit", "settings"} <= set(flow.outputs)
    assert dipy_spinverse.__version__


def test_a_command_says_that_it_starts_before_it_imports_libraries():
    code = (
        "import sys; from dipy_spinverse.workflows import cli\n"
        "class Screen:\n"
        "    def write(self, text):\n"
        "        print(text.strip(), sorted({'dipy', 'numpy', 'torch'} & set(sys.modules)))\n"
        "        sys.exit(0)\n"
        "    def isatty(self): return True\n"
        "sys.argv[:] = ['/somewhere/dipy_fit_noddi', 'a.nii.gz', 'bvals', 'bvecs']\n"
        "sys.stderr = Screen()\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("dipy_fit_noddi: loading libraries ... []"), done.stdout
