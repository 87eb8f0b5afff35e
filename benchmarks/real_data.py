"""Measured voxels: how well SpinverseModel, DTI and stick + zeppelin + ball explain them.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.real_data

fits 24 white-matter voxels of a cat spinal cord and the 12 voxels of the ISBI 2015 challenge.
`datasets` says how voxels are chosen and signals prepared, `baselines` what the other models fit.

Duration: about 2 hours on 2 cores (--quick: 3 min). Writes results/real_data.md, and every fitted
voxel to a .jsonl file beside it: an interrupted run goes on from there (delete it after a change
of the package).
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.baselines import fit_dti, fit_stick_zeppelin_ball
from benchmarks.command import RESULTS, command
from benchmarks.datasets import TENSOR_B, Voxels, left_out, load_duval_cat, load_isbi2015
from benchmarks.tables import table
from dipy_spinverse import SpinverseModel, bcc_grid
from dipy_spinverse.inversion import DEFAULT_CURRICULUM

DATASETS = {
    "cat": load_duval_cat,
    "genu": lambda: load_isbi2015("genu"),
    "fornix": lambda: load_isbi2015("fornix"),
}
MODELS = ("spinverse", "dti", "stick-zeppelin-ball")
# The cat's gradients (q to 1.8 rad/um) need small cells, and are blind to the axis of the cord,
# along which the box may be short.
SPINVERSE = {
    "cat": {"cells": (6, 6, 3), "cell_size_um": 2.0, "free_water": True},
    "genu": {"cells": (4, 4, 4), "cell_size_um": 5.0, "free_water": True},
    "fornix": {"cells": (4, 4, 4), "cell_size_um": 5.0, "free_water": True},
}
MAPS = (
    "pore_diameter", "restricted_fraction", "surface_to_volume", "wall_permeability",
    "exchange_time", "free_water_fraction",
)  # fmt: skip
CORRELATIONS = (
    ("spinverse", "pore_diameter", "axon_diameter"),
    ("spinverse", "pore_diameter", "axon_diameter_by_volume"),
    ("spinverse", "restricted_fraction", "restricted_fraction"),
    ("stick-zeppelin-ball", "stick_fraction", "restricted_fraction"),
    ("stick-zeppelin-ball", "stick_fraction", "axon_diameter"),
    ("dti", "md", "restricted_fraction"),
    ("dti", "md", "axon_diameter"),
)


def fit_spinverse(voxels: Voxels, number: int, fitted: np.ndarray):
    """SpinverseModel with its defaults; see `fit_voxel`.

    The diffusivity is the median over the dataset of the first eigenvalue of the tensor, that of
    free water is the same as for the ball of the stick + zeppelin + ball model, the noise that
    between opposite directions.
    """
    settings = SPINVERSE[voxels.name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = SpinverseModel(
            voxels.acquisition.subset(fitted),
            grid=bcc_grid(settings["cells"], settings["cell_size_um"]),
            diffusivity=1e-3 * float(np.median(voxels.diffusivity)),
            free_diffusivity=1e-3 * voxels.free_diffusivity,
            # Given, so that packed cells, with tables for each of the many timings, are left out.
            curriculum=DEFAULT_CURRICULUM,
        )
    fit = model.fit(
        voxels.signals[number, fitted],
        sigma=voxels.repeatability[number],
        free_water=settings["free_water"],
    )
    estimates = {name: float(getattr(fit, name)) for name in MAPS}
    estimates |= {f"{name}_std": float(getattr(fit, f"{name}_std")) for name in MAPS}
    estimates["status"] = int(fit.status)
    return fit.predict(gtab=voxels.acquisition), estimates


def fit_voxel(voxels: Voxels, number: int, model: str) -> dict:
    """One line of the results: a model fitted to what is not left out of one voxel.

    DTI is fitted to b < 1.5 ms/um^2, the others to all b.
    """
    measured, usable = voxels.signals[number], voxels.usable[number]
    out, low = left_out(voxels.acquisition), voxels.acquisition.b < TENSOR_B
    fitted = usable & ~out
    start = time.perf_counter()
    if model == "spinverse":
        predicted, estimates = fit_spinverse(voxels, number, fitted)
    elif model == "dti":
        predicted, estimates = fit_dti(voxels.acquisition, measured, fitted & low)
    else:
        predicted, estimates = fit_stick_zeppelin_ball(
            voxels.acquisition,
            measured,
            fitted,
            orientation=voxels.orientation[number],
            free_diffusivity=voxels.free_diffusivity,
        )
    seconds = time.perf_counter() - start

    def rms(rows):
        return float(np.sqrt(np.mean((predicted - measured)[rows] ** 2)))

    return {
        "dataset": voxels.name,
        "voxel": voxels.labels[number],
        "model": model,
        "settings": settings_of(voxels.name, model),
        "sigma": float(voxels.sigma[number]),
        "repeatability": float(voxels.repeatability[number]),
        "fitted": rms(fitted),
        "left_out": rms(usable & out),
        "fitted_low_b": rms(fitted & low),
        "left_out_low_b": rms(usable & out & low),
        "seconds": seconds,
        "estimates": estimates,
    }


def settings_of(dataset: str, model: str) -> str:
    """What a stored result must agree in to be used again."""
    return json.dumps(SPINVERSE[dataset], sort_keys=True) if model == "spinverse" else ""


def stored_results(path: Path) -> dict:
    """Lines of an earlier run, by dataset, voxel and model; those of other settings left out."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        (line["dataset"], line["voxel"], line["model"]): line
        for line in lines
        if line["settings"] == settings_of(line["dataset"], line["model"])
    }


def fit_all(counts: dict[str, int | None], models, path: Path) -> tuple[dict, dict]:
    """Fit so many voxels (None: all) that are not stored in `path` yet; data and all results."""
    data = {name: DATASETS[name]() for name in counts}
    results = stored_results(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for voxels in data.values():
        for number, label in enumerate(voxels.labels[: counts[voxels.name]]):
            for model in models:
                key = (voxels.name, label, model)
                if key in results:
                    continue
                results[key] = fit_voxel(voxels, number, model)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(results[key]) + "\n")
                line = results[key]
                ratio = line["left_out"] / line["sigma"]
                print(*key, f"{ratio:.2f} sigma", f"{line['seconds']:.1f} s", flush=True)
    return data, results


def of_model(results: dict, voxels: Voxels, model: str) -> list[dict]:
    """The lines of a model, in the order of the voxels; empty where it is not complete."""
    lines = [results.get((voxels.name, label, model)) for label in voxels.labels]
    return [] if None in lines else lines


def noise_table(data: dict) -> str:
    """What there is to explain."""
    rows = []
    for voxels in data.values():
        sigma, repeatability = np.median(voxels.sigma), np.median(voxels.repeatability)
        rows.append((
            voxels.name,
            len(voxels.labels),
            len(voxels.acquisition),
            f"{voxels.usable.mean():.1%}",
            f"{sigma:.2%}",
            f"{repeatability:.2%}",
            f"{np.median(voxels.diffusivity):.2f}",
            f"{voxels.free_diffusivity:.2f}",
        ))  # fmt: skip
    return table(
        ("data", "voxels", "measurements", "clear of the floor", "sigma / S0",
         "opposite directions / S0", "D, um^2/ms", "D_free, um^2/ms"), rows,
    )  # fmt: skip


RATIOS = ("fitted", "left_out", "fitted_low_b", "left_out_low_b")
HEADER = ("fitted", "left out", "fitted, low b", "left out, low b", "left out / repeatability",
          "seconds")  # fmt: skip


def ratios(lines) -> list[str]:
    """Medians over lines of the residual rms over sigma, and of the time."""
    values = [np.median([line[name] / line["sigma"] for line in lines]) for name in RATIOS]
    values.append(np.median([line["left_out"] / line["repeatability"] for line in lines]))
    return [f"{value:.2f}" for value in values] + [
        f"{np.median([line['seconds'] for line in lines]):.2g}"
    ]


def summary_table(data: dict, results: dict) -> str:
    """Medians over the voxels of a dataset."""
    rows = [
        (voxels.name, model, *ratios(lines))
        for voxels in data.values()
        for model in MODELS
        if (lines := of_model(results, voxels, model))
    ]
    return table(("data", "model", *HEADER), rows)


def voxel_table(data: dict, results: dict) -> str:
    """Every voxel."""
    rows = [
        (voxels.name, label, model, *ratios([results[voxels.name, label, model]]),
         ", ".join(f"{name} {value:.3g}"
                   for name, value in results[voxels.name, label, model]["estimates"].items()
                   if not name.endswith("_std")))
        for voxels in data.values()
        for label in voxels.labels
        for model in MODELS
        if (voxels.name, label, model) in results
    ]  # fmt: skip
    return table(("data", "voxel", "model", *HEADER, "estimates"), rows)


def correlation_table(voxels: Voxels, results: dict, n_resamples: int = 2000) -> str:
    """Rank correlations with histology, with 95 % percentile intervals over resampled voxels."""
    random = np.random.default_rng(0)
    rows = []
    for model, estimate, truth in CORRELATIONS:
        lines = of_model(results, voxels, model)
        if not lines:
            continue
        found = np.array([line["estimates"][estimate] for line in lines])
        known = voxels.histology[truth]
        resampled = random.integers(len(known), size=(n_resamples, len(known)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant resamples
            rho = [spearmanr(found[rows_], known[rows_]).statistic for rows_ in resampled]
            centre = spearmanr(found, known).statistic
        low, high = np.nanpercentile(rho, [2.5, 97.5])
        spread = " to ".join(f"{value:.3g}" for value in (found.min(), found.max()))
        known_spread = " to ".join(f"{value:.3g}" for value in (known.min(), known.max()))
        rows.append((model, estimate, spread, truth, known_spread, f"{centre:+.2f}",
                     f"{low:+.2f} to {high:+.2f}"))  # fmt: skip
    return table(
        ("model", "estimate", "range", "histology", "range", "Spearman", "95 % interval"), rows
    )


def report(data: dict, results: dict) -> str:
    """The results in Markdown."""
    settings = "\n".join(f"- {name}: {SPINVERSE[name]}" for name in data)
    parts = [
        "# Measured voxels",
        "Made by `python -m benchmarks.real_data` on "
        f"{platform.processor() or platform.machine()}. Figures are the rms of measured minus "
        "predicted signals over sigma, the robust standard deviation of repeated b0. Opposite "
        "directions differ by more than sigma, and no model whose signals are symmetric predicts "
        "single measurements better than to this repeatability. Left out of all fits: every 4th "
        "encoding (opposite directions together). Low b: below "
        f"{TENSOR_B} ms/um^2, all that DTI is fitted to.",
        noise_table(data),
        "## Medians over voxels",
        summary_table(data, results),
    ]
    if "cat" in data:
        parts += ["## Against histology (cat)", correlation_table(data["cat"], results)]
    parts += ["SpinverseModel:\n\n" + settings, "## Voxels", voxel_table(data, results)]
    return "\n\n".join(parts) + "\n"


def main():
    """Print the report and write it to results/."""
    parser = command(__doc__, "the first voxel of the cat")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "real_data.md", help="Markdown file to write"
    )
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            fit_all({"cat": 1}, MODELS, Path(folder) / "voxels.jsonl")
        return
    data, results = fit_all(
        dict.fromkeys(arguments.datasets), arguments.models, arguments.out.with_suffix(".jsonl")
    )
    text = report(data, results)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
