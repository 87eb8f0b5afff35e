"""The published task with noise: Rician, 1/50 of each timing's S(b=0).

At this noise single faces are not determined. Measured are: residual over noise (data
minus the mean of magnitudes), overlap (Dice) of the enclosed regions, their volume, centre and
long axis; F1 of the walls, and the F1 between reconstructions from two realisations of the noise;
and whether the wall probabilities are calibrated. All modulo point reflection, which leaves every
signal unchanged.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.noisy_cells [--shapes 000 018 ...]

With `--unseen`, twelve shapes of seeds not used for any choice, and for each a second search that
has the true cells among its initial values.

Duration: about an hour on 2 cores (--quick: 5 min; --unseen: an hour on one). Writes
results/noisy_cells.md and doc/figures/wall_probability.png, or results/noisy_cells_unseen.md.
"""

from __future__ import annotations

import time
import warnings
from itertools import chain, islice
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, shortest_path
from scipy.spatial import cKDTree

from benchmarks.command import RESULTS, command, keep
from benchmarks.recovery import (
    OPEN,
    UNSEEN_FAMILIES,
    UNSEEN_SEEDS,
    WALL,
    all_shapes,
    published_protocol,
)
from benchmarks.shapes import published_grid
from dipy_spinverse import SpinverseModel, simulate
from dipy_spinverse.cell_search import CellInversion
from dipy_spinverse.inversion import WALL_THRESHOLD
from dipy_spinverse.voxels.rician import rician_mean

matplotlib.use("Agg")
FIGURE = Path(__file__).parents[1] / "doc" / "figures" / "wall_probability.png"
SNR, N_FIELDS = 50, 16
DIFFUSIVITY = 2.0  # um^2/ms
N_UNSEEN = 6  # shapes of each family
BINS = np.linspace(0, 1, 6)


def enclosed(grid, walls):
    """Tetrahedra (T,) on the inner side of walls: an odd number of walls from the outside."""
    first, second = grid.face_tetrahedra.T
    graph = coo_matrix((np.where(walls, 1.0, 1e-9), (first, second)), (grid.n_tetrahedra,) * 2)
    open_part = coo_matrix((np.ones((~walls).sum()), (first[~walls], second[~walls])), graph.shape)
    part = connected_components(open_part, directed=False)[1]
    outside = np.argmax(part == np.argmax(np.bincount(part)))
    crossed = shortest_path(graph.tocsr(), directed=False, indices=outside)
    return np.round(crossed).astype(int) % 2 == 1


def noisy(acquisition, signals, seed, snr=SNR):
    """Magnitudes with noise of 1/snr of the b0 of each timing, and its mean level."""
    rng = np.random.default_rng(seed)
    b0 = np.array([signals[rows].mean() for rows in acquisition.b0_per_timing])
    sigma = b0[acquisition.timing_index] / snr
    noise = sigma * rng.standard_normal((2, len(signals)))
    return np.hypot(signals + noise[0], noise[1]), sigma


def dice(one, other):
    """Overlap of two regions (T,)."""
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def f1(one, other):
    """F1 of two sets of faces (F,)."""
    return 2 * (one & other).sum() / max(one.sum() + other.sum(), 1)


def centre_and_axis(grid, inside):
    """Centre (3,), longest principal axis (3,), and whether it stands out."""
    points = grid.centroids[inside]
    values, vectors = np.linalg.eigh(np.cov(points.T))
    return points.mean(axis=0), vectors[:, -1], values[-1] > 2 * values[-2]


def examine(acquisition, name, grid, true):
    """Row of figures of one shape, and (probability, whether a wall) of its faces."""
    signals = simulate(acquisition, grid, np.where(true, WALL, OPEN))
    mirror_tetrahedron = cKDTree(grid.centroids).query(-grid.centroids)[1]
    mirror_face = cKDTree(grid.face_centroids).query(-grid.face_centroids)[1]
    region = enclosed(grid, true)
    model = SpinverseModel(acquisition, grid=grid)
    fits, cpu = [], []
    for seed in (0, 1):
        data, sigma = noisy(acquisition, signals, seed)
        start = time.process_time()
        fit = model.fit(data, S0=1.0, n_fields=N_FIELDS)
        cpu.append(time.process_time() - start)
        walls = fit.permeability < 1.0
        inside, probability = enclosed(grid, walls), fit.wall_probability
        if dice(inside[mirror_tetrahedron], region) > dice(inside, region):
            inside, walls = inside[mirror_tetrahedron], walls[mirror_face]
            probability = probability[mirror_face]
        expected = rician_mean(fit.predict(S0=1.0), sigma)
        rms = np.sqrt((((data - expected) / sigma) ** 2).mean())
        fits.append((inside, walls, probability, rms))
    inside, walls, probability, rms = fits[0]
    centre, axis, long = centre_and_axis(grid, inside)
    true_centre, true_axis, true_long = centre_and_axis(grid, region)
    angle = np.degrees(np.arccos(min(abs(axis @ true_axis), 1)))
    row = {
        "rms/noise": rms,
        "Dice": dice(inside, region),
        "volume %": 100 * (inside.sum() / region.sum() - 1),
        "centre um": np.linalg.norm(centre - true_centre),
        "axis deg": angle if true_long else np.nan,
        "F1": f1(walls, true),
        "F1 between": max(f1(walls, fits[1][1]), f1(walls, fits[1][1][mirror_face])),
        "CPU-s": float(np.mean(cpu)),
    }
    return row, np.stack([probability, true])


def unseen_row(acquisition, grid, true, seed):
    """Row of figures of one shape: of the search, and of one with the truth as initial value."""
    region = enclosed(grid, true)
    data, sigma = noisy(acquisition, simulate(acquisition, grid, np.where(true, WALL, OPEN)), seed)
    mirror = cKDTree(grid.centroids).query(-grid.centroids)[1]
    inversion = CellInversion(
        acquisition, grid, diffusivity=DIFFUSIVITY, n_fields=N_FIELDS, seed=0
    )
    row = {}
    for start in ("", " from truth"):
        if start:
            inversion.search.bodies[0] = region
            del inversion.search.examples
        seconds = time.process_time()
        result = inversion.run(data[None], None)
        seconds = time.process_time() - seconds
        inside = enclosed(grid, result.scaled_transmissibility[0] < WALL_THRESHOLD)
        expected = rician_mean(result.predicted[0], sigma)
        row |= {
            f"Dice{start}": max(dice(x, region) for x in (inside, inside[mirror])),
            f"volume %{start}": 100 * (inside.sum() / region.sum() - 1),
            f"rms/noise{start}": np.sqrt((((data - expected) / sigma) ** 2).mean()),
            f"CPU-s{start}": seconds,
        }
    return row


def calibration(faces):
    """Table of predicted probabilities and observed frequencies of walls."""
    probability, true = faces
    lines = [
        "| predicted probability | faces | mean predicted | walls in truth |",
        "|---|---|---|---|",
    ]
    for low, high in zip(BINS[:-1], BINS[1:], strict=True):
        chosen = (probability >= low) & (probability < high + 1e-9 * (high == 1))
        if chosen.any():
            lines.append(
                f"| {low:.1f}-{high:.1f} | {chosen.sum()} | {probability[chosen].mean():.2f} "
                f"| {true[chosen].mean():.2f} |"
            )
    return "\n".join(lines)


def draw_calibration():
    """Plot the table of predicted probabilities and observed frequencies in results/."""
    rows = (RESULTS / "noisy_cells.md").read_text().split("walls in truth |\n")[1].splitlines()[1:]
    faces, stated, found = np.array([row.split("|")[2:5] for row in rows], dtype=float).T
    figure, axis = plt.subplots(figsize=(3.8, 3.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.7", lw=1, label="calibrated")
    axis.plot(stated, found, "C0o-", ms=5)
    for n, x, y in zip(faces, stated, found, strict=True):
        axis.annotate(f"{n:.0f} faces", (x, y), (7, -11), textcoords="offset points", fontsize=7)
    axis.set(xlabel="predicted probability of a wall", ylabel="walls in truth", aspect="equal")
    axis.set(xlim=(-0.05, 1.2), ylim=(-0.1, 1.05), xticks=np.linspace(0, 1, 6))
    axis.legend(fontsize=8, frameon=False)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def main():
    """Print the tables, write them to results/, and plot the calibration of probabilities."""
    parser = command(__doc__, "shape 018")
    parser.add_argument("--shapes", nargs="+", default=None, help="numbers, as 018; default: all")
    parser.add_argument("--unseen", action="store_true", help="twelve shapes of other seeds")
    args = parser.parse_args()
    if args.unseen:
        _unseen(args.quick)
        return
    wanted = ["018"] if args.quick else args.shapes
    warnings.filterwarnings("ignore", message="The grid is too coarse")
    acquisition = published_protocol()
    rows, faces, lines = [], [], []
    for name, grid, true in all_shapes():
        if name in wanted if wanted else name.isdigit():
            row, of_shape = examine(acquisition, name, grid, true)
            rows.append(row)
            faces.append(of_shape)
            if not lines:
                lines = ["| shape | " + " | ".join(row) + " |", "|---" * (len(row) + 1) + "|"]
                print("\n".join(lines))
            lines.append(_line(name, row))
            print(lines[-1], flush=True)
    median = {name: np.nanmedian([abs(row[name]) for row in rows]) for name in rows[0]}
    lines.append(_line("median of sizes", median))
    lines += ["", calibration(np.concatenate(faces, axis=1))]
    print("\n".join(lines[-9:]))
    text = __doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines)
    keep("noisy_cells.md", text, complete=wanted is None)
    if wanted is None:
        draw_calibration()


def _unseen(quick):
    """Print the table of unseen shapes and write it to results/."""
    acquisition, rows, lines = published_protocol(), [], []
    of_each = [list(islice(draw(seed), 1 if quick else N_UNSEEN))
               for draw, seed in zip(UNSEEN_FAMILIES, UNSEEN_SEEDS, strict=True)]  # fmt: skip
    grid = published_grid()
    first, second = grid.face_tetrahedra.T
    for name, labels in chain(*of_each):
        rows.append(
            unseen_row(acquisition, grid, labels[first] != labels[second], [*name.encode()])
        )
        if not lines:
            lines = ["| shape | " + " | ".join(rows[0]) + " |", "|---" * (len(rows[0]) + 1) + "|"]
            print("\n".join(lines))
        lines.append(_line(name, rows[-1]))
        print(lines[-1], flush=True)
    lines.append(_line("median of sizes", {k: np.median([abs(row[k]) for row in rows])
                                           for k in rows[0]}))  # fmt: skip
    print(lines[-1])
    text = __doc__.split("\n\n")[3] + "\n\n" + "\n".join(lines)
    keep("noisy_cells_unseen.md", text, complete=not quick)


def _line(name, row):
    return f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |"


if __name__ == "__main__":
    main()
