"""Size and cause of misfits: measured voxels, and tissue outside the family of packed cells.

`PackedCellsModel` fitted to all measurements, with the noise known and, in measured voxels, an
amplitude for each timing. The last column judges the model-free description itself: its error of
left-out measurements over the noise, at best 1.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.misfit_size FILE

with the sets of `benchmarks.tissue_outside_set FILE`. Duration: about 5 CPU-min (--quick: 6 voxels
of each, 1 min). Writes results/misfit_size.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.command import command, keep
from benchmarks.real_data import DATASETS
from benchmarks.tables import machine, table
from benchmarks.tissue_outside_set import SETS
from dipy_spinverse import Acquisition, PackedCellsModel, Status
from dipy_spinverse.packed_cells.gaussian_process import gaussian_process, smooth
from dipy_spinverse.packed_cells.nuisance import polarity_asymmetry, polarity_factors

SNRS, SEED = (50, 150), 1


def row(
    name: str, model: PackedCellsModel, signals: np.ndarray, sigma: np.ndarray
) -> tuple[str, ...]:
    """Statuses, and medians and extremes over voxels, of signals (V, M) with noise (V,)."""
    fit = model.fit(signals, sigma=sigma, n_draws=0)
    asymmetry = polarity_asymmetry(model.pulses, signals, sigma)
    symmetric = signals / polarity_factors(model.pulses, model.pulses, asymmetry)
    smoothing = smooth(gaussian_process(model.pulses, model.labels, model.used), symmetric)
    errors = smoothing.left_out_error[:, model.used] / sigma[:, None]
    values = (
        fit.left_out_ratio, fit.misfit_percent, fit.systematic_error,
        np.sqrt((errors**2).mean(axis=1)),
    )  # fmt: skip
    spread = (f"{np.median(x):.3g} ({x.min():.3g} to {x.max():.3g})" for x in values)
    levels = np.bincount(fit.misfit_level, minlength=3)
    n_misfits = (fit.status == Status.MISFIT).sum()
    return name, str(len(signals)), str(n_misfits), str(levels[1]), str(levels[2]), *spread


def main() -> None:
    """Print the table and write it to results/."""
    parser = command(__doc__, "6 voxels of each")
    parser.add_argument("path", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    n, rows = 6 if arguments.quick else None, []
    for name, load in DATASETS.items():
        voxels = load()
        model = PackedCellsModel(
            voxels.acquisition, free_diffusivity=1e-3 * voxels.free_diffusivity,
            amplitudes="timing",
        )  # fmt: skip
        rows.append(row(name, model, voxels.signals[:n], voxels.sigma[:n]))
        print(rows[-1], flush=True)
    with np.load(arguments.path) as file:
        clean = file["main_signals"][:n]
    acquisition: Acquisition = SETS["main"].acquisition()
    for snr in SNRS:
        noise = np.random.default_rng(SEED).standard_normal((2, *clean.shape)) / snr
        magnitudes, sigma = np.hypot(clean + noise[0], noise[1]), np.full(len(clean), 1 / snr)
        name = f"outside the family, SNR {snr}"
        rows.append(row(name, PackedCellsModel(acquisition), magnitudes, sigma))
        print(rows[-1], flush=True)
    heads = [
        "voxels of", "number", "MISFIT", "level 1", "level 2", "left_out_ratio",
        "misfit, % of S0", "systematic error", "left out by the description / noise",
    ]  # fmt: skip
    text = (
        "# Size and cause of misfits\n\n`python -m benchmarks.misfit_size FILE`, once; medians "
        f"(and extremes) over voxels.\n\n{table(heads, rows)}\n\n{machine()}\n"
    )
    print(text)
    keep("misfit_size.md", text, complete=not arguments.quick)


if __name__ == "__main__":
    main()
