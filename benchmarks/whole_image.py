"""A whole image: time from file to maps, and memory against voxels.

    python -m benchmarks.whole_image [-n 10000]

Duration: about 2 CPU-minutes (--quick: 500 voxels, 20 s). Writes results/whole_image.md.

An image of NODDI voxels (Rician, SNR 30, 97 measurements) is written to NIfTI, read volume by
volume, fitted with a journal, saved and written as maps: CPU time of one process with one thread,
scaled to 100,000 voxels. Resident memory is sampled while it is fitted; growth is that from the
first tenth of the time to the last. Peaks of memory are those of fresh processes, with a model
whose own memory does not count. Speed-up by two workers is of wall time, and means something on
an idle machine alone.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from dipy.core.gradients import gradient_table

from benchmarks.command import command, keep
from benchmarks.decay_model import ACQUISITION, DecayModel
from benchmarks.tables import machine, table
from dipy_spinverse import NODDIModel
from dipy_spinverse.report.files import save_map
from dipy_spinverse.voxels.image_files import StoredImage, mask_of

N, N_QUICK = 10_000, 500
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


def speed_up(n_voxels: int) -> float:
    """Wall time of one worker over that of two."""
    model = noddi()
    data = 1000 * model.signals(model.draw(n_voxels, seed=2))
    times = []
    for n_jobs in (1, 2):
        options = {"sigma": 30.0, "n_draws": 0, "engine": "joblib", "n_jobs": n_jobs}
        model.fit(data[:32], vox_per_chunk=1, **options)  # starts them
        start = time.perf_counter()
        model.fit(data, **options)
        times.append(time.perf_counter() - start)
    return times[0] / times[1]


def main():
    parser = command(__doc__, quick=f"{N_QUICK} voxels")
    parser.add_argument("-n", type=int, default=N, help=f"voxels ({N})")
    parser.add_argument("--no-workers", action="store_true", help="without the speed-up")
    arguments = parser.parse_args()
    n = N_QUICK if arguments.quick else arguments.n
    rows = []
    for n_draws in (0, 64):
        fitting, writing, growth, peak = from_file_to_maps(n, n_draws)
        whole = (fitting + writing) * WHOLE / n / 60
        rows.append((n, n_draws, f"{fitting:.1f}", f"{writing:.1f}", f"{whole:.1f}",
                     f"{100 * growth:.1f}", f"{peak:.2f}"))  # fmt: skip
    header = (
        "voxels", "draws", "read and fit, CPU-s", "save and write, CPU-s",
        f"{WHOLE:,} voxels, CPU-min", "memory growth %", "resident GiB",
    )  # fmt: skip
    columns = ("volume", "voxels of the mask", "data and results, MiB", "peak beyond, MiB")
    lines = [table(header, rows), "", table(columns, peaks())]
    if not arguments.no_workers:
        lines += ["", f"Two workers of joblib are {speed_up(n):.2f} times as fast as one."]
    text = "\n".join([f"# Whole images\n\n{machine()}. {__doc__.strip()}\n", *lines])
    print(*lines, sep="\n")
    keep("whole_image.md", text, complete=not arguments.quick)


if __name__ == "__main__":
    main()
