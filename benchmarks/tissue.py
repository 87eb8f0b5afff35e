"""Maps of tissue against their truths: errors, intervals, residuals.

On the set of `benchmarks.tissue_testset`, simulated by an independent Monte Carlo, for both
gradient systems, with Rician noise of SNR 50 and 30. Each method of `METHODS` gives an `Estimate`:
packed cells as by default, with both diffusivities unknown, and with the true one specified.

    python -m benchmarks.tissue FILE

Estimates are kept next to the file (``FILE`` without its suffix, then ``_estimates/``): an
interrupted run resumes, and the report is written again without fitting again (``--again`` fits).

Duration: about 5 min on 2 cores (--quick, which simulates a small set: 2 min). Writes
results/tissue.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.command import command, keep
from benchmarks.monte_carlo import DIFFUSIVITY
from benchmarks.tissue_testset import (
    SHAPES,
    SYSTEMS,
    TissueSet,
    load_testset,
    quick_testset,
)
from dipy_spinverse import Acquisition, PackedCellsModel

SNRS = (50, 30)
MAPS = (
    "surface_to_volume",
    "restricted_fraction",
    "pore_diameter",
    "wall_permeability",
    "exchange_time",
)
NOISE_SEED = 1
# Substrates used during development: the report also states results without them.
N_SEEN = 40
_N_DRAWS = 400
_GAMMA = 0.26752218744  # rad/(ms um) per T/m
_CHUNK = 30


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimates of a method for V voxels.

    Attributes
    ----------
    median, low, high : ndarray (V, 5)
        Of `MAPS`: posterior median, limits of the 95 % interval.
    axis : ndarray (V, 3)
        Of cylinders.
    chi_square : ndarray (V,)
        Per degree of freedom.
    seconds : ndarray (V,)
        CPU time per voxel.
    """

    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    axis: np.ndarray
    chi_square: np.ndarray
    seconds: np.ndarray


def packed_cells(
    acquisition: Acquisition,
    signals: np.ndarray,
    sigma: float,
    diffusivity: float | None = None,
) -> Estimate:
    """The package's posterior of packed cylinders and spheres."""
    started = time.process_time()
    mm2_per_s = None if diffusivity is None else 1e-3 * diffusivity
    model = PackedCellsModel(acquisition, diffusivity=mm2_per_s)
    posterior = model.posterior(signals, sigma, _N_DRAWS)
    seconds = (time.process_time() - started) / len(signals)
    draws = np.stack([posterior.maps[name] for name in MAPS], axis=-1)
    low, median, high = np.quantile(draws, [0.025, 0.5, 0.975], axis=0)
    return Estimate(
        median,
        low,
        high,
        posterior.mean("wall_orientation"),
        posterior.chi_square / posterior.degrees_of_freedom,
        np.full(len(signals), seconds),
    )


def diffusivity_given(acquisition: Acquisition, signals: np.ndarray, sigma: float) -> Estimate:
    """The same where the diffusivity of the water is known."""
    return packed_cells(acquisition, signals, sigma, DIFFUSIVITY)


METHODS: dict[str, Callable[[Acquisition, np.ndarray, float], Estimate]] = {
    "packed cells": packed_cells,
    "packed cells, diffusivity known": diffusivity_given,
}


def resolution_limit(acquisition: Acquisition, snr: float, fraction: np.ndarray) -> np.ndarray:
    """Smallest diameter of parallel cylinders that the protocol distinguishes from zero, um.

    d = (768/7 D s / (gamma^2 delta G^2))^(1/4) with s = 1.64 / (snr sqrt(n) f): the decay across
    impermeable cylinders, the fraction f of the signal, exceeds the noise of the n
    measurements of a shell at the 5 % level; best shell of the acquisition [1]_.

    .. [1] Nilsson, Lasic, Drobnjak, Topgaard and Westin, NMR Biomed. 30 (2017) e3711,
       https://doi.org/10.1002/nbm.3711
    """
    rows = np.flatnonzero(~acquisition.b0_mask)
    shell = np.stack([acquisition.timing_index[rows], acquisition.b[rows].round(3)], axis=1)
    index, counts = np.unique(shell, axis=0, return_inverse=True, return_counts=True)[1:]
    gradient = _GAMMA * acquisition.gradient_t_per_m[rows]
    strength = gradient**2 * acquisition.small_delta[rows] * np.sqrt(counts[index.ravel()])
    noise = 1.64 / (snr * np.asarray(fraction))
    return (768 / 7 * DIFFUSIVITY * noise / strength.max()) ** 0.25


def estimates(path: Path, tissue: TissueSet, label: str, fit, again: bool) -> Estimate:
    """Estimates of all substrates, chunk by chunk from files where they are already there."""
    folder = path.with_suffix("").with_name(path.stem + "_estimates")
    folder.mkdir(exist_ok=True)
    parts = []
    for first in range(0, len(tissue.signals), _CHUNK):
        signals = tissue.signals[first : first + _CHUNK]
        kept = folder / f"{label}_{first}_{len(signals)}.npz"
        if again or not kept.exists():
            np.savez(kept, **asdict(fit(tissue.acquisition, signals, tissue.sigma)))
        with np.load(kept) as file:
            parts.append(dict(file))
    return Estimate(**{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def summary(tissue: TissueSet, estimate: Estimate, snr: float, use: np.ndarray) -> dict[str, str]:
    """Figures over the substrates `use` (N,) of bool, as text."""
    truth = np.stack([tissue.truths[name] for name in MAPS], axis=1)[use].astype(float)
    median = estimate.median[use]
    relative = np.abs(median / truth - 1)
    factor = np.exp(np.median(np.abs(np.log(np.maximum(median, 1e-9) / truth)), axis=0))
    fraction = tissue.truths["restricted_fraction"]
    limit = resolution_limit(tissue.acquisition, snr, fraction)[use]
    wide = 2 * tissue.truths["radius"][use] > limit
    covered = (estimate.low[use] <= truth) & (truth <= estimate.high[use])
    oriented = use & (tissue.truths["shape"] == 0)
    cosine = np.abs((estimate.axis * tissue.truths["axis"]).sum(axis=1))[oriented]
    chi = estimate.chi_square[use]
    low, middle, high = np.quantile(chi, [0.05, 0.5, 0.95])
    return {
        "substrates": f"{use.sum()}",
        "S/V, %": f"{100 * np.median(relative[:, 0]):.1f}",
        "fraction": f"{np.median(np.abs(median - truth)[:, 1]):.3f}",
        "diameter above the limit, % (n)": _percent(relative[wide, 2]) + f" ({wide.sum()})",
        "diameter, all, %": _percent(relative[:, 2]),
        "permeability, factor": f"{factor[3]:.2f}",
        "exchange time, factor": f"{factor[4]:.2f}",
        "axis of cylinders, degrees": _degrees(cosine),
        **{f"covered: {MAPS[k]}, %": f"{100 * covered[:, k].mean():.0f}" for k in range(5)},
        "chi-square per dof, median (5 to 95 %)": f"{middle:.2f} ({low:.2f} to {high:.2f})",
        "CPU-s per voxel": f"{estimate.seconds[use].mean():.1f}",
    }


def _percent(errors):
    return f"{100 * np.median(errors):.1f}" if len(errors) else "-"


def _degrees(cosine):
    return f"{np.degrees(np.arccos(np.clip(np.median(cosine), 0, 1))):.1f}" if len(cosine) else "-"


_GOALS = {
    "S/V, %": "<= 10",
    "fraction": "<= 0.04",
    "diameter above the limit, % (n)": "<= 15",
    "permeability, factor": "<= 1.4",
    **{f"covered: {name}, %": "90 to 98" for name in MAPS},
    "chi-square per dof, median (5 to 95 %)": "0.9 to 1.1",
}


def report(path: Path, methods, systems, snrs=SNRS, again: bool = False) -> str:
    """The whole comparison as Markdown."""
    lines = [
        "# Tissue: maps against truths",
        "",
        f"`python -m benchmarks.tissue FILE --systems {' '.join(systems)}`, with the set of "
        "`python -m benchmarks.tissue_testset FILE`: Monte Carlo signals independent of "
        "the package. Medians of errors "
        "of posterior medians, and in how many substrates the 95 % "
        "interval covers the truth. Goals apply to 300 mT/m, SNR 50. The resolution limit is that "
        "of Nilsson et al. 2017 (see `resolution_limit`) at the substrate's fraction.",
        "",
    ]
    widths = {}
    for name in methods:
        for system in systems:
            columns = {}
            for snr in snrs:
                tissue = load_testset(path, system, snr, NOISE_SEED)
                label = f"{name.replace(' ', '_')}_{system}_{snr}"
                estimate = estimates(path, tissue, label, METHODS[name], again)
                widths[name, f"{system} mT/m, SNR {snr}"] = estimate.high - estimate.low
                shape = tissue.truths["shape"]
                everything = np.ones(len(shape), dtype=bool)
                unseen = np.arange(len(shape)) >= N_SEEN
                groups = {"all": everything}
                if unseen.any():
                    groups["unseen"] = unseen
                if snr == snrs[0]:
                    groups |= {word: shape == k for k, word in enumerate(SHAPES)}
                for word, use in groups.items():
                    if use.any():
                        column = f"SNR {snr}, {word}"
                        columns[column] = summary(tissue, estimate, snr, use)
            limit = ", ".join(
                f"{resolution_limit(tissue.acquisition, snr, np.array(0.5)):.1f} um at SNR {snr}"
                for snr in snrs
            )
            lines += [f"## {name}, {system} mT/m", "", f"Limit at half restricted: {limit}.", ""]
            lines += _table(columns) + [""]
    lines += _wider(widths)
    lines.append(
        f'"unseen": without the first {N_SEEN} substrates, on which the method '
        "was developed, and the priors and the variance of the samples were chosen."
    )
    return "\n".join(lines) + "\n"


def _wider(widths):
    """By how much intervals grow where the diffusivities are unknown, as Markdown."""
    unknown, known = METHODS
    scans = [scan for name, scan in widths if name == unknown and (known, scan) in widths]
    if not scans:
        return []
    lines = ["## Width of intervals, diffusivities unknown over known (median)", ""]
    lines += ["| | " + " | ".join(MAPS) + " |", "|---" * (len(MAPS) + 1) + "|"]
    for scan in scans:
        ratio = np.median(widths[unknown, scan] / widths[known, scan], axis=0)
        lines.append(f"| {scan} | " + " | ".join(f"{each:.2f}" for each in ratio) + " |")
    return [*lines, ""]


def _table(columns):
    rows = list(next(iter(columns.values())))
    lines = ["| | goal | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        values = " | ".join(column[row] for column in columns.values())
        lines.append(f"| {row} | {_GOALS.get(row, '')} | {values} |")
    return lines


def main():
    """Print the report and write it to results/."""
    parser = command(__doc__, "a few substrates, 300 mT/m, SNR 50")
    parser.add_argument("path", type=Path, nargs="?", metavar="FILE")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        with quick_testset() as path:
            print(report(path, arguments.methods, SYSTEMS[:1], SNRS[:1]))
        return
    if arguments.path is None:
        parser.error("give the FILE of benchmarks.tissue_testset, or --quick")
    text = report(arguments.path, arguments.methods, arguments.systems, again=arguments.again)
    print(text)
    keep("tissue.md", text, complete=True)


if __name__ == "__main__":
    main()
