"""Clusters of one machine, started by the commands of the documentation, fit two subjects."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks.decay_model import ACQUISITION, decays
from dipy_spinverse.workflows.cli import command

pytestmark = pytest.mark.slow  # starts processes of its own
BIN = Path(sys.executable).parent


@contextmanager
def running(*commands):
    """Programs of the environment, ended with all that they have started."""
    psutil = pytest.importorskip("psutil")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    programs = [subprocess.Popen([BIN / name, *options], **quiet) for name, *options in commands]
    try:
        yield programs
    finally:
        started = [psutil.Process(program.pid) for program in programs]
        for process in [*started, *(c for p in started for c in p.children(recursive=True))]:
            process.kill()
        for program in programs:
            program.wait()


def fitted(folder, **options):
    """Maps of two subjects, fitted by the command of IVIM."""
    maps = []
    for k in (1, 2):
        out = folder / f"sub-{k}"
        out.mkdir(parents=True)
        np.savetxt(out / "dwi.bval", 1000 * ACQUISITION.b[None])
        np.savetxt(out / "dwi.bvec", ACQUISITION.directions.T)
        nib.save(nib.Nifti1Image(k * decays((4, 3, 2)), np.eye(4)), out / "dwi.nii.gz")
        files = [str(out / f"dwi.{end}") for end in ("nii.gz", "bval", "bvec")]
        options |= {"b0_threshold": 0.0, "sigma": 1.0, "out_dir": str(out / "maps")}
        command("dipy_fit_ivim_varpro")().run(*files, **options)
        maps.append({p.name: nib.load(p).get_fdata() for p in out.glob("maps/*.nii.gz")})
    return maps


def assert_fits_equal_those_of_one_process(tmp_path, engine):
    found, expected = fitted(tmp_path / engine, engine=engine), fitted(tmp_path / "serial")
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() and "status.nii.gz" in one
        for name, values in other.items():
            # Chunks and their workers have their own rounding.
            np.testing.assert_allclose(one[name], values, rtol=1e-5, err_msg=name)


def test_a_dask_scheduler_and_its_workers(tmp_path):
    distributed = pytest.importorskip("distributed")
    address = "--scheduler-file", str(tmp_path / "scheduler.json")
    worker = "dask", "worker", *address, "--nthreads", "1"
    with running(("dask", "scheduler", *address, "--port", "0"), worker, worker):
        with distributed.Client(scheduler_file=address[1], timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            assert_fits_equal_those_of_one_process(tmp_path, "dask")
            assert len(client.run(os.getpid)) == 2


def test_a_ray_head_node(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")  # what "auto" finds
    options = f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--block"
    with running(("ray", "start", "--head", *options)):
        until = time.monotonic() + 60
        while not ray.is_initialized():
            try:
                ray.init(address="auto", log_to_driver=False)
            except ConnectionError:  # the head node is not ready
                assert time.monotonic() < until
                time.sleep(1)
        try:
            assert_fits_equal_those_of_one_process(tmp_path, "ray")
            assert ray.cluster_resources()["CPU"] == 2
        finally:
            ray.shutdown()
