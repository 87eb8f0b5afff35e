"""A fit of an image that is interrupted goes on where it was, and comes to the same result."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks import decay_model
from benchmarks.decay_model import ACQUISITION, decays
from dipy_spinverse.voxels import chunks
from dipy_spinverse.voxels.chunks import chunk_size
from dipy_spinverse.voxels.engines import each_computed
from dipy_spinverse.workflows.cli import command

DATA = decays((5, 4, 3))
MASK = np.arange(60).reshape(5, 4, 3) % 4 > 0
OPTIONS = {"n_draws": 2}


class DecayModel(decay_model.DecayModel):
    """Of which seven voxels are computed together."""

    VOX_PER_CHUNK = 7


class Interrupted(DecayModel):
    """Ends with an error at one of its chunks, as when a machine is switched off."""

    def fit_chunk(self, voxels, n_draws):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().fit_chunk(voxels, n_draws)


class Dying(DecayModel):
    """Kills its process at the last chunk, which is smaller, until a file allows it."""

    def fit_chunk(self, voxels, n_draws):
        if len(voxels) < self.VOX_PER_CHUNK and not Path(self.allowed).exists():
            time.sleep(1)  # until others are finished
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit_chunk(voxels, n_draws)


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.status, expected.status)
    assert found._values.keys() == expected._values.keys()
    for name, value in expected._values.items():
        np.testing.assert_array_equal(found._values[name], value, err_msg=name)


def begun(folder, n_chunks, data=DATA, **options):
    """A journal of some chunks."""
    model = Interrupted(ACQUISITION)
    model.left, model.__class__.__name__ = n_chunks, "DecayModel"
    with pytest.raises(KeyboardInterrupt):
        model.fit(data, MASK, **OPTIONS | options, journal=folder)


@contextmanager
def full_disk():
    """No file can become longer than 1000 bytes."""
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, usual)


@pytest.fixture
def expected():
    return DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS)


def computed_chunks(monkeypatch):
    """Numbers of voxels of the chunks that are computed from now on."""
    sizes, fit_chunk = [], DecayModel.fit_chunk

    def counted(self, voxels, n_draws):
        sizes.append(len(voxels))
        return fit_chunk(self, voxels, n_draws)

    monkeypatch.setattr(DecayModel, "fit_chunk", counted)
    return sizes


@pytest.mark.parametrize("n_chunks", [0, 1, 6])
def test_an_interrupted_fit_goes_on_to_the_same_result(tmp_path, monkeypatch, expected, n_chunks):
    begun(tmp_path / "journal", n_chunks)
    sizes = computed_chunks(monkeypatch)
    found = DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS, journal=tmp_path / "journal")
    assert_equal(found, expected)
    assert sum(sizes) == MASK.sum() - 7 * n_chunks
    del sizes[:]
    again = DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS, journal=tmp_path / "journal")
    assert_equal(again, expected)
    assert not sizes


def test_other_engines_and_numbers_of_workers_go_on_with_a_journal(tmp_path, expected):
    begun(tmp_path, 2)
    workers = {"engine": "joblib", "n_jobs": 2, "journal": tmp_path}
    assert_equal(DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS, **workers), expected)


def test_a_large_image_has_work_for_several_processes_and_a_small_one_is_computed_at_once():
    assert chunk_size(100_000, max_voxels=1000) == 1000
    assert chunk_size(12_000, max_voxels=1000) == 750
    assert chunk_size(600, max_voxels=1000) == 512
    assert chunk_size(64, max_voxels=64) == 64
    assert chunk_size(0, max_voxels=0) == 1


class Widening(DecayModel):
    """With a vector whose length differs between chunks, and one value for all voxels."""

    def layout(self, n_draws):
        return super().layout(n_draws) | {"vector": (float, (8,)), "same": float}

    def fit_chunk(self, voxels, n_draws):
        vector = np.ones((len(voxels), len(voxels)))
        return super().fit_chunk(voxels, n_draws) | {"vector": vector, "same": 7.0}


def test_smaller_arrays_of_a_chunk_are_padded_with_zeros():
    fit = Widening(ACQUISITION).fit(DATA[0, 0], n_draws=0)
    np.testing.assert_array_equal(fit.vector.sum(axis=1), 3)
    assert (fit.same == 7).all() and not fit.vector[:, 3:].any()


OTHERS = {
    "data": (DecayModel(ACQUISITION), {"data": DATA * (1 + 1e-12)}),
    "mask": (DecayModel(ACQUISITION), {"mask": ~MASK}),
    "n_draws": (DecayModel(ACQUISITION), {"n_draws": 3}),
    "sigma": (DecayModel(ACQUISITION), {"sigma": 1.0}),
    "model": (DecayModel(ACQUISITION, shift=0.1), {}),
    "acquisition": (DecayModel(ACQUISITION.subset(np.arange(12)[::-1])), {}),
}


@pytest.mark.parametrize("changed", OTHERS)
def test_chunks_of_another_fit_in_the_folder_are_neither_used_nor_lost(
    tmp_path, monkeypatch, expected, changed
):
    begun(tmp_path, 2)
    model, options = OTHERS[changed]
    options = {"data": DATA, "mask": MASK, **OPTIONS, **options}
    assert_equal(model.fit(**options, journal=tmp_path), model.fit(**options))
    sizes = computed_chunks(monkeypatch)
    assert_equal(DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS, journal=tmp_path), expected)
    assert len(sizes) == 7 - 2


def test_chunks_of_another_version_are_not_used(tmp_path, monkeypatch):
    begun(tmp_path, 2)
    monkeypatch.setattr(chunks, "__version__", "99.0")
    sizes = computed_chunks(monkeypatch)
    DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS, journal=tmp_path)
    assert len(sizes) == 7


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    DecayModel(ACQUISITION).fit(DATA, journal=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "gone"])
def test_a_damaged_chunk_is_computed_again(tmp_path, monkeypatch, expected, damage):
    begun(tmp_path, 3)
    path = sorted(tmp_path.glob("*.npz"))[1]
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        path.write_bytes({"truncated": content[:-100], "bit": changed, "empty": b""}[damage])
    sizes = computed_chunks(monkeypatch)
    found = DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS, journal=tmp_path)
    assert_equal(found, expected)
    assert len(sizes) == 7 - 2


def test_a_full_disk_is_said_and_costs_nothing_that_was_finished(tmp_path, expected):
    begun(tmp_path, 2)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(), pytest.raises(OSError, match="journal: cannot write .* start") as caught:
        DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS, journal=tmp_path)
    assert caught.value.errno == errno.EFBIG
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert_equal(DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS, journal=tmp_path), expected)


def test_a_full_disk_leaves_no_maps_and_keeps_those_of_before(tmp_path):
    np.savetxt(tmp_path / "dwi.bval", ACQUISITION.b[None] * 1000)
    np.savetxt(tmp_path / "dwi.bvec", ACQUISITION.directions.T)
    nib.save(nib.Nifti1Image(DATA[:2, :2, :1], np.eye(4)), tmp_path / "dwi.nii.gz")
    files = [str(tmp_path / f"dwi.{end}") for end in ("nii.gz", "bval", "bvec")]
    options = {"b0_threshold": 0.0, "n_draws": 0, "sigma": 1.0, "out_dir": str(tmp_path / "out")}
    flow = command("dipy_fit_ivim_varpro")
    said = r"out_dir: \w+\.\w+.* cannot be written \(File too large\); free disk space"
    with full_disk(), pytest.raises(OSError, match=said):
        flow().run(*files, **options)
    assert not list((tmp_path / "out").iterdir())
    flow().run(*files, **options)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) > 5
    with full_disk(), pytest.raises(OSError, match=said):
        flow(force=True).run(*files, **options)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_that_cannot_be_written_to_is_said_before_anything_is_computed(
    tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    sizes = computed_chunks(monkeypatch)
    with pytest.raises(OSError, match="^.*journal: cannot write to"):
        DecayModel(ACQUISITION).fit(DATA, journal=tmp_path / "file" / "journal")
    assert not sizes


def test_a_fit_that_is_killed_goes_on(tmp_path, expected):
    code = f"""
import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_journal as t
fit_chunk = t.DecayModel.fit_chunk
t.DecayModel.fit_chunk = lambda *args, **more: (time.sleep(0.3), fit_chunk(*args, **more))[1]
t.DecayModel(t.ACQUISITION).fit(t.DATA, t.MASK, **t.OPTIONS, journal={str(tmp_path)!r})
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 100
    while len(list(tmp_path.glob("*.npz"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 2 <= len(list(tmp_path.glob("*.npz"))) < 7
    assert_equal(DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS, journal=tmp_path), expected)


@pytest.mark.slow  # starts processes of its own
@pytest.mark.parametrize("engine", ["joblib", "dask", "ray"])
def test_the_death_of_a_worker_ends_in_an_error_and_a_rerun_resumes(
    tmp_path, monkeypatch, expected, engine
):
    pytest.importorskip({"joblib": "joblib", "dask": "distributed", "ray": "ray"}[engine])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # of workers of ray
    model = Dying(ACQUISITION)
    model.allowed, model.__class__.__name__ = str(tmp_path / "allowed"), "DecayModel"
    workers = {"engine": engine, "n_jobs": 2, "journal": tmp_path / "journal"}
    death = pytest.raises(RuntimeError, match="^engine: a worker process .* with a journal it res")
    with time_limit(300), death:
        model.fit(DATA, MASK, **OPTIONS, **workers)
    assert list(tmp_path.glob("journal/*.npz"))
    Path(model.allowed).touch()
    with time_limit(300):
        assert_equal(model.fit(DATA, MASK, **OPTIONS, **workers), expected)


@contextmanager
def time_limit(seconds):
    """TimeoutError in the main thread after some time, so that no test waits forever."""

    def stop(*_):
        raise TimeoutError(f"the test took more than {seconds} s")

    usual = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


@pytest.mark.slow  # starts processes of its own
@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_without_a_cluster_an_engine_starts_workers_of_its_own(monkeypatch, expected, engine):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # of workers of ray
    pytest.importorskip("distributed" if engine == "dask" else engine)
    with time_limit(300):
        found = DecayModel(ACQUISITION).fit(DATA, MASK, **OPTIONS, engine=engine, n_jobs=2)
    assert_equal(found, expected)


def slowly(chunk):
    time.sleep(0.2)
    return chunk


@pytest.mark.slow  # starts processes of its own
def test_chunks_are_made_when_processes_are_ready_for_them():
    made = []
    tasks = {k: lambda k=k: made.append(k) or k for k in range(30)}
    for n_computed, _ in enumerate(each_computed(slowly, tasks, "joblib", 2), start=1):
        assert len(made) <= n_computed + 8  # two for each process, when several end at once


def test_more_voxels_than_fit_into_memory_are_refused_with_a_cure():
    with pytest.raises(MemoryError, match=r"data of 60 voxels takes .* give a mask"):
        DecayModel(ACQUISITION).fit(DATA, sigma=1.0, max_memory=5e3)
    with pytest.raises(MemoryError, match=r"A fit of 60 voxels takes .* give a mask"):
        DecayModel(ACQUISITION).fit(DATA, sigma=1.0, n_draws=2, max_memory=1.5e4)
