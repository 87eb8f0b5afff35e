"""Cost of fitting voxels: 300 measurements in 3 timings, SNR 50.

Signals of a permeable cylinder and of a sphere, simulated on a grid twice as fine as that of the
fit. Packed cells: the first map of a fresh process, and noisy copies of both in one batch. Walls
of one voxel on 768 tetrahedra: single reconstruction with Laplace uncertainty, and with 4 and 8
further fields. The published code is compared with the walls by its measured cost of one iteration
on a mesh of 576 tetrahedra (451 CPU-s for 180 measurements) times its 400 iterations.

    python -m benchmarks.fit_cost

Duration: about 4 min on 2 cores (--quick: 1 min). Writes results/fit_cost.txt.
"""

from __future__ import annotations

import resource
import time

import numpy as np
from dipy.core.sphere import HemiSphere, disperse_charges

from benchmarks.command import command, keep
from dipy_spinverse import Acquisition, PackedCellsModel, SpinverseModel, bcc_grid, simulate
from dipy_spinverse.substrates.membranes import cylinders, spheres

PUBLISHED_CPU_S = 451 * 400
TIMINGS, B_VALUES, N_DIRECTIONS = ((10, 20), (10, 40), (10, 70)), (1, 2, 3.5), 33
SNR = 50
N_BATCH, N_QUICK = 1000, 100


def protocol() -> Acquisition:
    """One b0 and three shells of 33 directions for each of three timings: 300 measurements."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((N_DIRECTIONS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions = disperse_charges(HemiSphere(xyz=directions), 1000)[0].vertices
    b = np.concatenate([[0.0], np.repeat(B_VALUES, N_DIRECTIONS)])
    directions = np.vstack([np.zeros(3), np.tile(directions, (len(B_VALUES), 1))])
    delta, separation = np.repeat(TIMINGS, len(b), axis=0).T
    n_timings = len(TIMINGS)
    return Acquisition(
        b=np.tile(b, n_timings), directions=np.tile(directions, (n_timings, 1)),
        small_delta=delta, big_delta=separation, te=np.full(len(delta), 90.0),
    )  # fmt: skip


def main():
    """Print the costs and write them to results/."""
    quick = command(__doc__, f"{N_QUICK} voxels, and single reconstructions").parse_args().quick
    acquisition, fine = protocol(), bcc_grid(8, 2.5)
    truths = {
        "cylinder": cylinders(fine, [0, 0, 0], 6.0, permeability=0.02),
        "sphere": spheres(fine, [0, 0, 0], 7.0, permeability=0.01),
    }
    rng, lines = np.random.default_rng(0), []

    def say(line):
        lines.append(line)
        print(line, flush=True)

    def noisy(signals):
        noise = rng.standard_normal((2, *signals.shape)) / SNR
        return np.hypot(signals + noise[0], noise[1])

    clean = {name: simulate(acquisition, fine, kappa) for name, kappa in truths.items()}
    n_batch = N_QUICK if quick else N_BATCH
    image = noisy(np.tile(np.stack(list(clean.values())), (n_batch // 2, 1)))
    start, start_cpu = time.perf_counter(), time.process_time()
    packed = PackedCellsModel(acquisition)
    packed.fit(image[0], sigma=1 / SNR)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    say(f"packed cells, first map of a fresh process: {seconds:.1f} s, {cpu:.1f} CPU-s")
    for n_draws in (None, 0):
        draws = {} if n_draws is None else {"n_draws": n_draws}
        start_cpu = time.process_time()
        packed.fit(image, sigma=1 / SNR, **draws)
        cpu = time.process_time() - start_cpu
        word = "with intervals" if n_draws is None else "maximum likelihood alone"
        say(f"packed cells, {n_batch} voxels, {word}: {1e3 * cpu / n_batch:.1f} CPU-ms per voxel")
    model = SpinverseModel(acquisition, grid=bcc_grid(4, 5.0))
    for name, signals in clean.items():
        for n_fields in (0,) if quick else (0, 4, 8):
            start, start_cpu = time.perf_counter(), time.process_time()
            fit = model.fit(noisy(signals), sigma=1 / SNR, n_fields=n_fields, n_draws=0)
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            say(
                f"{name}, {n_fields} further fields: {seconds:.1f} s, {cpu:.1f} CPU-s, rms/noise "
                f"{fit.residual_rms * SNR:.2f}; published / this: {PUBLISHED_CPU_S / cpu:.0f}"
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"peak memory: {peak:.2f} GiB")
    keep("fit_cost.txt", "\n".join(lines), complete=not quick)


if __name__ == "__main__":
    main()
