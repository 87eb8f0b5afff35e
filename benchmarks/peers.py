"""Environments of other packages, and results of their tasks in `compartment_peers`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

FOLDER = Path.home() / ".cache" / "dipy_spinverse_peers"
_SCRIPT = Path(__file__).with_name("compartment_peers.py")
_LONGEST = 1800  # s, for a peer's task
# Peer: what pip installs, then without its dependencies, and a line to change in a file.
_PEERS = {
    "amico": (["dmri-amico==2.1.1"], [], None),
    "dmipy": (
        ["numpy==1.26.4", "scipy==1.12.0", "dipy==1.9.0", "setuptools<80", "numba", "cvxpy",
         "boto", "future", "matplotlib"],
        ["dmipy==1.0.5"],
        ("dmipy/core/acquisition_scheme.py", "if deltas == []:", "if len(deltas) == 0:"),
    ),
    "swissknife": (
        ["graymatter-swissknife==1.4.3", "numpy", "scipy", "tqdm", "joblib", "nibabel",
         "matplotlib"],
        [],
        None,
    ),
}  # fmt: skip


def environment(folder: Path, peer: str) -> Path | None:
    """Python of a peer's environment, created if missing; None if it cannot be created."""
    python = folder / peer / "bin" / "python"
    done = folder / peer / "complete"
    if done.exists():
        return python
    packages, alone, patch = _PEERS[peer]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder / peer)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, *packages], check=True)
        if alone:
            subprocess.run([*pip, "--no-deps", *alone], check=True)
        if patch:
            path = next((folder / peer / "lib").glob(f"*/site-packages/{patch[0]}"))
            path.write_text(path.read_text().replace(*patch[1:]))
    except (subprocess.CalledProcessError, StopIteration) as error:
        print(f"{peer} cannot be installed here: {error}")
        return None
    done.touch()
    return python


def peer_result(folder: Path | None, peer: str, task: str, **given) -> dict | None:
    """Result of a peer's task of `compartment_peers`; None where it does not run."""
    if folder is None:
        return None
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder, peer)
    if python is None:
        return None
    source, target = folder / f"{task}_in.npz", folder / f"{task}_out.npz"
    np.savez(source, **given)
    command = [str(python), str(_SCRIPT), task, str(source), str(target)]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=_LONGEST,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"{peer} does not end {task} in {_LONGEST} s")
        return None
    if run.returncode:
        print(f"{peer} does not run {task}: {run.stderr.strip().splitlines()[-1]}")
        return None
    with np.load(target) as file:
        return {name: np.squeeze(file[name]) for name in file}
