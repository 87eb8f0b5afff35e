"""Fits killed repeatedly at random times: are results lost or wrong?

    python -m benchmarks.kills [--kills 100]

Duration: about 1 min (--quick: 10 kills). Writes results/kills.md.

A process fits an image with a journal and saves the fit; it is ended by SIGKILL at a random time
and started again with the same arguments, until it finishes. After each kill, all chunks that were
finished before must still be there, whole, and the saved fit must be there completely or not at
all. The result must equal that of an uninterrupted fit, bit by bit, and no unfinished file
may be left by the last fit, an hour later.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.command import command, keep
from benchmarks.decay_model import ACQUISITION, DecayModel, decays
from benchmarks.tables import machine, table
from dipy_spinverse import load_fit

KILLS, KILLS_QUICK = 100, 10
DATA = decays((12, 10, 10))
# Chunks of various sizes, all of which are written in a fraction of a second.
SIZES = (5, 10, 50)
LONGEST_S = 0.3


def model_of(vox_per_chunk: int) -> DecayModel:
    """The model with chunks of so many voxels."""
    model = DecayModel(ACQUISITION)
    model.VOX_PER_CHUNK = vox_per_chunk
    return model


def killed(folder: Path, model: DecayModel, after: float) -> bool:
    """Whether a fit was killed before its end."""
    child = os.fork()
    if child == 0:
        fit = model.fit(DATA, n_draws=2, journal=folder / "journal")
        fit.save(folder / "fit.npz")
        os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def chunks_of(folder: Path) -> dict[str, bytes]:
    """Finished chunks."""
    return {path.name: path.read_bytes() for path in folder.glob("journal/*.npz")}


def until_finished(vox_per_chunk: int, rng, left: int):
    """Kills of one fit, lost chunks, wrong results, and unfinished files left."""
    model = model_of(vox_per_chunk)
    expected = model.fit(DATA, n_draws=2)
    n_kills = n_lost = n_wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), {}
        while n_kills < left:
            if not killed(folder, model, rng.uniform(0, LONGEST_S)):
                break
            n_kills += 1
            now = chunks_of(folder)
            n_lost += sum(now.get(name) != content for name, content in before.items())
            before = now
            if (folder / "fit.npz").exists():
                load_fit(folder / "fit.npz", model)
        for path in folder.rglob(".unfinished_*"):
            os.utime(path, (time.time() - 3600,) * 2)
        found = model.fit(DATA, n_draws=2, journal=folder / "journal")
        found.save(folder / "fit.npz")
        n_wrong += not all(
            np.array_equal(found._values[name], value) for name, value in expected._values.items()
        )
        left_over = len(list(folder.rglob(".unfinished_*")))
    return n_kills, n_lost, n_wrong, left_over


def main():
    parser = command(__doc__, quick=f"{KILLS_QUICK} kills")
    parser.add_argument("--kills", type=int, default=KILLS)
    arguments = parser.parse_args()
    left = KILLS_QUICK if arguments.quick else arguments.kills
    rng = np.random.default_rng(0)
    share = -(-left // len(SIZES))
    totals = {size: np.zeros(5, dtype=int) for size in SIZES}
    while left > 0:
        for size in SIZES:
            result = until_finished(size, rng, min(left, share))
            totals[size] += np.array([1, *result])
            left -= result[0]
    rows = [(size, -(-DATA[..., 0].size // size), *total) for size, total in totals.items()]
    header = (
        "voxels per chunk", "chunks", "fits", "kills", "chunks lost", "wrong results",
        "unfinished files left",
    )  # fmt: skip
    text = f"# Killed fits\n\n{machine()}. {__doc__.strip()}\n\n{table(header, rows)}\n"
    print(table(header, rows))
    keep("kills.md", text, complete=not arguments.quick)


if __name__ == "__main__":
    main()
