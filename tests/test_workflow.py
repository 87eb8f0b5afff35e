"""The command line: what it asks for, what it writes, how it refuses."""

from __future__ import annotations

import inspect
import json
import sys

import meshio
import nibabel as nib
import numpy as np
import pytest
from dipy.io.surface import load_gifti
from dipy.workflows.base import IntrospectiveArgumentParser

from dipy_spinverse import (
    Acquisition,
    NODDIModel,
    SpinverseModel,
    Status,
    bcc_grid,
    load_fit,
    simulate,
)  # fmt: skip
from dipy_spinverse.report.meshes import save_meshes, voxel_affine
from dipy_spinverse.substrates.membranes import cylinders
from dipy_spinverse.workflows.cli import main
from dipy_spinverse.workflows.diffusion import read_acquisition, read_pulses
from dipy_spinverse.workflows.fit_spinverse import SpinverseFlow

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2.0, 0, -5], [0, 0, 3.0, 1], [0, 0, 0, 1]])
SHAPE = (2, 1, 2)
SMALL_GRID = {"cells": 3, "cell_size": 5.0}
TIMING = {"big_delta": "0.03", "small_delta": "0.01"}


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """Paths of a tiny noisy volume of cylinders, with one NaN voxel outside its mask."""
    folder = tmp_path_factory.mktemp("volume")
    axes = np.vstack([np.eye(3), np.ones((1, 3)) / np.sqrt(3)])
    acquisition = Acquisition(
        b=np.r_[0.0, 0.0, np.repeat((1.0, 3.0), 4)],
        directions=np.vstack([np.zeros((2, 3)), axes, axes]),
        small_delta=10.0,
        big_delta=30.0,
    )
    grid = bcc_grid(cells=3, cell_size_um=5.0)
    signals = simulate(acquisition, grid, cylinders(grid, [[0.0, 0, 0]], [4.0]))
    rng = np.random.default_rng(0)
    data = np.abs(100 * signals + rng.normal(scale=1.0, size=(*SHAPE, len(acquisition))))
    data[1, 0, 1, 3] = np.nan
    mask = np.ones(SHAPE, dtype=np.uint8)
    mask[1, 0, 1] = 0
    nib.save(nib.Nifti1Image(data.astype(np.float32), AFFINE), folder / "dwi.nii.gz")
    nib.save(nib.Nifti1Image(mask, AFFINE), folder / "mask.nii.gz")
    np.savetxt(folder / "dwi.bval", acquisition.b[None] * 1000)
    np.savetxt(folder / "dwi.bvec", acquisition.directions.T)
    np.savetxt(folder / "big_delta.txt", acquisition.big_delta / 1000)
    return folder


@pytest.fixture(scope="module")
def fitted(volume):
    """Folder of everything that the command line writes for the volume."""
    out_dir = volume / "fit"
    run(
        volume,
        big_delta=str(volume / "big_delta.txt"),
        small_delta="0.01",
        mask_file=str(volume / "mask.nii.gz"),
        mesh_voxels=["0,0,0"],
        out_dir=str(out_dir),
        **SMALL_GRID,
    )
    return out_dir


def run(folder, data="dwi.nii.gz", **options):
    files = (str(folder / name) for name in (data, "dwi.bval", "dwi.bvec"))
    SpinverseFlow().run(*files, **options)


def load(path):
    return nib.load(path).get_fdata()


def test_every_option_of_the_command_line_is_parsed_and_defaults_to_the_workflow_s():
    parser = IntrospectiveArgumentParser()
    parser.add_workflow(SpinverseFlow())
    given = parser.get_flow_args(["d.nii.gz", "d.bval", "d.bvec", "--te", "0.08"])
    # DIPY's parser turns every bool into a flag that is off, and drops what was not given.
    assert given == {
        "input_files": "d.nii.gz",
        "bvalues_files": "d.bval",
        "bvectors_files": "d.bvec",
        "te": "0.08",
        "walls": False,
        "free_water": False,
        "verbose": False,
    }


def test_bad_command_ends_with_one_line_instead_of_a_traceback(volume, monkeypatch):
    files = [str(volume / name) for name in ("dwi.nii.gz", "dwi.bval", "dwi.bvec")]
    monkeypatch.setattr(sys, "argv", ["dipy_fit_spinverse", *files, "--out_dir", str(volume)])
    with pytest.raises(SystemExit, match=r"^dipy_fit_spinverse: big_delta is missing"):
        main()


@pytest.mark.parametrize("missing", ["big_delta", "small_delta"])
def test_missing_deltas_say_how_to_give_them(volume, tmp_path, missing):
    timing = {name: value for name, value in TIMING.items() if name != missing}
    with pytest.raises(ValueError, match=rf"{missing} is missing; give --{missing} in seconds"):
        run(volume, out_dir=str(tmp_path), **timing)


@pytest.mark.parametrize("voxel", ["2,0,0", "0,0", "a,b,c", "0,0,-1", "0.5,0,0"])
def test_mesh_voxel_outside_the_volume_is_refused_before_the_fit(volume, tmp_path, voxel):
    with pytest.raises(ValueError, match=r"mesh_voxels: .* from 0,0,0 to 1,0,1"):
        run(volume, mesh_voxels=[voxel], out_dir=str(tmp_path), **TIMING)


def test_volume_without_a_measurement_axis_is_refused(volume, tmp_path):
    with pytest.raises(ValueError, match=r"mask.nii.gz has shape \(2, 1, 2\); give a 4-D"):
        run(volume, data="mask.nii.gz", out_dir=str(tmp_path), **TIMING)


def test_maps_and_standard_deviations_are_float32_in_the_input_s_space(fitted):
    for name in SpinverseFlow.maps:
        for suffix in ("", "_std"):
            image = nib.load(fitted / f"{name}{suffix}.nii.gz")
            assert image.shape[:3] == SHAPE
            assert image.get_data_dtype() == np.float32
            np.testing.assert_array_equal(image.affine, AFFINE)
            assert np.isfinite(image.get_fdata()).all()


def test_voxels_outside_the_mask_are_zero_everywhere(fitted):
    for path in fitted.glob("*.nii.gz"):
        if path.name != "status.nii.gz":
            assert not load(path)[1, 0, 1].any(), path.name


def test_predicted_signals_explain_the_data(fitted, volume):
    residual = (load(fitted / "predicted.nii.gz") - load(volume / "dwi.nii.gz"))[:, 0, 0]
    # The noise has a standard deviation of 1 % of S0 = 100; a fit that missed the walls has 10 %.
    assert np.sqrt(np.mean(residual**2)) < 3.0
    np.testing.assert_allclose(load(fitted / "S0.nii.gz")[:, 0, 0], 100.0, rtol=0.05)


def test_settings_file_tells_settings_versions_and_what_status_codes_mean(fitted):
    report = json.loads((fitted / "settings.json").read_text())
    assert report["settings"]["cells"] == 3
    assert report["settings"]["free_diffusivity"] == 3e-3
    assert {"dipy_spinverse", "dipy", "torch", "python"} <= set(report["versions"])
    codes = {entry["code"]: entry["voxels"] for entry in report["status"].values()}
    found, counts = np.unique(load(fitted / "status.nii.gz"), return_counts=True)
    assert {code: n for code, n in codes.items() if n} == dict(zip(found, counts, strict=True))


def test_saved_fit_holds_the_saved_maps(fitted):
    fit = load_fit(fitted / "fit.npz")
    np.testing.assert_allclose(
        fit.surface_to_volume, load(fitted / "surface_to_volume.nii.gz"), rtol=1e-6
    )


def test_requested_voxel_gets_a_mesh_for_paraview_and_one_for_horizon(fitted):
    for suffix in (".ply", ".vtu", ".surf.gii"):
        (path,) = fitted.glob(f"interface_0_0_0*{suffix}")  # perhaps one of many
        assert path.stat().st_size > 0
    assert not list(fitted.glob("interface_1_*"))


def test_meshes_lie_in_their_voxel_large_enough_to_be_seen(fitted):
    fit, voxel = load_fit(fitted / "fit.npz"), (0, 0, 0)
    mesh = fit.interface(voxel, field=0)
    placed = voxel_affine(AFFINE, (1, 0, 1), 15.0)
    mesh.save(fitted / "other.surf.gii", placed)
    (path,) = fitted.glob("interface_0_0_0*.surf.gii")
    for file, home in ((path, voxel), (fitted / "other.surf.gii", (1, 0, 1))):
        vertices = load_gifti(str(file))[0]
        index = nib.affines.apply_affine(np.linalg.inv(AFFINE), vertices) - home
        # The grid of 15 um fills 0.9 of the least edge.
        assert np.abs(index).max() < 0.46 and np.ptp(index, axis=0).max() > 0.3


def test_one_file_for_paraview_says_the_voxel_of_each_wall(fitted):
    read = meshio.read(fitted / "interface.vtu")
    values = {name: blocks[0] for name, blocks in read.cell_data.items()}
    assert len(values["voxel"]) == len(read.cells_dict["triangle"]) > 0
    assert not values["voxel"].any()  # of the one voxel 0, 0, 0
    assert (values["permeability_um_per_ms"] >= 0).all()


def test_walls_are_sought_in_the_voxels_of_meshes_alone_unless_asked_for(fitted):
    fit = load_fit(fitted / "fit.npz")
    assert np.argwhere(fit.has_walls).tolist() == [[0, 0, 0]]
    # Of the voxel outside the mask there is nothing.
    assert (fit.surface_to_volume_high > 0).sum() == 3


def test_mesh_of_a_voxel_outside_the_mask_is_left_out(volume, tmp_path, caplog):
    masked = {"mask_file": str(volume / "mask.nii.gz"), "mesh_voxels": ["1,0,1"]}
    run(volume, out_dir=str(tmp_path), n_draws=0, **masked, **TIMING, **SMALL_GRID)
    assert "(1, 0, 1) is NOT_FITTED; no mesh is written" in caplog.text
    assert not list(tmp_path.glob("interface*"))


def test_mesh_of_walls_that_do_not_explain_the_signals_is_left_out(fitted, tmp_path, caplog):
    fit = load_fit(fitted / "fit.npz")
    fit._values["wall_status"][:] = Status.MISFIT
    save_meshes(fit, [(0, 0, 0)], tmp_path / "interface", AFFINE)
    assert "(0, 0, 0) is MISFIT; no mesh is written" in caplog.text
    assert not list(tmp_path.iterdir())


def test_averages_over_directions_and_stimulated_echoes_are_read_from_options(volume):
    # The file of the bvectors is not read.
    bvalues = str(volume / "dwi.bval")
    given = {"bvalues_files": bvalues, "bvectors_files": bvalues}
    given |= {"big_delta": str(volume / "big_delta.txt"), "small_delta": "0.01"}
    powder = read_acquisition(**given, isotropic="all")
    assert powder.isotropic.sum() == (~powder.b0_mask).sum() > 0
    given["bvectors_files"] = str(volume / "dwi.bvec")
    np.savetxt(volume / "isotropic.txt", [0, 0, 1, 1, 1, 1, 0, 0, 0, 0])
    some = read_acquisition(**given, isotropic=str(volume / "isotropic.txt"))
    assert some.isotropic.sum() == 4
    untimed = {name: given[name] for name in ("bvalues_files", "bvectors_files")}
    means = read_acquisition(**untimed, n_averages="4")
    assert (means.n_averages == 4).all() and NODDIModel(means).acquisition.b.max() > 0
    np.testing.assert_allclose(means.b, some.b)
    with pytest.raises(ValueError, match="big_delta is missing"):
        read_pulses(**untimed, n_averages="4")
    stored = read_acquisition(**given, te="0.025", mixing_time="0.016")
    assert stored.te[0] == pytest.approx(25) and stored.mixing_time[0] == pytest.approx(16)


def test_existing_outputs_are_kept_unless_forced(fitted, volume):
    before = (fitted / "settings.json").read_bytes()
    with pytest.raises(FileExistsError, match="surface_to_volume.nii.gz exists .*--force"):
        run(volume, out_dir=str(fitted), **TIMING, **SMALL_GRID)
    assert (fitted / "settings.json").read_bytes() == before


def test_default_grid_of_the_command_line_is_that_of_the_model():
    acquisition = Acquisition(b=[0, 1], directions=np.eye(3)[:2], small_delta=10, big_delta=30)
    options = inspect.signature(SpinverseFlow.run).parameters
    grid = bcc_grid(cells=options["cells"].default, cell_size_um=options["cell_size"].default)
    np.testing.assert_array_equal(SpinverseModel(acquisition).grid.points_um, grid.points_um)
