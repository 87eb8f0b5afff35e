"""Cost of fitting one voxel: 768 tetrahedra, 300 measurements in 3 timings, SNR 50.

Single reconstruction with Laplace uncertainty, with 4 and with 8 further fields and packed cells,
whose tables are simulated first where they are not kept from before;
signals of a permeable cylinder and of a sphere, made on a grid twice as fine. The published code
is set beside it by its measured cost of one iteration on a mesh of 576 tetrahedra (451 CPU-s for
180 measurements) times its 400 iterations.

    python -m benchmarks.fit_cost

Duration: about 2 min on 2 cores (--quick: 15 s), and about 5 min more where the tables are not
kept from before. Writes results/fit_cost.txt.
"""

from __future__ import annotations

import resource
import time

import numpy as np
from dipy.core.sphere import HemiSphere, disperse_charges

from benchmarks.command import command, keep
from dipy_spinverse import Acquisition, SpinverseModel, bcc_grid, simulate
from dipy_spinverse.packed_cells import prepare_tables
from dipy_spinverse.substrates.walls_of_bodies import cylinders, spheres

PUBLISHED_CPU_S = 451 * 400
TIMINGS, B_VALUES, N_DIRECTIONS = ((10, 20), (10, 40), (10, 70)), (1, 2, 3.5), 33
SNR, N_DRAWS = 50, 200


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
    quick = command(__doc__, "single reconstructions").parse_args().quick
    acquisition, fine = protocol(), bcc_grid(8, 2.5)
    truths = {
        "cylinder": cylinders(fine, [0, 0, 0], 6.0, permeability=0.02),
        "sphere": spheres(fine, [0, 0, 0], 7.0, permeability=0.01),
    }
    model = SpinverseModel(acquisition, grid=bcc_grid(4, 5.0))
    rng, lines = np.random.default_rng(0), []
    if not quick:
        start, start_cpu = time.perf_counter(), time.process_time()
        prepare_tables(acquisition, 2.0)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        lines.append(f"tables of {len(TIMINGS)} timings: {seconds:.0f} s, {cpu:.0f} CPU-s")
        print(lines[-1], flush=True)
    for name, permeability in truths.items():
        signals = simulate(acquisition, fine, permeability)
        noise = rng.standard_normal((2, len(signals))) / SNR
        data = np.hypot(signals + noise[0], noise[1])
        for n_fields in (0,) if quick else (0, 4, 8):
            start, start_cpu = time.perf_counter(), time.process_time()
            n_draws = N_DRAWS if n_fields else 0
            fit = model.fit(data, sigma=1 / SNR, n_fields=n_fields, n_draws=n_draws)
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            lines.append(
                f"{name}, {n_fields} further fields: {seconds:.1f} s, {cpu:.1f} CPU-s, rms/noise "
                f"{fit.residual_rms * SNR:.2f}; published / this: {PUBLISHED_CPU_S / cpu:.0f}"
            )
            print(lines[-1], flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines.append(f"peak memory: {peak:.2f} GiB")
    print(lines[-1])
    keep("fit_cost.txt", "\n".join(lines), complete=not quick)


if __name__ == "__main__":
    main()
