"""Error of the emulator of packed cells on simulations outside its training set.

- held-out packings: samples of `benchmarks.make_emulator` in FOLDER not used in training;
  each is a single packing of a few bodies, so that the scatter between packings is part of the
  difference
- correlation: of their errors at two encodings, which the likelihood takes into account
- emulator error: the mean of 16 packings of 16 cylinders of equal parameters, where scatter
  averages out, at 24 tissues
- Monte Carlo: the cylinders and spheres of `benchmarks.tissue_testset` in TESTSET, random packings
  of a hundred bodies; independent of the package

    python -m benchmarks.emulator FOLDER TESTSET

Duration: 12 CPU-min (--quick: 1 min). Writes results/emulator.md.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.command import command, keep
from benchmarks.make_emulator import FIRST_TIGHT, between, held_out, read_draws, scattered
from benchmarks.periodic_cylinders import (
    matrices_of,
    pulse_signals,
    random_mesh,
    reduced,
)
from benchmarks.tables import machine, table
from benchmarks.tissue_testset import acquisition
from dipy_spinverse.packed_cells.emulator import Encodings, emulated_signals, emulator_error
from dipy_spinverse.packed_cells.emulator.closed_form import Numbers, closed_form
from dipy_spinverse.packed_cells.emulator.signals import error_terms, load_network
from dipy_spinverse.packed_cells.emulator_errors import B_LENGTH, TIME_LENGTH

_FRACTIONS = (0.05, 0.3, 0.5, 0.65, 0.81)
_PERMEABILITIES = (-1, 0.01, 0.1, 1, 30)
_TIME_APART, _B_APART = (0, 0.15, 0.4, 0.8, 1.4), (0, 0.1, 0.4, 0.8, 1.5, 3)
_N_PAIRS, _ALONG, _LEAST_B, _LEAST_ERROR = 600, 0.25, 0.05, 5e-4
_N_TISSUES, _N_PACKINGS, _N_CYLINDERS = 24, 16, 16
_DIFFUSIVITY = 2.0  # of the test set


def size(errors: np.ndarray) -> str:
    """Root mean square and 95th percentile, % of S0."""
    if not errors.size:
        return "-"
    rms, tail = np.sqrt((errors**2).mean()), np.quantile(np.abs(errors), 0.95)
    return f"{100 * rms:.2f} / {100 * tail:.2f}"


def left_out_table(shape: str, folder: Path) -> str:
    """By fraction (rows) and kappa R / D (columns)."""
    draws, numbers, signals = read_draws(shape, folder)
    held = held_out(draws)
    chosen = Numbers(*(number[held] for number in numbers))
    form = closed_form(shape, chosen)
    errors = form.signals(load_network(shape)(form.inputs)) - signals[held]
    pools = form.signals(0 * errors) - signals[held]
    rows = []
    for low, high in zip(_FRACTIONS, _FRACTIONS[1:], strict=False):
        dense = (chosen.fraction >= low) & (chosen.fraction < high)
        row = [f"f {low:g} to {high:g}"]
        for least, most in zip(_PERMEABILITIES, _PERMEABILITIES[1:], strict=False):
            row.append(
                size(errors[dense & (chosen.permeability > least) & (chosen.permeability <= most)])
            )
        rows.append(row)
    head = (shape, "kappa R / D < .01", "to .1", "to 1", "above")
    count = f"{len(np.unique(draws[held]))} of {len(np.unique(draws))} samples"
    even = draws[held] < FIRST_TIGHT
    return (
        f"{shape}: {count} held out, all: {size(errors)}; uniform over the range "
        f"{size(errors[even])}, the closed form alone {size(pools[even])}.\n\n" + table(head, rows)
    )


def correlation_table(folder: Path) -> str:
    """Correlation of errors at two encodings of one held-out packing, by their distance."""
    draws, numbers, signals = read_draws("cylinder", folder)
    form = closed_form("cylinder", numbers)
    deviation = form.gain * np.exp(error_terms(numbers) @ load_network("cylinder").error_scale)
    free = numbers.across**2 * numbers.time * (1 - numbers.pulse / 3)
    along = numbers.along**2 / np.maximum(numbers.across**2 + numbers.along**2, 1e-12)
    # Where there is something to see: gradients mostly across, and neither too weak nor too small.
    seen = held_out(draws) & (along < _ALONG) & (free > _LEAST_B) & (deviation > _LEAST_ERROR)
    errors = form.signals(load_network("cylinder")(form.inputs)) - signals
    rng, pairs = np.random.default_rng(0), []
    for number in np.unique(draws[seen]):
        rows = np.flatnonzero(seen & (draws == number))
        white = errors[rows] / deviation[rows]
        # Packings have equal weights, whatever the size of their errors.
        white /= np.sqrt((white**2).mean())
        one, other = rng.integers(len(rows), size=(2, _N_PAIRS))
        apart = [np.abs(np.log(x[rows][one] / x[rows][other])) for x in (numbers.time, free)]
        power = (white[one] ** 2 + white[other] ** 2) / 2
        pairs.append(np.stack([*apart, white[one] * white[other], power]))
    time_apart, b_apart, product, power = np.concatenate(pairs, axis=1)
    lines = []
    for low, high in pairwise(_TIME_APART):
        line = [f"{low:g} to {high:g}"]
        for least, most in pairwise(_B_APART):
            own = (time_apart >= low) & (time_apart < high) & (b_apart >= least) & (b_apart < most)
            assumed = np.exp(-time_apart[own] / TIME_LENGTH - b_apart[own] / B_LENGTH).mean()
            line.append(f"{product[own].sum() / power[own].sum():.2f} ({assumed:.2f})")
        lines.append(line)
    head = [f"difference of b {least:g} to {most:g}" for least, most in pairwise(_B_APART)]
    return table(["different Delta", *head], lines)


class Packings(NamedTuple):
    """Mean and scatter (n_q, 2) of signals of packings of the same dimensionless numbers."""

    numbers: Numbers
    mean: np.ndarray
    scatter: np.ndarray


def packings_of(number: int, u: np.ndarray, seed: int) -> Packings:
    """Simulate the packings of a tissue."""
    fraction = 0.3 + 0.5 * u[0]
    permeability = 0.0 if number % 3 == 0 else between(u[1], 1e-2, 3)
    inside = between(u[2], 0.4, 2)
    time = between(u[3], 0.8, 60)
    q_max = min(np.sqrt(between(u[4], 2, 10) / time), 3)
    cosine = 0.4 * (number % 2)
    sine, pulse = np.sqrt(1 - cosine**2), np.array([0.2, 0.6])
    signals, rng = [], np.random.default_rng([seed, number])
    for _ in range(_N_PACKINGS):
        mesh, angle = random_mesh(_N_CYLINDERS, fraction, rng), rng.uniform(0, 2 * np.pi)
        direction = np.array([sine * np.cos(angle), sine * np.sin(angle), cosine])
        small = reduced(matrices_of(mesh), permeability, inside, direction, q_max, time)
        q, found = pulse_signals(small, q_max, pulse * time, np.full(2, time))
        signals.append(found)
    numbers = Numbers(
        fraction, permeability, inside, time, pulse, q[:, None] * sine, q[:, None] * cosine
    )
    return Packings(numbers, np.mean(signals, axis=0), np.std(signals, axis=0, ddof=1))


def own_error_rows(n_tissues: int) -> list[tuple]:
    """Errors at tissues, each against the mean of its packings."""
    rows = []
    for number, u in enumerate(scattered(n_tissues, 5, seed=23)):
        numbers, mean, scatter = packings_of(number, u, seed=11)
        form = closed_form("cylinder", numbers)
        inputs = form.inputs.reshape(-1, form.inputs.shape[-1])
        emulated = form.signals(
            load_network("cylinder")(inputs).reshape(form.two_compartments.shape)
        )
        tight = numbers.permeability < 0.03 and numbers.fraction > 0.6
        rows.append((tight, np.any(numbers.along > 0), emulated - mean, scatter))
    return rows


def own_error_table(n_tissues: int) -> str:
    """All, and the dense and nearly impermeable ones."""
    rows = own_error_rows(n_tissues)
    lines = []
    for name, chosen in (
        ("all", rows),
        ("f < .6 or kappa R / D > .03", [row for row in rows if not row[0]]),
        ("dense, nearly impermeable", [row for row in rows if row[0]]),
        ("gradients across", [row for row in rows if not row[1]]),
        ("gradients partly along, D inside not D outside", [row for row in rows if row[1]]),
    ):
        errors = np.concatenate([row[2].ravel() for row in chosen] or [np.empty(0)])
        scatter = np.concatenate([row[3].ravel() for row in chosen] or [np.empty(0)])
        mean = np.sqrt((scatter**2).mean() / _N_PACKINGS) if scatter.size else np.nan
        lines.append((name, len(chosen), size(errors), size(scatter), f"{100 * mean:.2f}"))
    head = ("cylinders", "tissues", "emulator error", "scatter of a packing", "error of the mean")
    return table(head, lines)


def monte_carlo_table(testset: Path) -> str:
    """Differences from Monte Carlo at the true parameters."""
    with np.load(testset) as file:
        truth = {name: file[name].astype(float) for name in file.files}
    lines = []
    for system in ("300", "80"):
        scan = acquisition(system)
        for code, shape in enumerate(("cylinder", "sphere")):
            errors, standard, expected = [], [], []
            for row in np.flatnonzero(truth["shape"] == code):
                fraction = truth[f"{shape}_fraction"][row]
                wall = truth["wall_permeability"][row]
                tissue = np.array(
                    [[truth["radius"][row], fraction, wall, _DIFFUSIVITY, _DIFFUSIVITY]]
                )
                along = scan.q * np.abs(scan.directions @ truth["axis"][row])
                along = along if shape == "cylinder" else 0 * along
                across = np.sqrt(np.maximum(scan.q**2 - along**2, 0))
                encodings = Encodings(across, along, scan.small_delta, scan.big_delta)
                weighted = ~scan.b0_mask
                found = emulated_signals(shape, tissue, encodings)[0]
                errors.append((found - truth[f"signals_{system}"][row])[weighted])
                standard.append(truth[f"errors_{system}"][row][weighted])
                expected.append(emulator_error(shape, tissue, encodings)[0][weighted])
            errors, standard, expected = map(np.concatenate, (errors, standard, expected))
            spread = np.sqrt((standard**2).mean())
            within = np.mean(np.abs(errors) < 2 * np.hypot(standard, expected))
            lines.append((f"{system} mT/m", shape, (truth["shape"] == code).sum(), size(errors),
                          f"{100 * spread:.2f}", f"{within:.0%}"))  # fmt: skip
    return table(
        ("gradients", "bodies", "tissues", "difference", "standard error of the Monte Carlo",
         "within two standard deviations of both"), lines,
    )  # fmt: skip


def main() -> None:
    """Command line."""
    parser = command(__doc__, quick="six tissues for the emulator error")
    parser.add_argument("folder", type=Path)
    parser.add_argument("testset", type=Path)
    given = parser.parse_args()
    n_tissues = 6 if given.quick else _N_TISSUES
    parts = [
        "# The emulator of packed cells",
        f"Made by `python -m benchmarks.emulator` on {machine()}. Root mean square / 95th "
        "percentile, % of S0.",
        "## Packings left out",
        *(left_out_table(shape, given.folder) for shape in ("cylinder", "sphere")),
        "## Correlation of errors",
        "Of cylinders left out, by the logarithm of the ratios of Delta and b; in brackets what "
        "the likelihood assumes.",
        correlation_table(given.folder),
        "## Own error",
        own_error_table(n_tissues),
        "## Monte Carlo",
        monte_carlo_table(given.testset),
    ]
    text = "\n\n".join(parts)
    print(text)
    keep("emulator.md", text, complete=not given.quick)


if __name__ == "__main__":
    main()
