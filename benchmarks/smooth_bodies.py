"""Smooth bodies off the lattice, with noise: cells with smooth walls, or made of tetrahedra.

Bodies of `smooth_bodies_set.py` (signals of a finer lattice, another discretisation), published
protocol, Rician noise of 1/50 of each timing's S(b=0), another realisation for each body. For
each: overlap (Dice), error of volume and centre, permeability over the true one (of each cell, the
largest first), mean squared residual over noise of each timing, the fit's intervals of S/V, volume
and mean permeability over their true values, CPU seconds; the same for a fit started at the truth,
and Dice of the search for cells made of tetrahedra (`--before`). All modulo point reflection,
which leaves every signal unchanged. "Dice modulo position" is that of each true cell and the
estimated one after a translation onto it, averaged by volume: positions in the box are hardly
identifiable. "-2 log evidence" is minus twice the log probability of the cells and those around
them: where that of the fit from the truth is much lower, the search missed a better shape, else
the data do not distinguish the two.

    python -m benchmarks.smooth_bodies [--kinds helix star] [--set reported] [--before]

Finished parts are kept in --folder, from which a run resumes. Duration: 2 min a body for its
signals and 7 min for both fits, one core (--quick: one body). Writes results/smooth_bodies.md.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy.fft import irfftn, rfftn
from scipy.ndimage import label
from scipy.optimize import linear_sum_assignment
from skimage.measure import marching_cubes

from benchmarks.command import command, keep
from benchmarks.noisy_cells import dice, enclosed, noisy
from benchmarks.recovery import published_protocol
from benchmarks.shapes import published_grid
from benchmarks.smooth_bodies_set import CHOOSING, REPORTED, SIDE, bodies, depths, signals_of
from dipy_spinverse import ClosedCellInversion, SpinverseModel
from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey import unique_encodings
from dipy_spinverse.cell_search.smooth import SmoothCellInversion, smooth_mesh, stored_cells
from dipy_spinverse.cell_search.smooth.level_set import single_cell_field
from dipy_spinverse.spinverse.permeability_fields import map_statistics

# Kinds and seeds. The search and the errors added to samples were chosen on the first three.
SETS = {
    "choosing": (CHOOSING, (0,)),
    "seen": (REPORTED, (1, 3)),
    "tuning": (REPORTED, (2,)),
    "reported": (REPORTED, (4, 5, 6)),
}
N_DRAWS = 16
DIFFUSIVITY = 2.0
_FINER = 40  # points along an axis in the alignment of cells
_FINEST = 120  # and between which true walls are interpolated
_MOST_CELLS = 6  # that are
_NEAR = 0.04 * SIDE  # um, within which a wall counts, as in `smooth_mesh`
_BINS = np.linspace(0, 1, 6)  # of stated probabilities
_CLEARLY = 10  # more improbable: by more than descents leave unfinished


class Examination:
    """Bodies of one acquisition, with one library for all searches."""

    def __init__(self, folder: Path):
        self._folder, self._acquisition = folder, published_protocol()
        self._grid = published_grid()
        self._inversion = SmoothCellInversion(
            self._acquisition, self._grid, diffusivity=DIFFUSIVITY, n_fields=N_DRAWS, seed=0
        )
        self._prior = self._inversion.search.prior

    def row(self, name, cells, before):
        """Figures of one body; stored ones are not computed again."""
        kept = self._folder / f"{name}.json"
        row = json.loads(kept.read_text()) if kept.exists() else {}
        # The same noise for all bodies would shift the figures of all alike.
        signals = signals_in(self._folder, self._acquisition, name, cells)
        data = noisy(self._acquisition, signals, [*name.encode()])[0]
        if "Dice" not in row:
            row |= self._found(data, cells)
            kept.write_text(json.dumps(row))
        if "Dice from truth" not in row:
            row |= self._from_truth(data, cells)
            kept.write_text(json.dumps(row))
        if before and "Dice before" not in row:
            row |= self._before(data, cells)
            kept.write_text(json.dumps(row))
        return row

    def _found(self, data, cells):
        start = time.process_time()
        self._inversion.search.examples  # noqa: B018 - once for all voxels, not counted
        examples, start = time.process_time() - start, time.process_time()
        result = self._inversion.run(data[None], None)
        seconds = time.process_time() - start
        best, *draws = stored_cells(SimpleNamespace(**{k: x[0] for k, x in result.cells.items()}))
        noise = result.sigma[0]
        level = np.array([data[rows].mean() for rows in self._acquisition.b0_per_timing]) / 50
        residual = (data - result.predicted[0]) / level[self._acquisition.timing_index]
        timings = [self._acquisition.timing_index == k for k in range(len(level))]
        areas, volumes = np.transpose([area_and_volume(cell) for cell in cells])
        mean = areas @ [cell.permeability for cell in cells] / areas.sum()
        told = map_statistics(result.maps, result.errors)

        def interval(name, true):
            return np.array([told[name + end][0] for end in ("_low", "_high")]) / true

        intervals = {
            "S/V": interval("surface_to_volume", areas.sum() / SIDE**3),
            "volume": interval("restricted_fraction", volumes.sum() / SIDE**3),
            "mean permeability": interval("wall_permeability", mean),
        }
        dices = [self._compared(x, cells)["Dice"] for x in draws]
        return self._compared(best, cells) | {
            "Dice of samples": [round(float(np.quantile(dices, q)), 2) for q in (0, 0.5, 1)],
            "-2 log evidence": self._improbability(data, best),
            "chi2": [round(float((residual[rows] ** 2).mean()), 2) for rows in timings],
            "permeability": (np.sort(best.permeability)[::-1] / mean).round(2).tolist(),
            **{f"{name} interval": x.round(2).tolist() for name, x in intervals.items()},
            "held": [bool(low <= 1 <= high) for low, high in intervals.values()],
            "wall bins": self._wall_bins(best, draws, cells),
            "noise": float(noise),
            "CPU-s": round(seconds),
            "once CPU-s": round(examples),
        }

    def _wall_bins(self, best, draws, cells):
        """Triangles, their wall probabilities, and those near true walls: sums (5, 3) by bin."""
        mesh = smooth_mesh(self._prior, best, draws)
        centres, stated = mesh.vertices_um[mesh.triangles].mean(axis=1), mesh.wall_probability
        near = max((np.abs(depths(cells, x)) < _NEAR for x in (centres, -centres)), key=np.sum)
        which = np.digitize(stated, _BINS[1:-1])
        return [[float(x[which == k].sum()) for x in (stated >= 0, stated, near)]
                for k in range(len(_BINS) - 1)]  # fmt: skip

    def _improbability(self, data, cells):
        return round(self._refinement(data, cells).at(cells).neg2_log_evidence)

    def _refinement(self, data, cells):
        search = self._inversion.search
        return search.refinement(search.target(self._inversion.voxel_data(data), cells))

    def _from_truth(self, data, cells):
        points = self._prior.raster[0]
        start = single_cell_field(self._prior.coefficients_of(depths(cells, points)))
        refine, n_steps = self._refinement(data, start), self._inversion.search.budget.n_steps[2]
        fitted = refine.descend(refine.descend.fitted(start), n_steps)
        found = refine(fitted.cells).fitted.cells
        figures = self._compared(found, cells)
        figures["-2 log evidence"] = self._improbability(data, found)
        return {f"{name} from truth": x for name, x in figures.items()}

    def _before(self, data, cells):
        start = time.process_time()
        model = SpinverseModel(self._acquisition, grid=self._grid, inversion=ClosedCellInversion())
        fit = model.fit(data, S0=1.0, n_fields=0)
        seconds = time.process_time() - start
        grid, walls = self._grid, fit.permeability < 1.0
        inside = enclosed(grid, walls)
        rng = np.random.default_rng(0)
        points = rng.uniform(-SIDE / 2, SIDE / 2, (20_000, 3))
        nearest = ((points[:, None] - grid.centroids) ** 2).sum(axis=2).argmin(axis=1)
        found = overlap_figures(inside[nearest], points, cells)
        found |= {"CPU-s": round(seconds), "status": int(fit.status)}
        return {f"{name} before": value for name, value in found.items()}

    def _compared(self, found, cells):
        points, basis = self._prior.raster
        figures = overlap_figures(basis @ found.z + self._prior.mean > 0, points, cells)
        return figures | {"Dice modulo position": round(self._but_for_places(found, cells), 3)}

    def _but_for_places(self, found, cells):
        """Dice of true cells and estimated ones after translation onto them."""
        axis = ((np.arange(_FINER) + 0.5) / _FINER - 0.5) * SIDE
        labels, number = label(self._prior.on_axes(found.z, [axis] * 3) > 0)
        single = [labels == k for k in range(1, number + 1)]
        single = sorted(single, key=np.sum)[-_MOST_CELLS:]
        points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        best = 0.0
        for sign in (1, -1):
            true = [(cell.depth(sign * points) > 0).reshape(labels.shape) for cell in cells]
            table = np.array([[_dice_shifted(a, b) * a.sum() for b in single] for a in true])
            chosen = linear_sum_assignment(-table)
            best = max(best, table[chosen].sum() / np.sum(true))
        return float(best)


def signals_in(folder: Path, acquisition: Acquisition, name, cells):
    """Signals (M,) of a body, kept in a folder."""
    path, (representatives, encoding) = folder / f"{name}.npy", unique_encodings(acquisition)
    if not path.exists():
        np.save(path, signals_of(acquisition.subset(representatives), cells))
    return np.load(path)[encoding]


def overlap_figures(inside, points, cells):
    """Dice, error of volume and of centre of points (P,) inside, modulo reflection."""
    sides = [depths(cells, sign * points) > 0 for sign in (1, -1)]
    true = max(sides, key=lambda side: dice(inside, side))
    off = points[inside].mean(axis=0) - points[true].mean(axis=0) if inside.any() else np.inf
    return {
        "Dice": round(float(dice(inside, true)), 3),
        "volume %": round(float(100 * (inside.sum() / true.sum() - 1)), 1),
        "centre um": round(float(np.linalg.norm(off)), 2),
    }


def _dice_shifted(one, other):
    """Dice of two regions (n, n, n), one of which is shifted to where they overlap most."""
    shape = [2 * n for n in one.shape]
    both = irfftn(rfftn(one, shape) * rfftn(other, shape).conj(), shape)
    return 2 * both.max() / (one.sum() + other.sum())


def area_and_volume(cell):
    """Area of a cell's wall, um^2, and volume, um^3."""
    depth, step = _finely(cell.depth), SIDE / _FINEST
    vertices, triangles, *_ = marching_cubes(depth, 0.0, spacing=(step,) * 3)
    a, b, c = np.moveaxis(vertices[triangles], 1, 0)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    return area, (0.5 + depth / step).clip(0, 1).sum() * step**3


def surface(depth):
    """Points (P, 3), um, on the walls of a body, 0.2 um apart."""
    step = SIDE / _FINEST
    vertices, *_ = marching_cubes(_finely(depth), 0.0, spacing=(step,) * 3)
    return vertices - (SIDE - step) / 2


def _finely(depth):
    axis = ((np.arange(_FINEST) + 0.5) / _FINEST - 0.5) * SIDE
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    return depth(points).reshape((_FINEST,) * 3)


def _summary(rows, bodies_cells):
    """Sentences on all bodies."""
    lines = []
    for column in ("Dice", "Dice modulo position", "Dice from truth"):
        numbers = [row[column] for row in rows]
        lines.append(f"{column}: median {np.median(numbers):.2f}, lowest decile "
                     f"{np.quantile(numbers, 0.1):.2f}.")  # fmt: skip
    volume, centre = (np.median([abs(row[x]) for row in rows]) for x in ("volume %", "centre um"))
    lines.append(f"Volume {volume:.1f} % and centre {centre:.1f} um: median errors.")
    within = [within_a_quarter(*one) for one in zip(rows, bodies_cells, strict=True)]
    number = sum(len(cells) for cells in bodies_cells)
    lines.append(f"Permeability within 25 % in {sum(within)} of {number} cells.")
    missed = [
        row["-2 log evidence"] - row["-2 log evidence from truth"] > _CLEARLY for row in rows
    ]
    lines.append(
        f"The minimum from the truth is clearly more probable in {sum(missed)} of {len(rows)}."
    )
    held = np.sum([row["held"] for row in rows], axis=0).tolist()
    lines.append(f"Intervals of S/V, volume and permeability cover {held} of {len(rows)}.")
    widths = [np.median([np.ptp(row[f"{name} interval"]) / 2 for row in rows])
              for name in ("S/V", "volume", "mean permeability")]  # fmt: skip
    lines.append(
        f"Their half widths are {', '.join(f'{100 * x:.0f} %' for x in widths)} (median)."
    )
    triangles, stated, near = np.sum([row["wall bins"] for row in rows], axis=0).T
    pairs = ", ".join(f"{s / n:.2f} ({t / n:.2f})"
                      for n, s, t in zip(triangles, stated, near, strict=True) if n)  # fmt: skip
    lines.append(f"Probability of a wall within {_NEAR:.1f} um, predicted (observed): {pairs}.")
    return lines


def within_a_quarter(row, cells):
    """Cells of which the permeability is estimated within 25 %, the most permeable ones first."""
    areas, _ = np.transpose([area_and_volume(cell) for cell in cells])
    true = np.array([cell.permeability for cell in cells])
    true = np.sort(true / (areas @ true / areas.sum()))[::-1]
    n = min(len(true), len(row["permeability"]))
    return int((np.abs(np.array(row["permeability"][:n]) / true[:n] - 1) < 0.25).sum())


def main():
    """Print the table and write it to results/."""
    parser = command(__doc__, "one body")
    parser.add_argument("--set", choices=SETS, default="reported")
    parser.add_argument("--kinds", nargs="+", default=None, help="names, as helix; default: all")
    parser.add_argument(
        "--before", action="store_true", help="also the search for cells made of tetrahedra"
    )
    parser.add_argument("--folder", type=Path, default=Path("smooth_bodies"))
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    kinds, seeds = SETS[args.set]
    named = [body for seed in seeds for body in bodies(kinds, seed)]
    if args.quick:
        named = named[-1:]
    elif args.kinds:
        named = [(name, cells) for name, cells in named if name.startswith(tuple(args.kinds))]
    examination = Examination(args.folder)
    rows = []
    for name, cells in named:
        rows.append(examination.row(name, cells, args.before))
        print(name, rows[-1], flush=True)
    names = [name for name in rows[0] if name not in ("noise", "wall bins")]
    lines = ["| body | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for (name, _), row in zip(named, rows, strict=True):
        lines.append(f"| {name} | " + " | ".join(str(row.get(k, "")) for k in names) + " |")
    lines += ["", *_summary(rows, [cells for _, cells in named])]
    text = __doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines)
    print("\n".join(lines))
    keep("smooth_bodies.md", text, complete=not args.quick and args.kinds is None)


if __name__ == "__main__":
    main()
