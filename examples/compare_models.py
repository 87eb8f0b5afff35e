"""Spinverse and other models on the same voxels.

Voxels of packed cylinders are simulated on a fine grid by the Bloch-Torrey equation, which none of
the fitted models assumes (Spinverse solves it too, on a coarser grid and without knowing what is
in it). Each model sees three quarters of the measurements and predicts the rest (DIPY's FORCE only
those that it sees). Run it as ``python examples/compare_models.py [folder]``; it writes
``comparison.md`` and ``comparison.png``.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from dipy.core.sphere import HemiSphere, disperse_charges
from dipy.reconst.dti import TensorModel
from dipy.reconst.force import FORCEModel
from dipy.reconst.msdki import MeanDiffusionKurtosisModel

from dipy_spinverse import (
    Acquisition,
    ActiveAxModel,
    IVIMModel,
    NODDIModel,
    SpinverseModel,
    ZCDModel,
    bcc_grid,
    simulate,
)
from dipy_spinverse.report.scenes import plot_glyphs
from dipy_spinverse.substrates.membranes import cylinders

BOX_UM, FINE_CELLS = 20.0, 16
DIFFUSIVITY, FREE = 2.0, 3.0  # um^2/ms
SNR = 50.0
SMALL_DELTA_MS, BIG_DELTAS_MS, TE_MS = 10.0, (20.0, 40.0, 60.0), 80.0
SHELLS = (0.3, 1.0, 2.0, 5.0)  # ms/um^2
N_DIRECTIONS, N_B0 = 12, 3
TENSOR_B = 1.1
FORCE_SIZE = 20_000  # simulations; FORCE's own default is 500,000
# Radius (um), permeability (um/ms), fraction of free water.
VOXELS = (
    (2.0, 0.0, 0.0),
    (3.0, 0.0, 0.0),
    (4.25, 0.0, 0.0),
    (4.25, 0.0, 0.3),
    (4.25, 0.02, 0.0),
    (4.25, 0.1, 0.0),
)


def acquisition():
    """Four shells at each of three diffusion times."""
    rng = np.random.default_rng(1)
    start = HemiSphere(
        theta=np.arccos(rng.uniform(0, 1, N_DIRECTIONS)),
        phi=2 * np.pi * rng.uniform(0, 1, N_DIRECTIONS),
    )
    vertices = disperse_charges(start, 2000)[0].vertices
    directions = np.vstack([np.zeros((N_B0, 3)), *[vertices] * len(SHELLS)])
    b = np.repeat((0.0, *SHELLS), (N_B0, *[N_DIRECTIONS] * len(SHELLS)))
    return Acquisition(
        b=np.tile(b, len(BIG_DELTAS_MS)),
        directions=np.tile(directions, (len(BIG_DELTAS_MS), 1)),
        small_delta=SMALL_DELTA_MS,
        big_delta=np.repeat(BIG_DELTAS_MS, b.size),
        te=TE_MS,
    )


def simulated(measured):
    """Noisy signals (V, M) of `VOXELS`; 2 x 2 cylinders in a periodic box, along z."""
    grid = bcc_grid(cells=[FINE_CELLS, FINE_CELLS, 3], cell_size_um=BOX_UM / FINE_CELLS)
    centres = BOX_UM / 4 * np.array([[i, j, 0] for i in (-1, 1) for j in (-1, 1)])
    of_walls, clean = {}, []
    for radius, permeability, free in VOXELS:
        if (radius, permeability) not in of_walls:
            walls = cylinders(grid, centres, radius, permeability=permeability)
            signals = simulate(measured, grid, walls, diffusivity=DIFFUSIVITY)
            of_walls[radius, permeability] = signals
        tissue = of_walls[radius, permeability]
        clean.append((1 - free) * tissue + free * np.exp(-FREE * measured.b))
    rng = np.random.default_rng(2)
    noise = rng.normal(scale=1 / SNR, size=(2, *np.shape(clean)))
    return np.hypot(clean + noise[0], noise[1])


def split(measured):
    """Masks of the measurements to fit and of those to predict: a quarter of each shell."""
    rng = np.random.default_rng(3)
    left_out = np.zeros(len(measured), dtype=bool)
    for timing in range(len(measured.timings)):
        for b in SHELLS:
            shell = np.flatnonzero((measured.timing_index == timing) & (measured.b == b))
            left_out[rng.choice(shell, N_DIRECTIONS // 4, replace=False)] = True
    return ~left_out, left_out


def compartments(model_class, **options):
    """Entry of `MODELS` for a compartment model."""

    def run(measured, seen, data):
        fit = model_class(measured.subset(seen), **options).fit(data[:, seen], sigma=1 / SNR)
        return fit.predict(measured), fit

    return run


def spinverse(measured, seen, data):
    """Walls on a grid, from the signals alone."""
    fit = SpinverseModel(measured.subset(seen), diffusivity=1e-3 * DIFFUSIVITY).fit(
        data[:, seen], sigma=1 / SNR, free_water=True, n_fields=2
    )
    return fit.predict(measured), fit


def tensor(measured, seen, data):
    """DIPY's tensor of the low shells, which is Gaussian beyond them."""
    low = seen & (measured.b <= TENSOR_B)
    fit = TensorModel(measured.subset(low).to_gtab()).fit(data[:, low])
    S0 = data[:, seen & measured.b0_mask].mean(axis=1)
    return fit.predict(measured.to_gtab(), S0=S0), fit


def mean_kurtosis(measured, seen, data):
    """DIPY's kurtosis of the mean of each shell; it predicts the same in all directions."""
    low = seen & (measured.b <= 2.5)
    fit = MeanDiffusionKurtosisModel(measured.subset(low).to_gtab()).fit(data[:, low])
    S0 = data[:, seen & measured.b0_mask].mean(axis=1)
    decay = 1e3 * fit.msd[:, None] * measured.b
    return S0[:, None] * np.exp(-decay + decay**2 * fit.msk[:, None] / 6), fit


def force(measured, seen, data):
    """DIPY's match with a library of simulations of the measurements that it sees.

    It predicts no others. The match leaves the scale of the signals free.
    """
    model = FORCEModel(measured.subset(seen).to_gtab())
    with tempfile.TemporaryDirectory() as folder:
        model.generate(num_simulations=FORCE_SIZE, output_path=str(Path(folder) / "library.npz"))
    fit = model.fit(data[:, seen])
    matched = np.asarray(fit.predicted_signal, dtype=float)
    scale = (matched * data[:, seen]).sum(axis=1) / (matched**2).sum(axis=1)
    predicted = np.full(data.shape, np.nan)
    predicted[:, seen] = scale[:, None] * matched
    return predicted, fit


MODELS = {
    "Spinverse": spinverse,
    "NODDI": compartments(NODDIModel),
    "ActiveAx": compartments(ActiveAxModel, parallel_diffusivity=1e-3 * DIFFUSIVITY),
    "ZCD": compartments(ZCDModel),
    "IVIM": compartments(IVIMModel),
    "DIPY DTI": tensor,
    "DIPY MSDKI": mean_kurtosis,
    "DIPY FORCE": force,
}
# Maps, whose intervals are drawn, or what is made of several.
RESTRICTED = {
    "Spinverse": "restricted_fraction",
    "NODDI": lambda fit: fit.ndi * (1 - fit.fwf),
    "ActiveAx": "restricted_fraction",
    "ZCD": "restricted_fraction",
    "DIPY FORCE": lambda fit: np.asarray(fit.nd, dtype=float),
}
DIAMETER = {
    "Spinverse": "pore_diameter",
    "ActiveAx": "axon_diameter",
    "ZCD": "axon_diameter",
}


def with_interval(fit, what):
    """Values (V,), and how far the ends of their 95 % intervals are below and above (2, V)."""
    if callable(what):
        return what(fit), None
    values, low, high = (getattr(fit, what + end) for end in ("", "_low", "_high"))
    return values, np.stack([values - low, high - values])


def error(predicted, signals):
    """Root mean square over the noise (V,), of signals that are clear of the Rician floor."""
    clear = signals > 3 / SNR
    squares = np.where(clear, (predicted - signals) ** 2, 0)
    return SNR * np.sqrt(squares.sum(axis=1) / clear.sum(axis=1))


def labels():
    """One line for each voxel."""
    for radius, permeability, free in VOXELS:
        wall = f", kappa {permeability:g}" if permeability else ""
        water = f", {100 * free:.0f} % free" if free else ""
        yield f"r {radius:g}{wall}{water}"


def table(title, rows, number):
    """Lines of a table, one column for each voxel."""
    lines = [f"\n{title}\n", "| | " + " | ".join(labels()) + " |", "| --- " * 7 + "|"]
    for name, values in rows.items():
        cells = ("not available" if np.isnan(v) else f"{v:{number}}" for v in values)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def draw(path, errors, restricted, diameters, example):
    """Left-out error, predictions of one voxel, maps with 95 % intervals against the truth."""
    figure, axes = plt.subplots(2, 2, figsize=(14, 9), layout="constrained")
    place, width = np.arange(len(VOXELS)), 0.8 / len(errors)
    colours = {name: f"C{k}" for k, name in enumerate(errors)}
    known = {name: values for name, values in errors.items() if not np.isnan(values).any()}
    for k, (name, values) in enumerate(known.items()):
        axes[0, 0].bar(place + width * (k - 3), values - 0.5, width, 0.5, label=name)
    axes[0, 0].axhline(1, color="k", linestyle=":")
    axes[0, 0].set(ylabel="left-out error / noise", yscale="log", ylim=(0.5, 40))
    axes[0, 0].legend(fontsize=8, ncols=4)
    b, along, signals, predictions = example
    order = np.lexsort((along, b))
    axes[0, 1].plot(signals[order], "ko", markersize=4, label="left out")
    for name, values in predictions.items():
        style = "-" if name == "Spinverse" else "--"
        if name in known:
            axes[0, 1].plot(values[order], style, color=colours[name], linewidth=1, label=name)
    axes[0, 1].set(
        ylabel="signal", xlabel=f"left-out measurement, by b and angle ({list(labels())[2]})"
    )
    axes[0, 1].set_ylim(0, 1.1)
    axes[0, 1].legend(fontsize=8, ncols=2)
    for axis, rows, label in (
        (axes[1, 0], restricted, "fraction inside of cylinders"),
        (axes[1, 1], diameters, "diameter (um)"),
    ):
        for k, (name, (values, interval)) in enumerate(rows.items()):
            if name == "truth":
                axis.hlines(values, place - 0.36, place + 0.36, color="k", label=name)
                continue
            offset, colour = 0.13 * (k - len(rows) / 2), colours.get(name, "k")
            axis.errorbar(
                place + offset, values, interval, fmt="o", capsize=2, color=colour, label=name
            )
        axis.set_ylabel(label)
        axis.legend(fontsize=8)
    axes[1, 1].set_ylim(0, 20)
    for axis in (axes[0, 0], axes[1, 0], axes[1, 1]):
        axis.set_xticks(place, [label.replace(", ", "\n") for label in labels()], fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "comparison_output")
    folder.mkdir(parents=True, exist_ok=True)
    measured = acquisition()
    data = simulated(measured)
    seen, unseen = split(measured)
    predictions, fits, seconds = {}, {}, {}
    for name, run in MODELS.items():
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=RuntimeWarning)
            found = run(measured, seen, data)
        seconds[name] = (time.process_time() - start) / len(data)
        predictions[name], fits[name] = found
        print(f"{name}: {seconds[name]:.3g} CPU-s per voxel", flush=True)
    radius, _, free = np.array(VOXELS).T
    inside = (1 - free) * 4 * np.pi * radius**2 / BOX_UM**2
    restricted, diameters = (
        {"truth": (true, None)} | {k: with_interval(fits[k], what) for k, what in maps.items()}
        for true, maps in ((inside, RESTRICTED), (2 * radius, DIAMETER))
    )
    fitted, errors = (
        {name: error(p[:, part], data[:, part]) for name, p in predictions.items()}
        for part in (seen, unseen)
    )
    along = np.abs(measured.directions[unseen, 2])
    of_voxel = {name: p[2, unseen] for name, p in predictions.items()}
    example = (measured.b[unseen], along, data[2, unseen], of_voxel)
    draw(folder / "comparison.png", errors, restricted, diameters, example)
    glyphs = plot_glyphs(fits["ActiveAx"], view="xz", size=(900, 200), off_screen=True)
    glyphs.screenshot(folder / "glyphs.png")
    lines = [
        f"{measured}; SNR {SNR:g}; {platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS="
        f"{os.environ.get('OMP_NUM_THREADS', 'not set')}.",
        *table("Root mean square error of left-out signals, over the noise", errors, ".2f"),
        *table("The same of the signals that were fitted", fitted, ".2f"),
        *(
            line
            for title, rows, number in (
                ("Fraction of the signal inside of cylinders", restricted, ".2f"),
                ("Diameter, um", diameters, ".1f"),
            )
            for line in table(title, {name: row[0] for name, row in rows.items()}, number)
        ),
        "\nCPU seconds per voxel\n",
        "| " + " | ".join(seconds) + " |",
        "| --- " * len(seconds) + "|",
        "| " + " | ".join(f"{s:.3g}" for s in seconds.values()) + " |",
    ]
    print(*lines, sep="\n")
    (folder / "comparison.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
