"""A whole image: time from file to maps, memory against voxels, batches, two workers.

    python -m benchmarks.whole_image [-n 10000] [--packed 300] [--no-walls]

Duration: about 5 CPU-minutes (--quick: 500 voxels, without walls, 30 s). Writes
results/whole_image.md.

An image of NODDI voxels (Rician, SNR 30, 97 measurements) is written to NIfTI, read volume by
volume, fitted with a journal, saved, and written as maps and predicted signals: CPU time of one
process with one thread, scaled to 100,000 voxels; so are packed cells. Resident memory is sampled
while it is fitted; growth is that from the first tenth of the time to the last. Peaks of memory
are those of fresh processes, with a model whose own memory does not count. Of batches, CPU time of
one voxel fitted by itself, and of one among 64, is compared. Of two workers, the CPU time of all
processes over that of a serial fit says what they cost, and the wall time, which means something
on an idle machine alone, what they are worth.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from dipy.core.gradients import gradient_table

from benchmarks.command import command, keep
from benchmarks.decay_model import ACQUISITION, DecayModel
from benchmarks.fit_cost import protocol
from benchmarks.tables import machine, table
from dipy_spinverse import NODDIModel, PackedCellsModel, SpinverseModel, bcc_grid, simulate
from dipy_spinverse.report.files import save_map, save_predictions
from dipy_spinverse.substrates.walls_of_bodies import cylinders
from dipy_spinverse.voxels.image_files import StoredImage, mask_of

N, N_QUICK = 10_000, 500
N_INTERVALS = 1000
PACKED, PACKED_QUICK = 300, 30
BATCH = 64
N_WORKERS, N_WORKERS_QUICK, WORKERS_CHUNK = 400, 60, 25
WHOLE = 100_000
SNR = 30.0
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
# Shape of the volume and number of voxels in the mask.
VOLUMES = [((1, 1, 1), 1), ((10, 10, 1), 100), ((10, 10, 10), 1000), ((50, 50, 40), 100_000),
           ((100, 100, 60), 100)]  # fmt: skip


def noddi() -> NODDIModel:
    """Of two shells of 40 directions, and b0."""
    directions = np.random.default_rng(0).standard_normal((97, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    bvals = np.r_[np.zeros(17), np.full(40, 700.0), np.full(40, 2000.0)]
    return NODDIModel(gradient_table(bvals, bvecs=directions))


def write_image(folder: Path, n_voxels: int, model) -> tuple[Path, Path]:
    """An image of which every voxel of the mask is one of the model."""
    side = int(np.ceil((2 * n_voxels) ** (1 / 3)))
    mask = np.zeros(side**3, dtype=np.uint8)
    mask[np.random.default_rng(1).permutation(side**3)[:n_voxels]] = 1
    mask = mask.reshape(side, side, side)
    signals = 1000 * model.signals(model.draw(n_voxels, seed=2))
    noise = 1000 / SNR * np.random.default_rng(3).standard_normal((2, *signals.shape))
    data = np.zeros((*mask.shape, signals.shape[1]), dtype=np.float32)
    data[mask > 0] = np.hypot(signals + noise[0], noise[1])
    paths = folder / "dwi.nii.gz", folder / "mask.nii.gz"
    for path, values in zip(paths, (data, mask), strict=True):
        nib.save(nib.Nifti1Image(values, AFFINE), path)
    return paths


def resident() -> float:
    """GiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


class Sampled:
    """Resident memory over time."""

    def __enter__(self):
        self.values, self._over = [], threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self):
        while not self._over.wait(0.2):
            self.values.append(resident())

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """From the first tenth of the time, the very beginning left out, to the last."""
        n = max(len(self.values) // 10, 1)
        first, last = self.values[n : 2 * n] or self.values, self.values[-n:]
        return np.median(last) / np.median(first) - 1


def from_file_to_maps(n_voxels: int, n_draws: int):
    """CPU seconds of reading, fitting and writing, growth and peak of memory."""
    model, seconds = noddi(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_image(folder, n_voxels, model)
        start = time.process_time()
        data = StoredImage(paths[0], "data")
        mask = mask_of(paths[1], (data.shape[:3], data.affine), "mask")
        with Sampled() as memory:
            fit = model.fit(data, mask, n_draws=n_draws, journal=folder / "journal")
        seconds.append(time.process_time() - start)
        fit.save(folder / "fit.npz")
        for each in fit.MAPS:
            save_map(fit, each, folder / f"{each}.nii.gz", AFFINE)
        save_predictions(fit, folder / "predicted.nii.gz", AFFINE)
        seconds.append(time.process_time() - start - seconds[0])
    return (*seconds, memory.growth, max(memory.values, default=resident()))


def peak_of(index: int) -> None:
    """Print MiB that a fit of a volume adds to a fresh process, and bytes that it must hold."""
    shape, n_wanted = VOLUMES[index]
    mask = np.zeros(int(np.prod(shape)), dtype=bool)
    mask[:n_wanted] = True
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "dwi.nii"
        volume = np.zeros((*shape, len(ACQUISITION)), dtype=np.float32)
        volume[mask.reshape(shape)] = 100 * np.exp(-ACQUISITION.b)
        nib.save(nib.Nifti1Image(volume, AFFINE), path)
        del volume
        model = DecayModel(ACQUISITION)
        model.fit(np.exp(-ACQUISITION.b), n_draws=0)
        before = resident()
        with Sampled() as memory:
            fit = model.fit(StoredImage(path, "data"), mask.reshape(shape), n_draws=2)
            time.sleep(0.5)
        needed = mask.sum() * 8 * len(ACQUISITION) + sum(v.nbytes for v in fit._values.values())
        print((max(memory.values) - before) * 1024, needed / 2**20)


def peaks():
    """Rows of the table of peaks."""
    for k, (shape, n_wanted) in enumerate(VOLUMES):
        code = f"from benchmarks.whole_image import peak_of; peak_of({k})"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        peak, needed = map(float, said.stdout.split())
        yield " x ".join(map(str, shape)), n_wanted, f"{needed:.1f}", f"{peak:.1f}"


def packed_cells(n_voxels: int) -> float:
    """CPU seconds of maps with intervals of voxels of packed cylinders."""
    acquisition, _, signals = tissue()
    data = noisy(np.tile(signals, (n_voxels, 1)))
    model = PackedCellsModel(acquisition)
    model.fit(data[:2], sigma=1 / SNR)
    start = time.process_time()
    model.fit(data, sigma=1 / SNR)
    return time.process_time() - start


def tissue():
    """Three timings, and the signals of permeable cylinders on their grid."""
    acquisition, grid = protocol(), bcc_grid(8, 2.5)
    walls = cylinders(grid, [0, 0, 0], 6.0, permeability=0.02)
    return acquisition, grid, simulate(acquisition, grid, walls)


def noisy(signals: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(3).standard_normal((2, *signals.shape)) / SNR
    return np.hypot(signals + noise[0], noise[1])


def batches(walls: bool):
    """Rows: model, CPU-ms of a voxel by itself and among 64, and their ratio."""
    model = noddi()
    data = noisy(model.signals(model.draw(BATCH, seed=2)))
    acquisition, _, signals = tissue()
    of_tissue = noisy(np.tile(signals, (BATCH, 1)))
    packed = PackedCellsModel(acquisition)
    # Of slow models some voxels alone are fitted by themselves; the others will cost as much.
    kinds = [
        ("NODDI, likeliest", partial(model.fit, sigma=1 / SNR, n_draws=0), data, BATCH),
        ("NODDI, with intervals", partial(model.fit, sigma=1 / SNR), data, 16),
        ("packed cells, with intervals", partial(packed.fit, sigma=1 / SNR), of_tissue, 8),
    ]
    if walls:
        fields = SpinverseModel(acquisition, grid=bcc_grid(4, 5.0))
        options = {"sigma": 1 / SNR, "n_fields": 0}
        kinds.append(("wall fields", partial(fields.fit, **options), of_tissue, 4))
    for name, fit, voxels, n_alone in kinds:
        fit(voxels[:1])
        start = time.process_time()
        for k in range(n_alone):
            fit(voxels[k])
        alone = (time.process_time() - start) / n_alone
        start = time.process_time()
        fit(voxels)
        together = (time.process_time() - start) / len(voxels)
        yield (
            name,
            n_alone,
            f"{1e3 * alone:.3g}",
            f"{1e3 * together:.3g}",
            f"{alone / together:.1f}",
        )


def cpu_seconds() -> float:
    """Of this process and its children."""
    own = psutil.Process()
    times = [each.cpu_times() for each in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def workers(n_voxels: int) -> tuple[float, float]:
    """CPU time of two workers over that of a serial fit, and wall time of one worker over two."""
    model = noddi()
    data = noisy(model.signals(model.draw(n_voxels, seed=2)))
    options = {"sigma": 1 / SNR, "n_draws": 64}
    spent, taken = {}, {}
    for engine, n_jobs in (("serial", 1), ("joblib", 1), ("joblib", 2)):
        how = options | {"engine": engine, "n_jobs": n_jobs}
        model.fit(data[:32], vox_per_chunk=1, **how)  # starts them
        cpu, wall = cpu_seconds(), time.perf_counter()
        model.fit(data, vox_per_chunk=WORKERS_CHUNK, **how)
        spent[engine, n_jobs] = cpu_seconds() - cpu
        taken[engine, n_jobs] = time.perf_counter() - wall
    overhead = spent["joblib", 2] / spent["serial", 1]
    return overhead, taken["joblib", 1] / taken["joblib", 2]


def main():
    parser = command(__doc__, quick=f"{N_QUICK} voxels")
    parser.add_argument("-n", type=int, default=N, help=f"voxels ({N})")
    parser.add_argument(
        "--packed", type=int, default=PACKED, help=f"voxels of packed cells ({PACKED})"
    )
    parser.add_argument("--no-walls", action="store_true", help="without batches of wall fields")
    arguments = parser.parse_args()
    n = N_QUICK if arguments.quick else arguments.n
    n_packed = PACKED_QUICK if arguments.quick else arguments.packed
    lines = [f"# Whole images\n\n{machine()}. {__doc__.strip()}\n"]

    def say(*more):
        lines.extend([*more, ""])
        print(*more, "", sep="\n", flush=True)

    rows = []
    for n_draws, n_voxels in ((0, n), (64, min(n, N_INTERVALS))):
        fitting, writing, growth, peak = from_file_to_maps(n_voxels, n_draws)
        whole = (fitting + writing) * WHOLE / n_voxels / 60
        rows.append((n_voxels, n_draws, f"{fitting:.1f}", f"{writing:.1f}", f"{whole:.1f}",
                     f"{100 * growth:.1f}", f"{peak:.2f}"))  # fmt: skip
    header = (
        "voxels", "draws", "read and fit, CPU-s", "save and write, CPU-s",
        f"{WHOLE:,} voxels, CPU-min", "memory growth %", "resident GiB",
    )  # fmt: skip
    say(table(header, rows))
    seconds = packed_cells(n_packed)
    say(f"Packed cells with intervals, {n_packed} voxels of 300 measurements: "
        f"{1e3 * seconds / n_packed:.0f} CPU-ms per voxel, "
        f"{seconds / n_packed * WHOLE / 3600:.1f} CPU-h for {WHOLE:,} voxels.")  # fmt: skip
    overhead, speed_up = workers(N_WORKERS_QUICK if arguments.quick else N_WORKERS)
    say(f"Two workers of joblib take {overhead:.2f} times the CPU time of a serial fit; two are "
        f"{speed_up:.2f} times as fast as one (load of the machine {os.getloadavg()[0]:.1f})."
        )  # fmt: skip
    columns = ("fit", "by themselves", "CPU-ms by itself", "CPU-ms among 64", "ratio")
    say(table(columns, batches(not (arguments.quick or arguments.no_walls))))
    columns = ("volume", "voxels of the mask", "data and results, MiB", "peak beyond, MiB")
    say(table(columns, peaks()))
    keep("whole_image.md", "\n".join(lines), complete=not arguments.quick)


if __name__ == "__main__":
    main()
