"""How many measurements a search for cells needs: what they determine, and where descents end.

For shapes of `recovery.py` and several numbers of measurements, chosen as in a fit: of the flips
of single tetrahedra at the true walls, the share that is determined (singular values of the
changes above 3e-5 of the initial magnetisation, twice the error of the data); and descents, with
flips after them, from the true cells after each is moved and turned at random: least, lower
quartile and median of the wrong tetrahedra (modulo point reflection), and CPU seconds of one.

    DIPY_SPINVERSE_DATA=<folder> python benchmarks/measurements_searched.py
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
from noisy_cells import enclosed
from recovery import OPEN, WALL, all_shapes, published_protocol
from threadpoolctl import threadpool_limits

from dipy_spinverse import simulate
from dipy_spinverse.bloch_torrey import unique_encodings
from dipy_spinverse.cell_search import search
from dipy_spinverse.cell_search.descent import PartialCells
from dipy_spinverse.cell_search.labelled import Target, flips_of

RESULTS = Path(__file__).parent / "results" / "measurements_searched.md"
NUMBERS = (32, 64, 128, 256)
SHAPES = ("000", "plate 1", "two blocks 1", "three spheres 1", "cross 1", "new bent axon 1")
ERROR, N_STARTS, N_STEPS = 1.5e-5, 24, 10
# Of SpinverseModel, um^2/ms.
DIFFUSIVITY = 2.0


def searched_protocol():
    """The published protocol without repeats, as a search takes it."""
    acquisition = published_protocol()
    return acquisition.subset(unique_encodings(acquisition)[0])


def targets(acquisition, grid, walls, number):
    """A search with some of the measurements, and what it compares data with."""
    with patch.object(search, "_N_SEARCHED", number):
        cells = search.CellSearch(acquisition, grid, diffusivity=DIFFUSIVITY, seed=0)
        rows, simulator = cells._part
    data = simulate(acquisition, grid, np.where(walls, WALL, OPEN))
    nothing = np.zeros(len(data))
    complete = Target(cells._full, data, nothing + ERROR, nothing)
    return cells, complete.of_measurements(rows, simulator)


def determined(cells, target, inside):
    """Share of the flips at the true walls."""
    changes = ERROR * flips_of(target, inside, cells._leaks).changes
    return (np.linalg.svd(changes, compute_uv=False) > 2 * ERROR).sum() / len(changes)


def descended(cells, target, inside):
    """Wrong tetrahedra of starts and ends, and CPU seconds of a descent."""
    changes, begin, wrong = cells._changes, time.process_time(), []
    for seed in range(N_STARTS):
        rng = np.random.default_rng(seed)
        start = np.any([changes.moved(x, rng) for x in changes.cells_of(inside)], axis=0)
        partial = PartialCells(cells._descend.blurred(start), cells._leaks)
        partial = cells._descend(target, partial, rng, N_STEPS)
        state = target.cells(partial.labels[None], partial.leaks)[0]
        task = search.ExactData(
            target, target, target, start[None], target.data[None], cells._leaks
        )
        state = task.judge([state]).improved(target, state, rng)
        wrong.append([changes.apart(labels, inside) for labels in (start, state.labels)])
    return np.array(wrong).T, (time.process_time() - begin) / N_STARTS


def main():
    """Print the table and write it to results/."""
    warnings.filterwarnings("ignore", message="The grid is too coarse")
    acquisition = searched_protocol()
    lines = [
        "| shape | measurements | flips determined | wrong: starts (median) | ends | CPU-s |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    shapes = {name: shape for name, *shape in all_shapes()}
    for name in SHAPES:
        grid, walls = shapes[name]
        inside = enclosed(grid, walls)
        for number in NUMBERS:
            cells, target = targets(acquisition, grid, walls, number)
            with threadpool_limits(1, user_api="blas"):
                (starts, ends), cpu = descended(cells, target, inside)
            ends = ", ".join(f"{x:.0f}" for x in np.percentile(ends, [0, 25, 50]))
            lines.append(
                f"| {name} | {len(target.data)} | {determined(cells, target, inside):.2f} "
                f"| {np.median(starts):.0f} | {ends} | {cpu:.1f} |"
            )
            print(lines[-1], flush=True)
    RESULTS.write_text(__doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
