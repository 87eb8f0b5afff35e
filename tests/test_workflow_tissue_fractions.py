"""dipy_fit_tissue_fractions: what it reads, what it writes, how it refuses."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from dipy_spinverse import TissueFractionModel, load_fit
from dipy_spinverse.tissue_fractions import sequence_from
from dipy_spinverse.workflows.fit_tissue_fractions import TissueFractionsFlow

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])
SHAPE = (6, 5, 2)
NOISE = 0.2
# Steady states of three flip angles and two spin echoes, as sidecars say them.
SIDECARS = {
    **{
        f"flip{angle}": {
            "ScanningSequence": "GR", "RepetitionTime": 0.02, "EchoTime": 0.004,
            "FlipAngle": angle,
        }
        for angle in (3, 12, 30)
    },
    **{
        f"echo{te}": {
            "ScanningSequence": "SE", "RepetitionTime": 4.0, "EchoTime": te / 1e3,
            "FlipAngle": 180,
        }
        for te in (20, 90)
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def examination(tmp_path_factory):
    """Folder of images of mixtures with sidecars, and the true fractions."""
    folder = tmp_path_factory.mktemp("examination")
    rng = np.random.default_rng(0)
    fractions = rng.dirichlet(np.ones(3), SHAPE)
    truth = dict(zip(("csf", "gm", "wm"), np.moveaxis(fractions, -1, 0), strict=True))
    model = TissueFractionModel([sequence_from(each) for each in SIDECARS.values()])
    images = model.signals(truth, S0=1000.0)
    images = images + rng.normal(scale=NOISE, size=images.shape)
    for k, (name, sidecar) in enumerate(SIDECARS.items()):
        save(images[..., k], folder / f"{name}.nii.gz")
        (folder / f"{name}.json").write_text(json.dumps(sidecar))
    mask = np.ones(SHAPE, dtype=np.uint8)
    mask[0, 0, 0] = 0
    save(mask, folder / "mask.nii.gz")
    return folder, truth


@pytest.fixture(scope="module")
def fitted(examination):
    """Folder of everything that the command writes for the images, by their sidecars."""
    folder, _ = examination
    run(folder, out_dir=str(folder / "fit"), mask_file=str(folder / "mask.nii.gz"))
    return folder / "fit"


def save(data, path, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.asarray(data, dtype=np.float32), affine), path)


def load(path):
    return nib.load(path).get_fdata()


def run(folder, names=tuple(SIDECARS), **options):
    files = [str(folder / f"{name}.nii.gz") for name in names]
    defaults = {"sigma": NOISE, "unknown": ["scale"], "n_draws": 64}
    defaults["series"] = [0] * len(SIDECARS)
    TissueFractionsFlow().run(files, **{**defaults, **options})


def test_maps_of_the_sidecars_sequences_are_the_true_fractions(examination, fitted):
    _, truth = examination
    for name, true in truth.items():
        error = np.abs(load(fitted / f"{name}.nii.gz") - true)
        # Noise of 0.5 % of the signals, contrasts that tell tissues well apart.
        assert error[1:].mean() < 0.02


def test_maps_deviations_and_ends_of_intervals_are_float32_in_the_place_of_the_images(fitted):
    for name in TissueFractionsFlow.maps:
        parts = [nib.load(fitted / f"{name}{end}.nii.gz") for end in ("_low", "", "_high", "_std")]
        for image in parts:
            assert image.get_data_dtype() == np.float32
            np.testing.assert_array_equal(image.affine, AFFINE)
        low, middle, high, std = (image.get_fdata() for image in parts)
        assert (low <= middle).all() and (middle <= high).all()
        assert (std[1:] > 0).any() or name == "background"  # of which there is none


def test_voxels_outside_the_mask_are_zero_everywhere(fitted):
    for path in fitted.glob("*.nii.gz"):
        assert not load(path)[0, 0, 0].any(), path.name


def test_predicted_images_are_the_images_up_to_their_noise(examination, fitted):
    folder, _ = examination
    images = np.stack([load(folder / f"{name}.nii.gz") for name in SIDECARS], axis=-1)
    residual = (load(fitted / "predicted.nii.gz") - images)[1:]
    # Fractions and a scale take freedom from the residual, never add to it.
    assert np.sqrt((residual**2).mean()) < 1.2 * NOISE


def test_saved_fit_and_settings_say_what_was_done(fitted):
    fit = load_fit(fitted / "fit.npz")
    np.testing.assert_allclose(fit.gm, load(fitted / "gm.nii.gz"), atol=1e-6)
    report = json.loads((fitted / "settings.json").read_text())
    assert report["settings"]["unknown"] == ["scale"]
    assert report["status"]["not_fitted"]["voxels"] == 1
    assert report["map_units"]["gm"] == "1"


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_file_of_all_sequences_says_what_the_sidecars_say(examination, tmp_path, suffix):
    folder, _ = examination
    path = tmp_path / f"sequences{suffix}"
    if suffix == ".yaml":
        pytest.importorskip("yaml")
    path.write_text(json.dumps([*SIDECARS.values()]))  # JSON is YAML too
    one = np.stack([load(folder / f"{name}.nii.gz") for name in SIDECARS], axis=-1)
    save(one, tmp_path / "all.nii.gz")
    options = {"mask_file": str(folder / "mask.nii.gz")}
    found, expected = (
        TissueFractionsFlow().read_images(input_files=files, **options | more)
        for files, more in (
            ([str(tmp_path / "all.nii.gz")], {"sequences_file": str(path)}),
            ([str(folder / f"{name}.nii.gz") for name in SIDECARS], {}),
        )
    )
    assert found.acquired == expected.acquired
    np.testing.assert_array_equal(found.mask, expected.mask)
    for k in range(len(SIDECARS)):
        np.testing.assert_array_equal(found.data[..., k], expected.data[..., k])


def test_tissues_of_a_file_are_beside_those_of_the_literature_or_in_their_place(
    examination, tmp_path
):
    folder, _ = examination
    oil = {
        "name": "oil", "proton_density": 0.9, "t1_s": 0.3, "t2_s": 0.1, "t2_prime_s": 0.2,
        "diffusivity": 0.1e-3,
    }  # fmt: skip
    path, fit = tmp_path / "tissues.json", tmp_path / "fit"
    path.write_text(json.dumps([oil, {**oil, "name": "gm", "t1_s": 1.5}]))
    few = np.zeros(SHAPE, dtype=np.uint8)
    few[1, :3, 0] = 1  # of many kinds of mixtures
    save(few, tmp_path / "few.nii.gz")
    options = {"mask_file": str(tmp_path / "few.nii.gz"), "n_draws": 0}
    run(folder, tissues_file=str(path), out_dir=str(fit), **options)
    tissues = {tissue.name: tissue for tissue in load_fit(fit / "fit.npz").model.tissues}
    assert [*tissues] == ["csf", "gm", "wm", "oil"] and tissues["gm"].t1_s == 1.5
    parts = sum(load(fit / f"{name}.nii.gz") for name in (*tissues, "background"))
    np.testing.assert_allclose(parts[few > 0], 1, atol=1e-6)  # stored in float32
    path.write_text(json.dumps([{"name": "oil", "t3_s": 1}]))
    with pytest.raises(ValueError, match="tissues_file: .*tissues.json has .*t3_s"):
        run(folder, tissues_file=str(path), out_dir=str(tmp_path / "none"))


def test_images_of_other_shapes_places_or_numbers_are_refused(examination, tmp_path):
    folder, _ = examination
    save(np.ones((4, 5, 2)), tmp_path / "small.nii.gz")
    save(np.ones(SHAPE), tmp_path / "moved.nii.gz", np.diag([-2.0, 2.0, 3.1, 1.0]))
    first = str(folder / "flip3.nii.gz")
    for name, message in (("small", r"shape \(4, 5, 2\).*small"), ("moved", "affine.*moved")):
        with pytest.raises(ValueError, match=message):
            TissueFractionsFlow().run([first, str(tmp_path / f"{name}.nii.gz")])
    (tmp_path / "two.json").write_text(json.dumps([*SIDECARS.values()][:2]))
    with pytest.raises(ValueError, match="2 sequences, but the images have 5 contrasts"):
        run(folder, sequences_file=str(tmp_path / "two.json"), out_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"mask_file: .* \(4, 5, 2\), but .* have \(6, 5, 2\)"):
        run(folder, mask_file=str(tmp_path / "small.nii.gz"), out_dir=str(tmp_path))


def test_what_a_description_lacks_is_said_with_the_name_of_its_file(examination, tmp_path):
    save(np.ones(SHAPE), tmp_path / "t1.nii.gz")
    with pytest.raises(ValueError, match="t1.nii.gz has no sidecar t1.json"):
        run(tmp_path, ["t1"], out_dir=str(tmp_path))
    (tmp_path / "t1.json").write_text(json.dumps({"RepetitionTime": 0.02, "FlipAngle": 9}))
    with pytest.raises(ValueError, match=r"t1.json: a SpoiledGradientEcho needs te \(EchoTime"):
        run(tmp_path, ["t1"], out_dir=str(tmp_path))
