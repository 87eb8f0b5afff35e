"""Cost of the engine: against the bandwidth of memory, and against the number of tetrahedra.

    python -m benchmarks.engine_cost

Duration: about 2 min on 2 cores (--quick: 20 s). Writes results/engine_cost.txt.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.command import command, keep
from benchmarks.dense_matrix_formalism import (
    DIFFUSIVITY,
    N_MEASUREMENTS,
    REPEATS,
    cpu_seconds,
    random_permeability,
    three_timings,
)
from dipy_spinverse import bcc_grid, simulate_with_jacobian
from dipy_spinverse.bloch_torrey import Simulator

ALL_CELLS = ((3, 4, 4), (4, 4, 4), (6, 6, 6), (8, 8, 8), (11, 11, 11), (16, 16, 16))


def triad_bandwidth(array_mib: int = 768) -> float:
    """Bytes per second of a = s b + c in main memory, one thread, best of 5.

    The arrays must exceed the last-level cache. NumPy traverses memory twice: it reads b and
    writes a, then reads a and c and writes a.
    """
    n = array_mib * 2**20 // 8
    a, b, c = np.empty(n), np.ones(n), np.ones(n)
    best = np.inf
    for _ in range(REPEATS):
        start = time.perf_counter()
        np.multiply(b, 3.0, out=a)
        np.add(a, c, out=a)
        best = min(best, time.perf_counter() - start)
    return 5 * 8 * n / best


def bandwidth_bound() -> str:
    """CPU seconds of signals and Jacobian relative to those of their memory traffic.

    One term of a Chebyshev series must read the states of two earlier terms and of the beginning
    of the step, and write one: four complex numbers per tetrahedron and measurement.
    """
    torch.set_num_threads(1)
    grid, acquisition = bcc_grid(4, 5.0), three_timings(N_MEASUREMENTS)
    permeability = random_permeability(grid.n_faces)
    simulator = Simulator(acquisition, grid, diffusivity=DIFFUSIVITY)
    products = sum(
        2 * timing.sensitivities[1].degree.sum() * len(timing.columns)
        for timing in simulator.timings
    )
    n_bytes = 4 * 16 * grid.n_tetrahedra * products
    bandwidth = triad_bandwidth()
    bound = n_bytes / bandwidth
    args = acquisition, grid, permeability
    simulate_with_jacobian(*args, diffusivity=DIFFUSIVITY)
    seconds = [
        cpu_seconds(lambda: simulate_with_jacobian(*args, diffusivity=DIFFUSIVITY))[1]
        for _ in range(REPEATS)
    ]
    return (
        f"{grid.n_tetrahedra} tetrahedra, {N_MEASUREMENTS} measurements, float64, one thread:\n"
        f"  bound: {products} products x {4 * 16 * grid.n_tetrahedra / 1e3:.0f} kB"
        f" = {n_bytes / 1e9:.1f} GB at {bandwidth / 1e9:.1f} GB/s (triad) = {bound:.3f} s\n"
        f"  signals + Jacobian: median {np.median(seconds):.3f} CPU-s (min {min(seconds):.3f}, "
        f"max {max(seconds):.3f}, {REPEATS} runs): {np.median(seconds) / bound:.2f} of the bound\n"
        "  (below 1: blocks of measurements stay in the cache for a whole encoding)"
    )


def size(all_cells=ALL_CELLS) -> str:
    """CPU time of signal and Jacobian against the number of tetrahedra."""
    acquisition = three_timings(24)
    lines = [f"CPU seconds of signals and Jacobian ({len(acquisition)} measurements) against size"]
    for name, cell_sizes in (
        ("box of 20 um, finer and finer", [20 / max(cells) for cells in all_cells]),
        ("cells of 5 um, more and more", [5.0] * len(all_cells)),
    ):
        n_tetrahedra, seconds = [], []
        for cells, cell_size in zip(all_cells, cell_sizes, strict=True):
            grid = bcc_grid(cells, cell_size)
            args = acquisition, grid, random_permeability(grid.n_faces)
            runs = [cpu_seconds(simulate_with_jacobian, *args)[1] for _ in range(4)]
            n_tetrahedra.append(grid.n_tetrahedra)
            seconds.append(min(runs[1:]))
        exponent = np.polyfit(np.log(n_tetrahedra), np.log(seconds), 1)[0]
        pairs = ", ".join(f"{n}: {s:.3f}" for n, s in zip(n_tetrahedra, seconds, strict=True))
        lines.append(f"  {name}: {pairs}; exponent {exponent:.2f}")
    return "\n".join(lines)


def main():
    """Print the figures and write them to results/."""
    quick = command(__doc__, "the bound, and grids up to 6144 tetrahedra").parse_args().quick
    text = bandwidth_bound() + "\n\n" + size(ALL_CELLS[:4] if quick else ALL_CELLS)
    print(text)
    keep("engine_cost.txt", text, complete=not quick)


if __name__ == "__main__":
    main()
