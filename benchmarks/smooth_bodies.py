"""Smooth bodies on no lattice, with noise: cells found with walls anywhere, or made of tetrahedra.

Bodies of `smooth_bodies_set.py` (signals of a finer lattice, another discretisation), published
protocol, Rician noise of 1/50 of each timing's S(b=0). For each: overlap (Dice), error of volume
and centre, permeability over the true one (of each cell, the largest first), mean squared residual
over noise of each timing, whether the intervals of surface and permeability hold, CPU seconds;
beside them the same of a fit started at the truth, and Dice of the search for cells made of
tetrahedra (`--before`). All modulo point reflection, which leaves every signal unchanged.
"improbability" is minus twice the log probability: where that of the fit from the truth is much
less, the search missed a better shape, else the data do not tell the two.

    python -m benchmarks.smooth_bodies [--kinds helix star] [--set reported] [--before]

What is done is kept in --folder, and goes on from there. Duration: 1 min a body for its signals
and 2 min for the fit, one core (--quick: one body). Writes results/smooth_bodies.md.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.command import command, keep
from benchmarks.noisy_cells import dice, enclosed, noisy
from benchmarks.recovery import published_protocol
from benchmarks.shapes import published_grid
from benchmarks.smooth_bodies_set import CHOOSING, REPORTED, SIDE, bodies, depths, signals_of
from dipy_spinverse import SpinverseModel
from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey import unique_encodings
from dipy_spinverse.cell_search.smooth import SmoothCellInversion, cells_of
from dipy_spinverse.cell_search.smooth.forward import as_one

SETS = {"choosing": (CHOOSING, 0), "seen": (REPORTED, 1), "reported": (REPORTED, 2)}
N_DRAWS = 16
DIFFUSIVITY = 2.0


class Examination:
    """Bodies of one acquisition, with the library of the search made once."""

    def __init__(self, folder: Path):
        self._folder, self._acquisition = folder, published_protocol()
        self._grid = published_grid()
        self._inversion = SmoothCellInversion(
            self._acquisition, self._grid, diffusivity=DIFFUSIVITY, n_fields=N_DRAWS, seed=0
        )
        self._prior = self._inversion.search.prior

    def row(self, name, cells, before):
        """Figures of one body, as far as they were not known."""
        kept = self._folder / f"{name}.json"
        row = json.loads(kept.read_text()) if kept.exists() else {}
        data = noisy(self._acquisition, self._signals(name, cells), 0)[0]
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

    def _signals(self, name, cells):
        path = self._folder / f"{name}.npy"
        representatives, encoding = unique_encodings(self._acquisition)
        if not path.exists():
            part: Acquisition = self._acquisition.subset(representatives)
            np.save(path, signals_of(part, cells))
        return np.load(path)[encoding]

    def _found(self, data, cells):
        start = time.process_time()
        self._inversion.search.examples  # noqa: B018 - once for all voxels, not counted
        examples, start = time.process_time() - start, time.process_time()
        result = self._inversion.run(data[None], None)
        seconds = time.process_time() - start
        best, *draws = cells_of(SimpleNamespace(**{k: x[0] for k, x in result.cells.items()}))
        noise = result.sigma[0]
        level = np.array([data[rows].mean() for rows in self._acquisition.b0_per_timing]) / 50
        residual = (data - result.predicted[0]) / level[self._acquisition.timing_index]
        timings = [self._acquisition.timing_index == k for k in range(len(level))]
        area = sum(_area(cell) for cell in cells)
        mean = sum(_area(cell) * cell.permeability for cell in cells) / area
        maps = {name: value[:, 0] for name, value in result.maps.items()}
        dices = [self._compared(x, cells)["Dice"] for x in draws]
        return self._compared(best, cells) | {
            "Dice of draws": [round(float(np.quantile(dices, q)), 2) for q in (0, 0.5, 1)],
            "improbability": round(self._inversion.improbability(data, best)),
            "chi2": [round(float((residual[rows] ** 2).mean()), 2) for rows in timings],
            "permeability": (np.sort(best.permeability)[::-1] / mean).round(2).tolist(),
            "S/V holds": bool(_holds(maps["surface_to_volume"], area / SIDE**3)),
            "permeability holds": bool(_holds(maps["wall_permeability"], mean)),
            "noise": float(noise),
            "CPU-s": round(seconds),
            "once CPU-s": round(examples),
        }

    def _from_truth(self, data, cells):
        points = self._prior.raster[0]
        start = as_one(self._prior.field_of(depths(cells, points)))
        found = self._inversion.refined(data, start)
        figures = self._compared(found, cells)
        figures["improbability"] = round(self._inversion.improbability(data, found))
        return {f"{name} from truth": x for name, x in figures.items()}

    def _before(self, data, cells):
        start = time.process_time()
        model = SpinverseModel(self._acquisition, grid=self._grid, optimizer="cell-search")
        fit = model.fit(data, S0=1.0, n_fields=0)
        seconds = time.process_time() - start
        grid, walls = self._grid, fit.permeability < 1.0
        inside = enclosed(grid, walls)
        rng = np.random.default_rng(0)
        points = rng.uniform(-SIDE / 2, SIDE / 2, (20_000, 3))
        nearest = ((points[:, None] - grid.centroids) ** 2).sum(axis=2).argmin(axis=1)
        found = _figures(inside[nearest], points, cells)
        found |= {"CPU-s": round(seconds), "status": int(fit.status)}
        return {f"{name} before": value for name, value in found.items()}

    def _compared(self, found, cells):
        points, basis = self._prior.raster
        return _figures(basis @ found.z + self._prior.mean > 0, points, cells)


def _figures(inside, points, cells):
    """Dice, error of volume and of centre of points (P,) inside, modulo reflection."""
    sides = [depths(cells, sign * points) > 0 for sign in (1, -1)]
    true = max(sides, key=lambda side: dice(inside, side))
    off = points[inside].mean(axis=0) - points[true].mean(axis=0) if inside.any() else np.inf
    return {
        "Dice": round(float(dice(inside, true)), 3),
        "volume %": round(float(100 * (inside.sum() / true.sum() - 1)), 1),
        "centre um": round(float(np.linalg.norm(off)), 2),
    }


def _area(cell, step=0.1):
    """Area of a cell's wall, um^2, from the volume of a shell."""
    points = np.random.default_rng(0).uniform(-SIDE / 2, SIDE / 2, (400_000, 3))
    return (np.abs(cell.depth(points)) < step).mean() * SIDE**3 / (2 * step)


def _holds(draws, true):
    low, high = np.quantile(draws, [0.025, 0.975])
    return low <= true <= high


def main():
    """Print the table and write it to results/."""
    parser = command(__doc__, "one body")
    parser.add_argument("--set", choices=SETS, default="reported")
    parser.add_argument("--kinds", nargs="+", default=None, help="names, as helix; default: all")
    parser.add_argument("--before", action="store_true", help="the search of tetrahedra, too")
    parser.add_argument("--folder", type=Path, default=Path("smooth_bodies"))
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    named = bodies(*SETS[args.set])
    if args.quick:
        named = named[-1:]
    elif args.kinds:
        named = [(name, cells) for name, cells in named if name.startswith(tuple(args.kinds))]
    examination = Examination(args.folder)
    rows = []
    for name, cells in named:
        rows.append(examination.row(name, cells, args.before))
        print(name, rows[-1], flush=True)
    names = [name for name in rows[0] if "noise" not in name]
    lines = ["| body | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for (name, _), row in zip(named, rows, strict=True):
        lines.append(f"| {name} | " + " | ".join(str(row.get(k, "")) for k in names) + " |")
    numbers = [row["Dice"] for row in rows]
    lines += ["", f"{len(rows)} bodies: median Dice {np.median(numbers):.2f}, lowest decile "
              f"{np.quantile(numbers, 0.1):.2f}."]  # fmt: skip
    text = __doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines)
    print("\n".join(lines))
    keep("smooth_bodies.md", text, complete=not args.quick and args.kinds is None)


if __name__ == "__main__":
    main()
