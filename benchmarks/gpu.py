"""The engine on a GPU: agreement with the CPU, voxels per second, share of the card's bandwidth.

    python -m benchmarks.gpu

Duration: some minutes with a GPU; without one it reports this and ends. Writes results/gpu.md.

Signals and sensitivities of 768 tetrahedra and 300 measurements in float32, for batches of wall
fields, and the walls of voxels from their signals. NODDI and packed cells compute on the CPU,
whatever the device. Bandwidth is the traffic that the series must cause (four complex numbers
per tetrahedron, measurement and term) over time, compared with that of a = s b + c on the same
GPU.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch

from benchmarks.command import command, keep
from benchmarks.dense_matrix_formalism import DIFFUSIVITY, random_permeability, three_timings
from benchmarks.tables import table
from dipy_spinverse import SpinverseModel, bcc_grid, simulate
from dipy_spinverse.bloch_torrey import Simulator

N_MEASUREMENTS, BATCHES, BATCHES_QUICK = 300, (1, 8, 64), (1, 8)
REPEATS = 5
AGREEMENT = 1e-3


def seconds(function) -> float:
    """Shortest of several runs, including all work of the GPU."""
    times = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def card_bandwidth() -> float:
    """Bytes per second of a = s b + c."""
    n = 2**27
    b, c = torch.ones(n, device="cuda"), torch.ones(n, device="cuda")
    a = torch.empty_like(b)
    return 3 * 4 * n / seconds(lambda: torch.add(c, b, alpha=3.0, out=a))


def engine(batches):
    """Rows: batch, largest difference to the CPU, fields per second, bytes per second."""
    grid, acquisition = bcc_grid(4, 5.0), three_timings(N_MEASUREMENTS)
    simulator = Simulator(acquisition, grid, diffusivity=DIFFUSIVITY)
    products = sum(
        timing.sensitivities[1].degree.sum() * len(timing.columns) for timing in simulator.timings
    )
    options = {"diffusivity": DIFFUSIVITY, "dtype": "float32", "device": "cuda"}
    for n in batches:
        fields = np.stack([random_permeability(grid.n_faces) for _ in range(n)])
        expected = simulate(acquisition, grid, fields, diffusivity=DIFFUSIVITY)
        found = simulate(acquisition, grid, fields, **options)
        on_card = torch.as_tensor(fields, dtype=torch.float32, device="cuda")
        taken = seconds(partial(simulate, acquisition, grid, on_card, **options))
        n_bytes = 4 * 8 * grid.n_tetrahedra * products * n
        yield n, np.abs(np.asarray(found) - expected).max(), n / taken, n_bytes / taken


def walls(n_voxels: int = 16) -> tuple[float, float]:
    """Voxels per second of wall fields, and the largest difference of their signals to the CPU."""
    acquisition = three_timings(60)
    grid = bcc_grid(4, 5.0)
    truths = np.stack([random_permeability(grid.n_faces) for _ in range(n_voxels)])
    data = 100 * simulate(acquisition, grid, truths, diffusivity=DIFFUSIVITY)
    options = {"sigma": 1.0, "n_fields": 0, "n_draws": 0}
    predicted, taken = {}, 0.0
    for device in ("cpu", "cuda"):
        model = SpinverseModel(acquisition, grid=grid, device=device)
        start = time.perf_counter()
        predicted[device] = model.fit(data, **options).predict()
        taken = time.perf_counter() - start
    return n_voxels / taken, np.abs(predicted["cuda"] - predicted["cpu"]).max() / 100


def main():
    """Print the figures and write them to results/."""
    quick = command(__doc__, "small batches, without walls").parse_args().quick
    if not torch.cuda.is_available():
        print("There is no GPU here: nothing is measured, and walls on a GPU stay UNTESTED.")
        return
    bandwidth = card_bandwidth()
    rows = [
        (n, f"{difference:.1e}", "yes" if difference < AGREEMENT else "NO", f"{rate:.3g}",
         f"{n_bytes / 1e9:.0f}", f"{100 * n_bytes / bandwidth:.0f}")
        for n, difference, rate, n_bytes in engine(BATCHES_QUICK if quick else BATCHES)
    ]  # fmt: skip
    header = ("fields", "difference to the CPU", f"below {AGREEMENT:g}", "fields/s", "GB/s",
              "% of the card's")  # fmt: skip
    lines = [f"{torch.cuda.get_device_name()}, {bandwidth / 1e9:.0f} GB/s.", "",
             table(header, rows)]  # fmt: skip
    if not quick:
        rate, difference = walls()
        lines += ["", f"Walls: {rate:.3g} voxels/s; signals differ by {difference:.1e} of S0 at "
                  "most (other walls may explain the same signals)."]  # fmt: skip
    print(*lines, sep="\n")
    keep("gpu.md", "\n".join([f"# GPU\n\n{__doc__.strip()}\n", *lines]), complete=not quick)


if __name__ == "__main__":
    main()
