"""Shapes of several cells: additivity of the signals of cells, and combinations based on it.

For each shape of `recovery.py` with two or three cells: root mean square of what its walls change
in the signals (relative to the initial magnetisation), error of the changes of single cells added
up, the same relative to the mean square of the change; then, of combinations of the correct number
of cells, the wrong tetrahedra (modulo point reflection) of the best and the least of the three
that start a population, and CPU seconds. The search is prepared as in a fit; no population
evolves.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.separate_cells

Duration: about 6 min on 2 cores (--quick: 2 min). Writes results/separate_cells.md.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.command import command, keep
from benchmarks.measurements_searched import DIFFUSIVITY, ERROR, searched_protocol
from benchmarks.noisy_cells import enclosed
from benchmarks.recovery import OPEN, WALL, all_shapes
from benchmarks.shapes import published_grid
from dipy_spinverse import simulate
from dipy_spinverse.cell_search.cell_operations import CellOperations
from dipy_spinverse.cell_search.labelled import Target
from dipy_spinverse.cell_search.search import CellSearch

N_STARTS = 3
QUICK = "two blocks 1"
SEVERAL = ("new several", "sphere and rod", "two blocks", "three spheres")


def put_together(search, data, number):
    """Labels (n, T) of combinations of `number` cells, the rank of `number`, CPU seconds."""
    nothing, rng = np.zeros(len(data)), np.random.default_rng(0)
    task = search.exact_data(Target(search.simulator, data, nothing + ERROR, nothing))
    cells, start = search.separate_cells(task), time.process_time()
    for place, (likely, labels) in enumerate(cells.by_likely_number(rng), 1):
        if likely == number:
            return labels[:N_STARTS], place, time.process_time() - start


def main():
    """Print the table and write it to results/."""
    quick = command(__doc__, QUICK).parse_args().quick
    warnings.filterwarnings("ignore", message="The grid is too coarse")
    acquisition = searched_protocol()
    columns = "shape cells change error error/change^2 rank best least CPU-s".split()
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    print("\n".join(lines), flush=True)
    grid = published_grid()
    search = CellSearch(acquisition, grid, diffusivity=DIFFUSIVITY, seed=0)
    for name, _, walls in all_shapes():
        if not name.startswith(QUICK if quick else SEVERAL):
            continue
        operations, inside = CellOperations(grid), enclosed(grid, walls)
        cells = operations.connected_cells(inside)
        first, second = grid.face_tetrahedra.T
        labels = np.array([np.zeros_like(inside), inside, *cells])
        faces = np.where(labels[:, first] != labels[:, second], WALL, OPEN)
        nothing, data, *alone = (simulate(acquisition, grid, row) for row in faces)
        change = np.sqrt(((data - nothing) ** 2).mean())
        error = np.sqrt(((data - nothing - np.sum(np.array(alone) - nothing, axis=0)) ** 2).mean())
        with threadpool_limits(1, user_api="blas"):
            found, place, seconds = put_together(search, data, len(cells))
        wrong = [operations.n_different(labels, inside) for labels in found]
        lines.append(
            f"| {name} | {len(cells)} | {change:.1e} | {error:.1e} | {error / change**2:.1f} "
            f"| {place} | {wrong[0]} | {min(wrong)} | {seconds:.0f} |"
        )
        print(lines[-1], flush=True)
    text = __doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines)
    keep("separate_cells.md", text, complete=not quick)


if __name__ == "__main__":
    main()
