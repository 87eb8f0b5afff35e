"""Maps read off fields of walls alone, against their truths, on grids of several sizes.

Substrates of `benchmarks.tissue_testset` (300 mT/m, SNR 50) are fitted with `SpinverseModel`'s
wall fields only, without packed cells: how right are the maps, how much of their error do the
fields of an ensemble show, and what do the size of the grid and of its lattice cubes change?

    python -m benchmarks.wall_fields FILE

Duration: about 15 min on 2 cores (--quick, which makes its own set: 2 min). Writes
results/wall_fields.md.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.command import command, keep
from benchmarks.monte_carlo import DIFFUSIVITY
from benchmarks.tissue import MAPS, NOISE_SEED
from benchmarks.tissue_testset import load_testset, quick_testset
from dipy_spinverse import Acquisition, bcc_grid
from dipy_spinverse.inversion import Inversion, InversionSettings, transmissibility
from dipy_spinverse.walls.maps import wall_maps

# Lattice cubes along an axis, their size in um, substrates, further fields.
GRIDS = (
    (4, 5.0, 20, 4),
    (4, 2.5, 8, 0),
    (4, 10.0, 8, 0),
    (6, 3.333, 3, 0),
)
GRIDS_QUICK = ((4, 5.0, 2, 0),)
_T_95 = 2.78  # Student, 4 degrees of freedom


def maps_of(acquisition: Acquisition, grid, signals: np.ndarray, sigma: float, n_fields: int):
    """Maps (n_fields + 1, 5) of the fields of one voxel, residual over noise, CPU-s, chunks."""
    start = time.process_time()
    settings = InversionSettings(diffusivity=DIFFUSIVITY, n_fields=n_fields)
    inversion = Inversion(acquisition, grid, settings)
    scale = signals[acquisition.b0_mask].mean()
    result = inversion.run(signals[None] / scale, np.array([sigma / scale]))
    fields = np.concatenate([result.openness, result.openness_fields[:, 0]])
    maps = wall_maps(
        grid,
        transmissibility(torch.as_tensor(fields)),
        diffusivity=DIFFUSIVITY,
        diffusion_time=float(acquisition.diffusion_time.max()),
    )
    rms = np.sqrt(((result.predicted[0] - signals / scale) ** 2).mean()) * scale / sigma
    return np.stack([maps[name] for name in MAPS], axis=1), rms, time.process_time() - start


def report(path: Path, grids=GRIDS) -> str:
    """The comparison as Markdown."""
    tissue = load_testset(path, "300", 50, NOISE_SEED)
    truths = np.stack([tissue.truths[name] for name in MAPS], axis=1).astype(float)
    lines = [
        "# Wall fields: maps against truths",
        "",
        "`python -m benchmarks.wall_fields FILE`, first substrates of the set, 300 mT/m, SNR 50. "
        "Ratio: median of true over estimated; error: median and 95 % quantile of "
        "|true/estimated - 1|; shown: part of the substrates whose truth is within Student's 95 % "
        "interval of the five fields.",
    ]
    for cells, size, number, n_fields in grids:
        grid = bcc_grid(cells, size)
        rows = []
        for k in range(number):
            rows.append(
                maps_of(tissue.acquisition, grid, tissue.signals[k], tissue.sigma, n_fields)
            )
            print(cells, size, k, f"{rows[-1][2]:.0f} CPU-s", flush=True)
        maps = np.array([row[0] for row in rows])
        mean, truth = maps.mean(axis=1), truths[:number]
        relative = np.abs(truth / np.maximum(mean, 1e-9) - 1)
        lines += [
            "",
            f"## {cells} cells of {size:g} um ({cells * size:.0f} um), {number} substrates: "
            f"residual over noise {np.median([row[1] for row in rows]):.2f} (median), "
            f"{np.median([row[2] for row in rows]):.0f} CPU-s",
            "",
            "| map | ratio | error, median | error, 95 % | shown |",
            "| --- | --- | --- | --- | --- |",
        ]
        for k, name in enumerate(MAPS):
            shown = "-"
            if n_fields:
                reach = _T_95 * maps[..., k].std(axis=1, ddof=1) * np.sqrt(1 + 1 / maps.shape[1])
                shown = f"{100 * (np.abs(truth[:, k] - mean[:, k]) < reach).mean():.0f} %"
            ratio = np.median(truth[:, k] / np.maximum(mean[:, k], 1e-9))
            middle, high = np.quantile(relative[:, k], [0.5, 0.95])
            lines.append(f"| {name} | {ratio:.2f} | {middle:.2f} | {high:.2f} | {shown} |")
    return "\n".join(lines)


def main():
    """Print the report and write it to results/."""
    parser = command(__doc__, "two substrates on the default grid")
    parser.add_argument("path", type=Path, nargs="?", metavar="FILE")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="The grid is too coarse")
    if arguments.quick:
        with quick_testset() as path:
            print(report(path, GRIDS_QUICK))
        return
    if arguments.path is None:
        parser.error("give the FILE of benchmarks.tissue_testset, or --quick")
    text = report(arguments.path)
    print(text)
    keep("wall_fields.md", text, complete=True)


if __name__ == "__main__":
    main()
