"""A whole image: time from file to maps, memory against voxels, batches, two workers.

    python -m benchmarks.whole_image [-n 10000] [--packed 300] [--parts workers peaks ...]

Duration: about 8 CPU-minutes (--quick: 500 voxels, 30 s; --parts workers: 2 min). Writes
results/whole_image.md, where all parts were run.

An image of NODDI voxels (Rician, SNR 30, 97 measurements) is written to NIfTI, read volume by
volume, fitted with a journal, saved, and written as maps and predicted signals: CPU time of one
process with one thread, scaled to 100,000 voxels; so are packed cells. Resident memory is sampled
while it is fitted; growth is that from the first tenth of the time to the last. Peaks of memory
are those of fresh processes, without the memory of the model. Of batches, CPU time of
one voxel fitted by itself, and of one among 64, is compared. Of two workers, the CPU time of all
processes over that of a serial fit is their cost, and the wall time, meaningful only on an idle
machine, their benefit.

A fit is refused before it begins where data and results would take more than `max_memory`: its
estimate is listed with the peaks. Voxels computed together take additional memory, which does not
grow with the image: the table of working memory.
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
from unittest.mock import patch

import nibabel as nib
import numpy as np
import psutil
from dipy.core.gradients import gradient_table

from benchmarks.command import command, keep
from benchmarks.decay_model import ACQUISITION, DecayModel
from benchmarks.fit_cost import protocol
from benchmarks.tables import machine, table
from dipy_spinverse import NODDIModel, PackedCellsModel, SpinverseModel, bcc_grid, simulate
from dipy_spinverse.report.images import save_map, save_predictions
from dipy_spinverse.substrates.membranes import cylinders
from dipy_spinverse.voxels import chunks
from dipy_spinverse.voxels.image_files import StoredImage, mask_of
from dipy_spinverse.voxels.memory import check_memory

N, N_QUICK = 10_000, 500
N_INTERVALS = 1000
PACKED, PACKED_QUICK = 300, 30
BATCH = 64
N_WORKERS, N_WORKERS_QUICK = 16384, 256
WHOLE = 100_000
PARTS = ["images", "packed", "workers", "batches", "peaks", "memory"]
SNR = 30.0
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
# Shape of the volume and number of voxels in the mask.
VOLUMES = [((1, 1, 1), 1), ((10, 10, 1), 100), ((10, 10, 10), 1000), ((50, 50, 40), 100_000),
           ((100, 100, 60), 100)]  # fmt: skip
# Voxels that fit as one or a few blocks.
WORKING = [
    ("NODDI, maximum likelihood", 1000, {"n_draws": 0}),
    ("NODDI, with intervals", 256, {"n_draws": 64}),
    ("packed cells, with intervals", 64, {}), ("wall fields", 16, {}),
]  # fmt: skip


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
    """Resident memory over time.

    Parameters
    ----------
    every : float
        s.
    """

    def __init__(self, every: float = 0.2):
        self._every = every

    def __enter__(self):
        self.values, self._over = [], threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self):
        while not self._over.wait(self._every):
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


def printed_peak(fit, n_voxels: int) -> None:
    """Print MiB that a fit counted before it began, and that it added to this process."""
    counted, before = [], resident()

    def noted(what, n_bytes, most=None):
        counted.append(n_bytes)
        check_memory(what, n_bytes, most)

    with patch.object(chunks, "check_memory", noted), Sampled(0.01) as memory:
        kept = fit()
        time.sleep(0.1)
    assert kept.status.size >= n_voxels
    print(counted[0] / 2**20, (max(memory.values) - before) * 1024)


def peak_of(index: int) -> None:
    """Of a volume that is read from a file."""
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
        data = StoredImage(path, "data")
        printed_peak(lambda: model.fit(data, mask.reshape(shape), n_draws=2), n_wanted)


def working_memory_of(index: int) -> None:
    """Of the model of a row of `WORKING`."""
    name, n_voxels, options = WORKING[index]
    if "NODDI" in name:
        model = noddi()
        data = noisy(model.signals(model.draw(n_voxels, seed=2)))
    else:
        acquisition, grid, signals = tissue()
        of_walls = partial(SpinverseModel, grid=bcc_grid(4, 5.0))
        model = (of_walls if "wall" in name else PackedCellsModel)(acquisition)
        data = noisy(np.tile(signals, (n_voxels, 1)))
    options = {"sigma": 1 / SNR, **options}
    model.fit(data[:1], **options)
    printed_peak(lambda: model.fit(data, **options), n_voxels)


def printed_by(call: str) -> list[str]:
    """Result of a function of this module in a separate process, MiB."""
    code = f"from benchmarks import whole_image; whole_image.{call}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return [f"{float(number):.1f}" for number in said.stdout.split()]


def peaks():
    """Rows of the table of peaks."""
    for k, (shape, n_wanted) in enumerate(VOLUMES):
        yield " x ".join(map(str, shape)), n_wanted, *printed_by(f"peak_of({k})")


def working_memory():
    """Rows of the table of working memory."""
    for k, (name, n_voxels, _) in enumerate(WORKING):
        yield name, n_voxels, *printed_by(f"working_memory_of({k})")


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


def batches():
    """Rows: model, CPU-ms of a voxel by itself and among 64, and their ratio."""
    model = noddi()
    data = noisy(model.signals(model.draw(BATCH, seed=2)))
    acquisition, _, signals = tissue()
    of_tissue = noisy(np.tile(signals, (BATCH, 1)))
    packed = PackedCellsModel(acquisition)
    fields = SpinverseModel(acquisition, grid=bcc_grid(4, 5.0))
    # Of slow models some voxels alone are fitted by themselves; the others will cost as much.
    kinds = [
        ("NODDI, maximum likelihood", partial(model.fit, sigma=1 / SNR, n_draws=0), data, BATCH),
        ("NODDI, with intervals", partial(model.fit, sigma=1 / SNR), data, 16),
        ("packed cells, with intervals", partial(packed.fit, sigma=1 / SNR), of_tissue, 8),
        ("wall fields", partial(fields.fit, sigma=1 / SNR, n_fields=0), of_tissue, 4),
    ]
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
        model.fit(data, **how | {"n_draws": 0})  # starts them
        cpu, wall = cpu_seconds(), time.perf_counter()
        model.fit(data, **how)
        spent[engine, n_jobs] = cpu_seconds() - cpu
        taken[engine, n_jobs] = time.perf_counter() - wall
    overhead = spent["joblib", 2] / spent["serial", 1]
    return overhead, taken["joblib", 1] / taken["joblib", 2]


def of_images(n: int) -> str:
    """Table of images of NODDI."""
    rows = []
    for n_draws, n_voxels in ((0, n), (64, min(n, N_INTERVALS))):
        fitting, writing, growth, peak = from_file_to_maps(n_voxels, n_draws)
        whole = (fitting + writing) * WHOLE / n_voxels / 60
        rows.append((n_voxels, n_draws, f"{fitting:.1f}", f"{writing:.1f}", f"{whole:.1f}",
                     f"{100 * growth:.1f}", f"{peak:.2f}"))  # fmt: skip
    header = (
        "voxels", "samples", "read and fit, CPU-s", "save and write, CPU-s",
        f"{WHOLE:,} voxels, CPU-min", "memory growth %", "resident GiB",
    )  # fmt: skip
    return table(header, rows)


def of_packed_cells(n: int) -> str:
    seconds = packed_cells(n)
    return (
        f"Packed cells with intervals, {n} voxels of 300 measurements: "
        f"{1e3 * seconds / n:.0f} CPU-ms per voxel, "
        f"{seconds / n * WHOLE / 3600:.1f} CPU-h for {WHOLE:,} voxels."
    )


def of_workers(n: int) -> str:
    overhead, speed_up = workers(n)
    return (
        f"Two workers of joblib, {n} voxels, take {overhead:.2f} times the CPU time of a serial "
        f"fit; two are {speed_up:.2f} times as fast as one (load of the machine "
        f"{os.getloadavg()[0]:.1f})."
    )


def of_batches() -> str:
    columns = ("fit", "by themselves", "CPU-ms by itself", "CPU-ms among 64", "ratio")
    return table(columns, batches())


def of_peaks() -> str:
    return table(("volume", "voxels of the mask", "counted, MiB", "peak beyond, MiB"), peaks())


def of_working_memory() -> str:
    return table(("fit", "voxels", "counted, MiB", "peak beyond, MiB"), working_memory())


def main():
    parser = command(__doc__, quick=f"{N_QUICK} voxels, of the first three parts")
    parser.add_argument("-n", type=int, default=N, help=f"voxels ({N})")
    parser.add_argument(
        "--packed", type=int, default=PACKED, help=f"voxels of packed cells ({PACKED})"
    )
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    quick = arguments.quick
    lines = [f"# Whole images\n\n{machine()}. {__doc__.strip()}\n"]
    makers = {
        "images": lambda: of_images(N_QUICK if quick else arguments.n),
        "packed": lambda: of_packed_cells(PACKED_QUICK if quick else arguments.packed),
        "workers": lambda: of_workers(N_WORKERS_QUICK if quick else N_WORKERS),
        "batches": of_batches, "peaks": of_peaks, "memory": of_working_memory,
    }  # fmt: skip
    for part in arguments.parts[: 3 if quick else None]:
        lines.extend([makers[part](), ""])
        print(*lines[-2:], sep="\n", flush=True)
    complete = not quick and len(arguments.parts) == len(PARTS)
    keep("whole_image.md", "\n".join(lines), complete=complete)


if __name__ == "__main__":
    main()
