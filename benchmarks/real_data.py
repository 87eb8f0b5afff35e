"""Measured voxels: how well packed cells and other models explain what they have not seen.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.real_data

fits 24 white-matter voxels of a cat spinal cord and the 12 voxels of the ISBI 2015 challenge.
`datasets` describes how voxels are chosen and signals prepared, `measured_models` how models are
fitted. Wall fields take about a minute for each voxel: they are fitted where asked for (``--models
"wall fields"``), and the figures of an earlier run stay in results/real_data_walls.md.

Duration: about 25 CPU-min (--quick: 1 min). Writes results/real_data.md, and every fitted voxel to
a .jsonl file next to it: an interrupted run resumes from it (delete it after a change of the
package).
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

from benchmarks.command import RESULTS, command
from benchmarks.datasets import TENSOR_B, Voxels, left_out, load_duval_cat, load_isbi2015
from benchmarks.measured_models import (
    CAT_ALONE,
    LEAST_B,
    MAPS,
    MODELS,
    PACKED_CELLS,
    QUICK_TO_FIT,
    WALL_FIELDS,
)
from benchmarks.tables import table

DATASETS = {
    "cat": load_duval_cat,
    "genu": lambda: load_isbi2015("genu"),
    "fornix": lambda: load_isbi2015("fornix"),
}
# Left-out error over sigma that was aimed at: b > 0.1, all.
GOALS = {"cat": (2.0, 2.8), "genu": (None, 2.25), "fornix": (None, 1.5)}
CORRELATIONS = (
    ("packed cells", "pore_diameter", "axon_diameter"),
    ("packed cells", "pore_diameter", "axon_diameter_by_volume"),
    ("packed cells", "restricted_fraction", "restricted_fraction"),
    ("wall fields", "pore_diameter", "axon_diameter_by_volume"),
    ("wall fields", "restricted_fraction", "restricted_fraction"),
    ("two-site exchange", "pore_diameter", "axon_diameter"),
    ("two-site exchange", "pore_diameter", "axon_diameter_by_volume"),
    ("two-site exchange", "restricted_fraction", "restricted_fraction"),
    ("ActiveAx", "axon_diameter", "axon_diameter"),
    ("ActiveAx", "axon_diameter", "axon_diameter_by_volume"),
    ("ActiveAx", "restricted_fraction", "restricted_fraction"),
    ("NODDI", "ndi", "restricted_fraction"),
    ("stick + zeppelin + ball", "stick_fraction", "restricted_fraction"),
    ("stick + zeppelin + ball", "stick_fraction", "axon_diameter"),
    ("DTI", "md", "restricted_fraction"),
    ("DTI", "md", "axon_diameter"),
)


def fit_voxel(voxels: Voxels, number: int, model: str) -> dict:
    """One line of the results: a model fitted to one voxel without the left-out measurements.

    DTI is fitted to b < 1.5 ms/um^2, the others to all b.
    """
    measured, usable = voxels.signals[number], voxels.usable[number]
    b, out = voxels.acquisition.b, left_out(voxels.acquisition)
    fitted = usable & ~out
    start = time.process_time()
    predicted, estimates = MODELS[model](voxels, number, fitted)
    seconds = time.process_time() - start

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
        "left_out_weighted": rms(usable & out & (b > LEAST_B)),
        "left_out_low_b": rms(usable & out & (b < TENSOR_B)),
        "seconds": seconds,
        "estimates": estimates,
    }


def settings_of(dataset: str, model: str) -> str:
    """What a stored result must agree in to be used again."""
    settings = {"packed cells": PACKED_CELLS, "wall fields": WALL_FIELDS}.get(model)
    return json.dumps(settings[dataset], sort_keys=True) if settings else ""


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
        for model in models:
            if model in CAT_ALONE and voxels.name != "cat":
                continue
            for number, label in enumerate(voxels.labels[: counts[voxels.name]]):
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
    """Noise and repeatability of the data."""
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


RATIOS = ("fitted", "left_out", "left_out_weighted", "left_out_low_b")
HEADER = ("fitted", "left out", f"left out, b > {LEAST_B}", "left out, low b",
          "left out / repeatability", "CPU-s")  # fmt: skip


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


def goals(data: dict, results: dict) -> str:
    """Whether packed cells reach the goals."""
    lines = []
    for voxels in data.values():
        found = of_model(results, voxels, "packed cells")
        kinds = (("left_out_weighted", f"b > {LEAST_B}"), ("left_out", "all b"))
        for (name, word), goal in zip(kinds, GOALS[voxels.name], strict=True):
            if found and goal is not None:
                value = np.median([line[name] / line["sigma"] for line in found])
                verdict = "reached" if value <= goal else "missed"
                lines.append(
                    f"- {voxels.name}, packed cells, left out, {word}: {value:.2f}, "
                    f"goal {goal:g}: {verdict}"
                )
    return "\n".join(lines)


def voxel_table(data: dict, results: dict) -> str:
    """Every voxel as packed cells have it."""
    rows = []
    for voxels in data.values():
        for line in of_model(results, voxels, "packed cells"):
            found = line["estimates"]
            spread = ", ".join(f"{name} {found[name]:.3g} ({found[name + '_low']:.3g} to "
                               f"{found[name + '_high']:.3g})" for name in MAPS)  # fmt: skip
            rows.append(
                (
                    voxels.name,
                    line["voxel"],
                    line["model"],
                    *ratios([line]),
                    found["status"],
                    spread,
                )
            )
    return table(("data", "voxel", "model", *HEADER, "status", "estimates (95 % intervals)"), rows)


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
    settings = "\n".join(f"- {name}: {PACKED_CELLS[name] or 'defaults'}" for name in data)
    parts = [
        "# Measured voxels",
        "Made by `python -m benchmarks.real_data` on "
        f"{platform.processor() or platform.machine()}. Figures are the rms of measured minus "
        "predicted signals over sigma, the robust standard deviation of repeated b0. Opposite "
        "directions differ by more than sigma, and no model whose signals are symmetric predicts "
        "single measurements better than to this repeatability; packed cells also estimate the "
        "polarity asymmetry, and a fast component gone at b = 0.1 ms/um^2. Left out of all "
        "fits: every 4th encoding (opposite directions together). Low b: below "
        f"{TENSOR_B} ms/um^2, all that DTI is fitted to. Every model has an amplitude for each "
        "timing. Fitted to b > 0.1: without b0 and weaker weightings, where the cat's signals "
        "deviate from any curve in the same way in all voxels (an artefact of unknown cause). "
        "Gaussians: non-negative mixtures, along each of the cat's two axes, elsewhere of tensors "
        "about the first axis of DTI; with terms of the scan: and those terms as estimated by "
        "packed cells; the floor: smoothing splines along each axis, elsewhere "
        "harmonics of each shell, without any physics.",
        noise_table(data),
        "## Medians over voxels",
        summary_table(data, results),
        goals(data, results),
    ]
    if "cat" in data:
        parts += ["## Against histology (cat)", correlation_table(data["cat"], results)]
    parts += [
        "PackedCellsModel, with an amplitude for each timing:\n\n" + settings,
        "## Voxels",
        voxel_table(data, results),
    ]
    return "\n\n".join(parts) + "\n"


def main():
    """Print the report and write it to results/."""
    parser = command(__doc__, "the first voxel of the cat")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "real_data.md", help="Markdown file to write"
    )
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=QUICK_TO_FIT)
    arguments = parser.parse_args()
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            fit_all({"cat": 1}, QUICK_TO_FIT, Path(folder) / "voxels.jsonl")
        return
    data, results = fit_all(
        dict.fromkeys(arguments.datasets), arguments.models, arguments.out.with_suffix(".jsonl")
    )
    text = report(data, results)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
