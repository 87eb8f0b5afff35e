"""Fits killed repeatedly at random times: are results lost or wrong?

    python -m benchmarks.kills [--kills 100]

Duration: about 3 CPU-min (--quick: 10 kills). Writes results/kills.md.

A process fits an image with a journal and saves the fit; it is ended by SIGKILL at a random time
and started again with the same arguments, until it finishes. After each kill, all chunks that were
finished before must still be there, whole, and the saved fit must be there completely or not at
all. The result must equal that of an uninterrupted fit, bit by bit, and no unfinished file
may be left by the last fit, an hour later. Chunks are so small that most restarts resume: the
table has the median number of chunks that were finished at a kill.
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
from dipy_spinverse import Acquisition, load_fit
from dipy_spinverse.packed_cells import PackedCellsModel

KILLS, KILLS_QUICK = 100, 10
# Names, voxels per chunk and longest times until a kill, s: a chunk takes a fraction of these.
FITS = ("decay", 5, 0.3), ("decay", 10, 0.3), ("decay", 50, 0.3), ("packed cells", 2, 3.0)


def packed_cells():
    """The model of packed cells, and signals of 40 voxels of water that is partly restricted."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(60, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    acquisition = Acquisition(
        b=np.tile(np.repeat([0, 1.0, 2.5], 20), 2), directions=np.tile(directions, (2, 1)),
        small_delta=10, big_delta=np.repeat([20, 50], 60),
    )  # fmt: skip
    decay = np.exp(-acquisition.b * rng.uniform(0.2, 1.5, (40, 1)))
    return PackedCellsModel(acquisition), decay + rng.normal(scale=0.03, size=decay.shape)


def problem(name: str, vox_per_chunk: int):
    """The model with chunks of so many voxels, and data."""
    decay = DecayModel(ACQUISITION), decays((12, 10, 10))
    model, data = decay if name == "decay" else packed_cells()
    model.VOX_PER_CHUNK = vox_per_chunk
    return model, data


def killed(folder: Path, model, data, after: float) -> bool:
    """Whether a fit was killed before its end."""
    child = os.fork()
    if child == 0:
        fit = model.fit(data, n_draws=2, journal=folder / "journal")
        fit.save(folder / "fit.npz")
        os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def chunks_of(folder: Path) -> dict[str, bytes]:
    """Finished chunks."""
    return {path.name: path.read_bytes() for path in folder.glob("journal/*.npz")}


def until_finished(model, data, longest: float, rng, left: int):
    """Finished chunks at each kill of a fit; lost chunks, wrong results, unfinished files left."""
    expected = model.fit(data, n_draws=2)
    finished, n_lost, n_wrong = [], 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), {}
        while len(finished) < left:
            if not killed(folder, model, data, rng.uniform(0, longest)):
                break
            now = chunks_of(folder)
            n_lost += sum(now.get(name) != content for name, content in before.items())
            before = now
            finished.append(len(now))
            if (folder / "fit.npz").exists():
                load_fit(folder / "fit.npz", model)
        for path in folder.rglob(".unfinished_*"):
            os.utime(path, (time.time() - 3600,) * 2)
        found = model.fit(data, n_draws=2, journal=folder / "journal")
        found.save(folder / "fit.npz")
        n_wrong += not all(
            np.array_equal(found._values[name], value) for name, value in expected._values.items()
        )
        left_over = len(list(folder.rglob(".unfinished_*")))
    return finished, np.array([1, n_lost, n_wrong, left_over])


def main():
    parser = command(__doc__, quick=f"{KILLS_QUICK} kills")
    parser.add_argument("--kills", type=int, default=KILLS)
    arguments = parser.parse_args()
    left = KILLS_QUICK if arguments.quick else arguments.kills
    rng = np.random.default_rng(0)
    problems = [problem(name, size) for name, size, _ in FITS]
    share = -(-left // len(FITS))
    finished, totals = [[] for _ in FITS], np.zeros((len(FITS), 4), dtype=int)
    while left > 0:
        for k, (model, data) in enumerate(problems):
            at_kills, counts = until_finished(model, data, FITS[k][2], rng, min(left, share))
            finished[k] += at_kills
            totals[k] += counts
            left -= len(at_kills)
    rows = [
        (name, size, -(-data[..., 0].size // size), total[0], len(at_kills),
         f"{np.median(at_kills):.0f}", np.count_nonzero(at_kills), *total[1:])
        for (name, size, _), (_, data), at_kills, total in zip(
            FITS, problems, finished, totals, strict=True
        )
    ]  # fmt: skip
    header = (
        "fit", "voxels per chunk", "chunks", "fits", "kills", "finished chunks (median)",
        "restarts that resume", "chunks lost", "wrong results", "unfinished files left",
    )  # fmt: skip
    text = f"# Killed fits\n\n{machine()}. {__doc__.strip()}\n\n{table(header, rows)}\n"
    print(table(header, rows))
    keep("kills.md", text, complete=not arguments.quick)


if __name__ == "__main__":
    main()
