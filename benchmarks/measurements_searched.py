"""Number of measurements in a search for cells: what they determine, and results of descents.

For shapes of `recovery.py` and several numbers of measurements, chosen as in a fit: of the label
changes of single tetrahedra at the true walls, the share that is determined (singular values of
the changes above 3e-5 of the initial magnetisation, twice the error of the data); and descents,
followed by label changes, from the true cells after a random translation and rotation of each:
minimum, lower quartile and median of the wrong tetrahedra (modulo point reflection), and CPU
seconds of one.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.measurements_searched

Duration: about 10 min on 2 cores (--quick: 1 min). Writes results/measurements_searched.md.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits

from benchmarks.command import command, keep
from benchmarks.noisy_cells import enclosed
from benchmarks.recovery import OPEN, WALL, all_shapes, published_protocol
from dipy_spinverse import simulate
from dipy_spinverse.bloch_torrey import unique_encodings
from dipy_spinverse.cell_search import CellSearchBudget
from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.labelled import SimulatedCells, Target, label_changes
from dipy_spinverse.cell_search.search import CellSearch

NUMBERS = (32, 64, 128, 256)
SHAPES = ("000", "plate 1", "two blocks 1", "three spheres 1", "cross 1", "new bent axon 1")
ERROR, N_STARTS, N_STEPS = 1.5e-5, 24, 10
ROTATION_SD, P_MIRRORED = 0.3, 0.3
# Of SpinverseModel, um^2/ms.
DIFFUSIVITY = 2.0


def searched_protocol():
    """The published protocol without repeats, as used by a search."""
    acquisition = published_protocol()
    return acquisition.subset(unique_encodings(acquisition)[0])


def searched(acquisition, grid, walls, number):
    """Tools of a search with `number` measurements, and its target data."""
    budget = CellSearchBudget(n_searched=number)
    search = CellSearch(acquisition, grid, diffusivity=DIFFUSIVITY, seed=0, budget=budget)
    data = simulate(acquisition, grid, np.where(walls, WALL, OPEN))
    nothing = np.zeros(len(data))
    complete = Target(search.simulator, data, nothing + ERROR, nothing)
    return search.tools, complete.of_measurements(*search.searched)


def determined(tools, target, inside):
    """Fraction of the label changes at the true walls that is determined."""
    effects = ERROR * label_changes(target, inside, tools.transmissibility).effects
    return (np.linalg.svd(effects, compute_uv=False) > 2 * ERROR).sum() / len(effects)


def displaced(grid, cell, rng):
    """Labels (T,) of a cell that is moved, rotated and mirrored at random."""
    spacing = np.linalg.norm(grid.displacements, axis=1).mean()
    centre = grid.centroids[cell].mean(axis=0)
    rotation = Rotation.from_rotvec(ROTATION_SD * rng.standard_normal(3) * (rng.random() < 0.5))
    sign = -1 if rng.random() < P_MIRRORED else 1
    move = spacing * rng.standard_normal(3)
    source = centre + sign * rotation.apply(grid.centroids - centre - move)
    moved = cell[cKDTree(grid.centroids).query(source)[1]]
    return moved if moved.any() else cell


def descended(tools, target, inside):
    """Wrong tetrahedra of initial values and results, and CPU seconds of a descent."""
    operations, begin, wrong = tools.operations, time.process_time(), []
    for seed in range(N_STARTS):
        rng = np.random.default_rng(seed)
        cells = operations.connected_cells(inside)
        start = np.any([displaced(target.grid, cell, rng) for cell in cells], axis=0)
        partial = tools.descend.blurred(start, tools.transmissibility)
        partial = tools.descend(target, partial, rng, N_STEPS)
        state = target.cells(partial.labels[None], partial.transmissibility)[0]
        task = ExactData(target, target, SimulatedCells(start[None], target.data[None]), tools)
        state = task.objective([state]).improved(target, state, rng)
        wrong.append([operations.n_different(labels, inside) for labels in (start, state.labels)])
    return np.array(wrong).T, (time.process_time() - begin) / N_STARTS


def main():
    """Print the table and write it to results/."""
    quick = command(__doc__, f"{SHAPES[0]} with {NUMBERS[0]} measurements").parse_args().quick
    names, numbers = (SHAPES[:1], NUMBERS[:1]) if quick else (SHAPES, NUMBERS)
    warnings.filterwarnings("ignore", message="The grid is too coarse")
    acquisition = searched_protocol()
    lines = [
        "| shape | measurements | changes determined | wrong: initial (median) | final | CPU-s |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    shapes = {name: shape for name, *shape in all_shapes()}
    for name in names:
        grid, walls = shapes[name]
        inside = enclosed(grid, walls)
        for number in numbers:
            tools, target = searched(acquisition, grid, walls, number)
            with threadpool_limits(1, user_api="blas"):
                (starts, ends), cpu = descended(tools, target, inside)
            ends = ", ".join(f"{x:.0f}" for x in np.percentile(ends, [0, 25, 50]))
            lines.append(
                f"| {name} | {len(target.data)} | {determined(tools, target, inside):.2f} "
                f"| {np.median(starts):.0f} | {ends} | {cpu:.1f} |"
            )
            print(lines[-1], flush=True)
    text = __doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines)
    keep("measurements_searched.md", text, complete=not quick)


if __name__ == "__main__":
    main()
