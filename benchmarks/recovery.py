"""Recovery of the published shapes: noise-free, absorbing box, published protocol.

Each of the 14 published shapes, of 18 more of their family, and of 22 outside of any parametric
family (`shapes.py`) is simulated and inverted on the same grid (one discretisation on both sides,
as in the published task; the signals to be inverted are simulated in float64 with finer time
steps). Runs: the default (cell search), Gauss-Newton over all faces, and the Adam baseline without
("adam") and with continuity and manifold priors, whose weights are the published ones ("adam with
priors") or a hundredth of them ("adam with weak priors").

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.recovery [--runs "cell search" adam ...]

With `--unseen`, the default on 30 shapes of seeds not used for any choice, each with another wall
permeability, from 0.003 to 0.2 um/ms.

Duration: some hours on 2 cores (--quick: 1 min; --unseen: one hour, --quick --unseen: 2 min).
Writes results/recovery.md or results/recovery_unseen.md.
"""

from __future__ import annotations

import time
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from dipy.core.sphere import HemiSphere, disperse_charges
from scipy.spatial import cKDTree

from benchmarks.adam import AdamInversion
from benchmarks.command import command, keep
from benchmarks.datasets import data_files
from benchmarks.shapes import outside_the_family, published_family, published_grid
from dipy_spinverse import (
    Acquisition,
    ClosedCellInversion,
    FaceInversion,
    SpinverseModel,
    TetrahedralGrid,
    compare_walls,
    simulate,
)
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.inversion import (
    WALL_THRESHOLD,
    Continuity,
    Manifoldness,
    scaled_transmissibility,
)

QUICK = ("000", "018")
TIMINGS = ((5, 6), (10, 20), (10, 60))
B_VALUES = (0, 1, 2, 3, 4, 5)
N_DIRECTIONS = 30
WALL, OPEN = 0.01, 100.0
# Seeds of shapes not used for any choice, number per family, and their permeabilities.
UNSEEN_FAMILIES, UNSEEN_SEEDS = (published_family, outside_the_family), (11, 12)
N_UNSEEN, UNSEEN_WALLS = 15, (0.003, 0.2)
RUNS = {
    "cell search": ClosedCellInversion(),
    "gauss-newton": FaceInversion(),
    "adam": AdamInversion(),
    "adam with priors": AdamInversion(priors=(Continuity(2.0), Manifoldness(2.0))),
    "adam with weak priors": AdamInversion(priors=(Continuity(0.02), Manifoldness(0.02))),
}
# Adam has no stopping rule; with a known noise level it is not run again to refine it.
FIT_OPTIONS = {run: {"sigma": 0.02} for run in RUNS if run.startswith("adam")}


def published_protocol() -> Acquisition:
    """Three timings, b from 0 to 5 ms/um^2, 30 directions."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((N_DIRECTIONS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions = disperse_charges(HemiSphere(xyz=directions), 2000)[0].vertices
    b, delta, separation = np.broadcast_arrays(
        np.repeat(B_VALUES, N_DIRECTIONS),
        np.array([timing[0] for timing in TIMINGS])[:, None],
        np.array([timing[1] for timing in TIMINGS])[:, None],
    )
    return Acquisition(
        b=b.ravel(),
        directions=np.tile(directions, (b.size // N_DIRECTIONS, 1)),
        small_delta=delta.ravel(),
        big_delta=separation.ravel(),
        te=(delta + separation).ravel(),
    )


def read_shape(path: Path) -> tuple[TetrahedralGrid, np.ndarray]:
    """Grid and true walls (F,); wall faces on the outer box are left to the absorbing outside."""
    stored, grid = np.load(path), published_grid()
    place = cKDTree(grid.points_um).query(stored["points_um"])[1]
    wall_faces = np.sort(place[stored["wall_faces"]], axis=1)
    both, index, _ = np.intersect1d(
        _keys(grid.faces, grid.n_points), _keys(wall_faces, grid.n_points), return_indices=True
    )
    true = np.zeros(grid.n_faces, dtype=bool)
    true[index] = True
    return grid, true


def all_shapes():
    """Names, grids and true walls (F,) of the published shapes, similar ones, and others."""
    for path in data_files("spinverse_meshes", ".npz"):
        yield path.name[:3], *read_shape(path)
    grid = published_grid()
    first, second = grid.face_tetrahedra.T
    for name, labels in (*published_family(), *outside_the_family()):
        yield name, grid, labels[first] != labels[second]


def unseen_shapes():
    """Names, grids, true walls (F,) and their permeability, of 30 shapes of other seeds."""
    grid, rng = published_grid(), np.random.default_rng(0)
    first, second = grid.face_tetrahedra.T
    families = (draw(seed) for draw, seed in zip(UNSEEN_FAMILIES, UNSEEN_SEEDS, strict=True))
    for name, labels in chain(*(islice(family, N_UNSEEN) for family in families)):
        wall = float(np.exp(rng.uniform(*np.log(UNSEEN_WALLS))))
        yield name, grid, labels[first] != labels[second], wall


def family_of(name: str) -> str:
    """Which of the three families a shape belongs to."""
    if name.isdigit():
        return "published"
    return "more of the family" if name.startswith("new ") else "outside"


def _keys(faces, n_points):
    return (faces * np.array([n_points**2, n_points, 1])).sum(axis=1)


def recover(acquisition, grid, true, run, wall=WALL):
    """Row of figures of one shape and run."""
    signals = simulate(acquisition, grid, np.where(true, wall, OPEN))
    model = SpinverseModel(acquisition, grid=grid, inversion=RUNS[run])
    start, start_cpu = time.perf_counter(), time.process_time()
    fit = model.fit(signals, S0=1.0, n_fields=0, **FIT_OPTIONS.get(run, {}))
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    tau = relative_transmissibility(grid, fit.permeability.astype(float))
    found = (scaled_transmissibility(torch.as_tensor(tau)) < WALL_THRESHOLD).numpy()
    match = compare_walls(found, true, grid, point_reflection=True)
    return {
        "F1": match.f1,
        "precision": match.precision,
        "recall": match.recall,
        "Chamfer2": match.centred_chamfer_um2,
        "bad": match.bad_edges_percent,
        "permeability": float(np.median(fit.permeability[found])) if found.any() else np.nan,
        "rms": float(fit.residual_rms),
        "s": seconds,
        "CPU": cpu,
    }


def main():
    """Print the table and write it to results/."""
    parser = command(__doc__, f"the cell search on {' and '.join(QUICK)}")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--shapes", nargs="+", default=None, help="numbers, as 018; default: all")
    parser.add_argument("--unseen", action="store_true", help="30 shapes of other seeds")
    args = parser.parse_args()
    acquisition = published_protocol()
    if args.unseen:
        _unseen(acquisition, args.quick)
        return
    runs, wanted = (["cell search"], QUICK) if args.quick else (args.runs, args.shapes)
    shapes = [shape for shape in all_shapes() if wanted is None or shape[0] in wanted]
    lines = [
        "| run | shape | true bad edges % | F1 | precision | recall | centred Chamfer2 um2 "
        "| bad edges % | rms | s | CPU-s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for run in runs:
        rows = []
        for name, grid, true in shapes:
            truth = compare_walls(true, true, grid).bad_edges_percent
            rows.append(recover(acquisition, grid, true, run))
            lines.append(_line(run, name, truth, rows[-1]))
            print(lines[-1], flush=True)
        for family in ("published", "more of the family", "outside"):
            chosen = [
                row
                for row, (name, *_) in zip(rows, shapes, strict=True)
                if family_of(name) == family
            ]
            if chosen:
                median = {name: float(np.median([r[name] for r in chosen])) for name in chosen[0]}
                exact = sum(row["F1"] == 1 for row in chosen)
                worst = min(row["F1"] for row in chosen)
                label = f"{family}: median ({exact} of {len(chosen)} exact, least F1 {worst:.2f})"
                lines.append(_line(run, label, np.nan, median))
                print(lines[-1], flush=True)
    text = __doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines)
    keep("recovery.md", text, complete=wanted is None)


def _unseen(acquisition, quick):
    """Print the table of unseen shapes and write it to results/."""
    shapes = islice(unseen_shapes(), len(QUICK) if quick else None)
    lines = ["| shape | permeability | F1 | estimated permeability over true | rms | CPU-s |"]
    lines += ["| --- " * 6 + "|"]
    print("\n".join(lines), flush=True)
    rows = []
    for name, grid, true, wall in shapes:
        rows.append(recover(acquisition, grid, true, "cell search", wall))
        row = rows[-1]
        lines.append(f"| {name} | {wall:.4f} | {row['F1']:.3f} | {row['permeability'] / wall:.2f} "
                     f"| {row['rms']:.1e} | {row['CPU']:.0f} |")  # fmt: skip
        print(lines[-1], flush=True)
    exact, seconds = sum(row["F1"] == 1 for row in rows), sum(row["CPU"] for row in rows)
    lines += ["", f"{exact} of {len(rows)} exact, {seconds:.0f} CPU-s in all."]
    print(lines[-1])
    text = __doc__.split("\n\n")[3] + "\n\n" + "\n".join(lines)
    keep("recovery_unseen.md", text, complete=not quick)


def _line(run, shape, truth, row):
    truth = "" if np.isnan(truth) else f"{truth:.0f}"
    return (
        f"| {run} | {shape} | {truth} | {row['F1']:.3f} | {row['precision']:.2f} "
        f"| {row['recall']:.2f} | {row['Chamfer2']:.2f} | {row['bad']:.0f} | {row['rms']:.1e} "
        f"| {row['s']:.0f} | {row['CPU']:.0f} |"
    )


if __name__ == "__main__":
    main()
