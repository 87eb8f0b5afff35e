"""Images larger than memory, and what runs that were killed leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from benchmarks.decay_model import ACQUISITION, DecayModel, decays
from dipy_spinverse.report.images import save_image, save_predictions
from dipy_spinverse.voxels.unfinished import alone_in, staging, visible

AFFINE = np.diag([2.0, 2.0, -2.0, 1.0])
MODEL = DecayModel(ACQUISITION)


@pytest.mark.parametrize("name", ["predicted.nii", "predicted.nii.gz"])
def test_predictions_are_written_as_nibabel_writes_them(tmp_path, name):
    mask = np.arange(60).reshape(5, 4, 3) % 4 > 0
    fit = MODEL.fit(decays(mask.shape), mask, n_draws=0)
    save_image(tmp_path / f"dense_{name}", fit.predict(), AFFINE, "signals")
    save_predictions(fit, tmp_path / name, AFFINE, "signals")
    found, expected = nib.load(tmp_path / name), nib.load(tmp_path / f"dense_{name}")
    assert found.header == expected.header
    np.testing.assert_array_equal(found.get_fdata(), expected.get_fdata())


def test_memory_of_written_predictions_follows_the_mask_and_not_the_volume(tmp_path):
    shape = 40, 40, 40
    mask = np.zeros(shape, dtype=bool)
    mask[20, 20] = True
    data = np.zeros((*shape, len(ACQUISITION)), dtype=np.float32)
    data[mask] = decays((40,))
    fit = MODEL.fit(data, mask, n_draws=0)
    tracemalloc.start()
    save_predictions(fit, tmp_path / "predicted.nii.gz", AFFINE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Some volumes of one number per voxel, where twelve signals of each are twelve.
    assert peak < 0.5 * data.astype(float).nbytes


def least_memory(data, sigma):
    """Bytes with which a fit is accepted, within two percent."""
    refused, enough = data.nbytes, 64 * data.nbytes
    while enough > 1.02 * refused:
        middle = (refused + enough) / 2
        try:
            MODEL.fit(data, sigma=sigma, n_draws=2, max_memory=middle)
            enough = middle
        except MemoryError:
            refused = middle
    return enough


# Without it, the levels of noise that an image may have are counted, of which there may be fewer.
@pytest.mark.parametrize(("sigma", "most_of_data"), [(1.0, 6), (None, 40)])
def test_a_fit_takes_no_more_than_the_memory_that_it_is_given(sigma, most_of_data):
    data = decays((20_000,))
    enough = least_memory(data, sigma)
    assert enough < most_of_data * data.nbytes
    tracemalloc.start()
    MODEL.fit(data, sigma=sigma, n_draws=2, max_memory=enough)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A tenth for the thousand voxels that are computed together.
    assert peak < 1.1 * enough


def killed_within(folder):
    """A run that was ended while it wrote a file."""
    code = f"""
import os, pathlib, signal
from dipy_spinverse.voxels.unfinished import staging
with staging(pathlib.Path({str(folder)!r})) as hidden:
    (hidden / "map.nii.gz").write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode < 0


def test_what_a_killed_run_leaves_is_removed_by_the_next(tmp_path):
    killed_within(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and not visible(tmp_path)
    MODEL.fit(decays((2,)), n_draws=0).save(tmp_path / "fit.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["fit.npz"]


def test_what_a_run_leaves_that_was_killed_before_it_locked_its_folder_is_removed_later(tmp_path):
    recent, old = (tmp_path / f".unfinished_{name}" for name in ("recent", "old"))
    for hidden in (recent, old):
        hidden.mkdir()
    os.utime(old, (time.time() - 3600,) * 2)
    MODEL.fit(decays((2,)), n_draws=0, journal=tmp_path)
    assert recent.exists() and not old.exists()


def test_what_a_living_run_writes_is_left_alone(tmp_path):
    with staging(tmp_path) as hidden:
        (hidden / "map.nii.gz").write_text("half of it")
        with staging(tmp_path) as other:
            assert other != hidden and (hidden / "map.nii.gz").exists()
    assert not list(tmp_path.iterdir())


def test_two_runs_do_not_share_a_journal(tmp_path):
    data = decays((4,))
    MODEL.fit(data, journal=tmp_path)
    with (
        alone_in(tmp_path),
        pytest.raises(OSError, match="^.*journal: another run writes to .*; wait until it ends"),
    ):
        MODEL.fit(data, journal=tmp_path)
    MODEL.fit(data, journal=tmp_path)
