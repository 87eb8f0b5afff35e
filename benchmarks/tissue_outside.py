"""Coverage and MISFIT flags where tissue is not packed equal cylinders or spheres.

On the sets of `benchmarks.tissue_outside_set`, with Rician noise of SNR 50, known or unknown to
the fit: `PackedCellsModel` with its defaults (powder averages: with an amplitude for each timing,
which such data need; muscle: with a typical radius of 25 um, as its documentation recommends). A
map is covered where its 95 % interval contains the truth. Goals: in voxels without MISFIT the
coverage of each map is at least 90 %, and every kind of tissue with lower coverage is flagged in
at least 80 % of its voxels.

    python -m benchmarks.tissue_outside FILE

Duration: 3 min on 2 cores (--quick: the first 15 substrates, 1 min). Writes
results/tissue_outside.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.command import command, keep
from benchmarks.tables import table
from benchmarks.tissue_outside_set import KINDS, MAPS, SETS, kind_of
from dipy_spinverse import PackedCellsModel, Status

SNR, NOISE_SEED = 50, 1
HELD, TOLD = 0.9, 0.8
OPTIONS = {"main": {}, "powder": {"amplitudes": "timing"}, "muscle": {"typical_radius": 25.0}}
_SHORT = ("S/V", "fraction", "diameter", "permeability", "exchange")


@dataclass(frozen=True, eq=False)
class Result:
    """Results of a fit of N substrates.

    Attributes
    ----------
    flagged : ndarray (N,) of bool
        MISFIT.
    held : ndarray (N, 5) of bool
        Whether the intervals of `MAPS` cover the truth.
    log_ratio : ndarray (N, 5)
        ln of the estimate over the truth.
    milliseconds : float
        CPU time per voxel, with the preparation of the acquisition.
    """

    flagged: np.ndarray
    held: np.ndarray
    log_ratio: np.ndarray
    milliseconds: float

    def of(self, rows: np.ndarray) -> Result:
        """Of some of the substrates."""
        return Result(self.flagged[rows], self.held[rows], self.log_ratio[rows], self.milliseconds)


def evaluate(path: Path, name: str, noise_given: bool, n: int | None = None) -> Result:
    """Fit the first `n` substrates of a set (default: all)."""
    with np.load(path) as file:
        clean = file[f"{name}_signals"][:n]
        truth = np.stack([file[f"{name}_{each}"][:n] for each in MAPS], axis=1)
    sigma = 1 / SNR
    noise = sigma * np.random.default_rng(NOISE_SEED).standard_normal((2, *clean.shape))
    acquisition = SETS[name].acquisition()
    if name == "powder":
        acquisition = replace(acquisition, isotropic=np.ones(len(acquisition), bool))
    started = time.process_time()
    model = PackedCellsModel(acquisition, **OPTIONS[name])
    fit = model.fit(np.hypot(clean + noise[0], noise[1]), sigma=sigma if noise_given else None)
    used = time.process_time() - started
    low, middle, high = (
        np.stack([getattr(fit, each + end) for each in MAPS], axis=1)
        for end in ("_low", "", "_high")
    )
    return Result(
        fit.status == Status.MISFIT,
        (low <= truth) & (truth <= high),
        np.log(np.maximum(middle, 1e-9) / truth),
        1e3 * used / len(clean),
    )


def rows_of(word: str, given: Result, not_given: Result) -> list[str]:
    """One line of the table."""
    cells = [word, str(len(given.flagged))]
    for result in (given, not_given):
        quiet = ~result.flagged
        held = result.held[quiet].mean(axis=0) if quiet.any() else [None] * len(MAPS)
        cells += [_percent(result.flagged.mean())]
        cells += [" ".join("-" if share is None else f"{100 * share:.0f}" for share in held)]
    factor = np.exp(np.median(np.abs(given.log_ratio), axis=0))
    return [*cells, " ".join(f"{each:.2f}" for each in factor)]


def _percent(share):
    return f"{100 * share:.0f} %"


def verdicts(results: dict[bool, Result], kinds: list[str]) -> list[str]:
    """Whether the goals are reached."""
    lines = []
    for given, result in results.items():
        quiet = ~result.flagged
        held = result.held[quiet].mean(axis=0)
        lines.append(
            f"- Noise {'known' if given else 'unknown'}: {quiet.sum()} of {len(quiet)} voxels "
            f"have no flag; coverage in these "
            f"{', '.join(map(_percent, held))} ({', '.join(_SHORT)}). "
            f"Goal {_percent(HELD)} each: {'reached' if held.min() >= HELD else 'missed'}."
        )
        for kind in dict.fromkeys(kinds):
            own = result.of(np.array(kinds) == kind)
            worst = own.held.mean(axis=0)
            if worst.mean() < HELD and own.flagged.mean() < TOLD:
                lines.append(
                    f"  - neither covered nor flagged: {kind} "
                    f"(flagged {_percent(own.flagged.mean())}, "
                    f"mean coverage {_percent(worst.mean())}, least "
                    f"{_SHORT[int(worst.argmin())]} {_percent(worst.min())})"
                )
    return lines


def report(path: Path, n: int | None) -> str:
    """All sets as Markdown."""
    heads = [
        "tissue", "voxels", "MISFIT", "coverage where not flagged, %", "MISFIT, noise unknown",
        "coverage where not flagged, %, noise unknown", "median error factor",
    ]  # fmt: skip
    parts = [
        "# Tissue that is not packed equal cylinders or spheres",
        "`python -m benchmarks.tissue_outside FILE` with the sets of `python -m "
        "benchmarks.tissue_outside_set FILE`: Monte Carlo independent of the package, "
        f"Rician noise of SNR {SNR}. Five numbers are those of {', '.join(_SHORT)}: in how many "
        "of the voxels without MISFIT the 95 % interval covers the truth, and the median factor "
        "between estimate and truth of all voxels (noise known).",
    ]
    with np.load(path) as file:
        present = [name for name in SETS if f"{name}_signals" in file.files]
    for name in present:
        results = {given: evaluate(path, name, given, n) for given in (True, False)}
        count = len(results[True].flagged)
        kinds = [kind_of(k) if name == "main" else name for k in range(count)]
        rows = []
        for kind in list(KINDS) if name == "main" else [name]:
            own = np.array(kinds) == kind
            if own.any():
                rows.append(rows_of(kind, results[True].of(own), results[False].of(own)))
        if name == "main":
            rows.append(rows_of("all", results[True], results[False]))
        cost = max(result.milliseconds for result in results.values())
        parts += [
            f"## {name}", table(heads, rows), "\n".join(verdicts(results, kinds)),
            f"CPU time per voxel, with the preparation of the acquisition: {cost:.0f} ms.",
        ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def main():
    """Print the report and write it to results/."""
    parser = command(__doc__, "the first 15 substrates")
    parser.add_argument("path", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    text = report(arguments.path, len(KINDS) if arguments.quick else None)
    print(text)
    keep("tissue_outside.md", text, complete=not arguments.quick)


if __name__ == "__main__":
    main()
