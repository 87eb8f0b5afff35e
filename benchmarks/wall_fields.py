"""Wall samples of tissue by default: agreement with the posterior, and prediction errors.

    python -m benchmarks.wall_fields FILE

fits the first substrates of `benchmarks.tissue_testset` (Monte Carlo, 300 mT/m, SNR 50) with the
default `SpinverseModel`. For each: the maps' posterior intervals, those of the samples, and maps
measured on the samples, each on its lattice. With DIPY_SPINVERSE_DATA=<folder>, also
some measured voxels: the error of what is left out of the fit, predicted by packed cells and by
the wall field that started from them.

Duration: about 2 CPU-min, and 3 of measured voxels (--quick, which simulates a small set: 1 min).
Writes results/wall_fields.md and a picture, ../doc/figures/tissue_walls.png.
"""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.baselines import with_amplitudes
from benchmarks.command import command, keep
from benchmarks.datasets import left_out, load_duval_cat, load_isbi2015
from benchmarks.tables import table
from benchmarks.tissue import NOISE_SEED
from benchmarks.tissue_testset import load_testset, quick_testset
from dipy_spinverse import SpinverseFit, SpinverseModel, Status, bcc_grid
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.spinverse.packings import rescaled_grid
from dipy_spinverse.spinverse.tissue_walls import signal_correction
from dipy_spinverse.walls.maps import wall_maps

MAPS = ("surface_to_volume", "restricted_fraction", "wall_permeability")
N_SUBSTRATES = 8
SHAPES = ("cylinders", "spheres", "mixture")
# Data set, how it is read, which of its voxels.
MEASURED = (
    ("cat", load_duval_cat, (0, 4, 13)),
    ("genu", lambda: load_isbi2015("genu"), (0, 3)),
    ("fornix", lambda: load_isbi2015("fornix"), (0,)),
)
SETTINGS = {"n_fields": 4}
FIGURE = Path(__file__).parents[1] / "doc/figures/tissue_walls.png"


def as_drawn(fit: SpinverseFit) -> dict[str, np.ndarray]:
    """Maps (n_fields + 1,) of the samples of one voxel, times their fraction of the water."""
    fields = np.concatenate([fit.permeability[None], fit.permeability_fields])
    found: dict[str, list] = {name: [] for name in MAPS}
    time_ms = float(fit.model.acquisition.diffusion_time.max())
    lattices = zip(fit.field_scale, fit.field_diffusivity, fit.field_share, strict=True)
    for walls, (scale, mm2_per_s, share) in zip(fields, lattices, strict=True):
        diffusivity = 1e3 * mm2_per_s
        grid = rescaled_grid(fit.model.grid, scale)
        tau = torch.as_tensor(relative_transmissibility(grid, walls, diffusivity))[None]
        maps = wall_maps(grid, tau, diffusivity=diffusivity, diffusion_time=time_ms)
        for name in MAPS:
            found[name].append(maps[name][0] * (1 if name == "wall_permeability" else share))
    return {name: np.array(values) for name, values in found.items()}


def simulated(path: Path, number: int) -> str:
    """Maps of substrates as a table, and how often things agree."""
    tissue = load_testset(path, "300", 50, NOISE_SEED)
    model = SpinverseModel(tissue.acquisition)
    model.tissue_model.fit(tissue.signals[0], sigma=tissue.sigma, n_draws=0)  # compiles it
    rows, inside = [], {"truth": [], "lattice": [], "error": []}
    for k in range(number):
        start = time.process_time()
        fit = model.fit(tissue.signals[k], sigma=tissue.sigma, **SETTINGS)
        seconds = time.process_time() - start
        drawn = as_drawn(fit)
        for name in MAPS:
            low, middle, high = (
                float(getattr(fit.tissue, name + end)) for end in ("_low", "", "_high")
            )
            truth, found = float(tissue.truths[name][k]), float(np.median(drawn[name]))
            inside["truth"].append(low <= truth <= high)
            inside["lattice"].append(low <= found <= high)
            inside["error"].append(abs(found / truth - 1))
            rows.append((
                f"{k}, {SHAPES[tissue.truths['shape'][k]]}", name, f"{truth:.3g}",
                f"{middle:.3g} ({low:.3g} to {high:.3g})",
                f"{found:.3g} ({drawn[name].min():.3g} to {drawn[name].max():.3g})",
                Status(int(fit.wall_status)).name, f"{fit.pattern_agreement:.2f}",
                f"{seconds:.1f}",
            ))  # fmt: skip
        print(*rows[-1], flush=True)
    shares = {name: np.reshape(values, (-1, len(MAPS))) for name, values in inside.items()}
    summary = [
        (name, *(f"{100 * shares[kind][:, m].mean():.0f} %" for kind in ("truth", "lattice")),
         f"{np.median(shares['error'][:, m]):.2f}") for m, name in enumerate(MAPS)
    ]  # fmt: skip
    return "\n\n".join([
        table(("map", "truth in the posterior's interval", "fields' median in it",
               "|fields / truth - 1|, median"), summary),
        table(("substrate", "map", "truth", "posterior (95 %)", "samples on lattices (range)",
               "wall_status", "agreement of patterns", "CPU-s"), rows),
    ])  # fmt: skip


def measured() -> str:
    """Errors of packed cells and of wall fields, for measured voxels, as a table."""
    rows = []
    for name, load, numbers in MEASURED:
        voxels = load()
        out = left_out(voxels.acquisition)
        for number in numbers:
            signals, usable = voxels.signals[number], voxels.usable[number]
            fitted = usable & ~out
            model = SpinverseModel(
                voxels.acquisition.subset(fitted), free_diffusivity=1e-3 * voxels.free_diffusivity
            )
            start = time.process_time()
            fit = model.fit(
                signals[fitted], sigma=voxels.repeatability[number], n_fields=1, n_draws=0
            )
            seconds = time.process_time() - start
            walls = {n: v for n, v in fit._values.items() if n in fit.WALLS}
            change = signal_correction(model.problem(), walls, voxels.acquisition)[0]
            packed = fit.tissue.predict(gtab=voxels.acquisition, S0=1.0)
            errors = [
                np.sqrt(np.mean((predicted - signals)[rows_] ** 2)) / voxels.sigma[number]
                for shape in (packed, packed + change)
                for predicted in [with_amplitudes(voxels.acquisition, shape, signals, fitted)]
                for rows_ in (fitted, usable & out)
            ]
            rows.append((
                name, voxels.labels[number], *(f"{error:.3f}" for error in errors),
                f"{voxels.repeatability[number] / voxels.sigma[number]:.2f}",
                Status(int(fit.wall_status)).name, f"{seconds:.0f}",
            ))  # fmt: skip
            print(*rows[-1], flush=True)
    return table(("data", "voxel", "packed cells, fitted", "left out", "walls, fitted",
                  "left out", "repeatability", "wall_status", "CPU-s"), rows)  # fmt: skip


def picture(path: Path, number: int = 6) -> None:
    """Draw three fields of cylinders, seen along them, two by two lengths of their lattice."""
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    tissue = load_testset(path, "300", 50, NOISE_SEED)
    # A finer lattice than the default one, and a short one along the cylinders.
    model = SpinverseModel(tissue.acquisition, grid=bcc_grid((8, 8, 3), 2.5))
    fit = model.fit(tissue.signals[number], sigma=tissue.sigma, n_fields=2, n_draws=0)
    figure, panels = plt.subplots(1, 3, figsize=(9, 3.2), sharex=True, sharey=True)
    for field, axes in enumerate(panels):
        mesh, frame = fit.interface(field=field), fit.field_frame[field]
        corners = (mesh.vertices_um[mesh.triangles] @ frame.T)[..., :2]
        period = model.grid.period_um[:2] * fit.field_scale[field]
        for shift in np.ndindex(2, 2):
            edges = np.concatenate([corners[:, [k, k - 1]] for k in range(3)])
            axes.add_collection(LineCollection(edges + (shift - np.full(2, 0.5)) * period, lw=1))
        axes.add_patch(plt.Rectangle(-period, *(2 * period), fill=False, lw=0.5, ls=":"))
        axes.set(aspect="equal", xlabel="um", xlim=(-10, 10), ylim=(-10, 10))
        axes.set_title("most probable tissue" if field == 0 else f"sample {field}", fontsize=9)
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=120)


def main():
    """Print the report and write it to results/."""
    parser = command(__doc__, "two substrates")
    parser.add_argument("path", type=Path, nargs="?", metavar="FILE")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Voxel")
    if arguments.quick:
        with quick_testset() as path:
            print(simulated(path, 2))
        return
    if arguments.path is None:
        parser.error("give the FILE of benchmarks.tissue_testset, or --quick")
    parts = [
        "# Wall samples of tissue",
        "`python -m benchmarks.wall_fields FILE`: `SpinverseModel` with its defaults. Samples on "
        "their lattices: maps measured on the walls of each sample, times the "
        "fraction of water in packed cells; median and range of the five.",
        f"## First {N_SUBSTRATES} substrates, Monte Carlo, 300 mT/m, SNR 50",
        simulated(arguments.path, N_SUBSTRATES),
    ]
    if "DIPY_SPINVERSE_DATA" in os.environ:
        parts += [
            "## Measured voxels: rms error over sigma",
            "Every 4th encoding is left out. CPU-s with the preparation of the acquisition.",
            measured(),
        ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    keep("wall_fields.md", text, complete=len(parts) > 4)
    picture(arguments.path)


if __name__ == "__main__":
    main()
