"""Smooth bodies with less noise, and with S0 or the diffusivity wrong or unknown.

Two bodies of `smooth_bodies_set.py`, fitted by the default path of
`ClosedCellInversion(smooth=True)`, as in `smooth_bodies` but for one thing. For each:
overlap (Dice) modulo point reflection, distance of surfaces (the mean of both directions), error
of volume, permeability over the true one (of each cell, the largest first), mean squared residual
over noise (all timings), status, estimated S0 of each echo time and diffusivity over the true
ones, and whether the intervals of S/V, volume and mean permeability cover the truth.

    python -m benchmarks.smooth_bodies_otherwise [--conditions "S0 2 % too low" ...]

Finished parts are kept in --folder, from which a run resumes. A noise of 1/1000 is below the
numerical errors of the true signals. Duration: 4 min a fit on one core, and 2 min for the signals
of a body (--quick: the ring). Writes results/smooth_bodies_otherwise.md.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from benchmarks.command import command, keep
from benchmarks.noisy_cells import noisy
from benchmarks.recovery import published_protocol
from benchmarks.shapes import published_grid
from benchmarks.smooth_bodies import (
    DIFFUSIVITY,
    N_DRAWS,
    area_and_volume,
    overlap_figures,
    signals_in,
    surface,
    within_a_quarter,
)
from benchmarks.smooth_bodies_set import REPORTED, SIDE, bodies, depths
from dipy_spinverse import ClosedCellInversion, SpinverseModel
from dipy_spinverse.cell_search.smooth import level_set_prior, stored_cells
from dipy_spinverse.voxels.status import Status

KINDS, SEED = ("ring", "two unequal"), 5
MAPS = {
    "S/V": "surface_to_volume",
    "volume": "restricted_fraction",
    "mean permeability": "wall_permeability",
}


@dataclass(frozen=True)
class Condition:
    """Values specified in a fit, and the SNR of its data."""

    snr: float = 50
    S0: float | None = 1.0
    diffusivity: float | None = DIFFUSIVITY * 1e-3

    @property
    def served_by(self):
        """Settings that differ between models, each of which simulates a separate library."""
        return self.S0 is None, self.diffusivity


CONDITIONS = {
    "unchanged": Condition(),
    "S0 2 % too low": Condition(S0=0.98),
    "S0 2 % too high": Condition(S0=1.02),
    "noise of 1 in 1000": Condition(snr=1000),
    "D 5 % too low": Condition(diffusivity=1.9e-3),
    "D 5 % too high": Condition(diffusivity=2.1e-3),
    "D unknown": Condition(diffusivity=None),
    "S0 unknown": Condition(S0=None),
}


def fitted(acquisition, conditions: list[Condition], named, signals):
    """Rows of figures of bodies under each of some conditions that one model serves."""
    # Noise as in `smooth_bodies`, so that nothing but the condition differs.
    data = np.array([
        noisy(acquisition, of_body, [*name.encode()], condition.snr)[0]
        for condition in conditions
        for (name, _), of_body in zip(named, signals, strict=True)
    ])  # fmt: skip
    first = conditions[0]
    S0 = np.repeat([condition.S0 for condition in conditions], len(named))
    model = SpinverseModel(
        acquisition,
        grid=published_grid(),
        inversion=ClosedCellInversion(smooth=True),
        diffusivity=first.diffusivity,
    )
    fit = model.fit(data, S0=None if first.S0 is None else S0, n_fields=N_DRAWS)
    n = len(named)
    return [
        [_row(fit[k * n + m], cells) for m, (_, cells) in enumerate(named)]
        for k in range(len(conditions))
    ]


def _row(fit, cells):
    prior, best = level_set_prior(fit.model.grid), stored_cells(fit)[0]
    points, basis = prior.raster
    overlap = overlap_figures(basis @ best.z + prior.mean > 0, points, cells)
    areas, volumes = np.transpose([area_and_volume(cell) for cell in cells])
    mean = areas @ [cell.permeability for cell in cells] / areas.sum()
    truth = dict(zip(MAPS, (areas.sum() / SIDE**3, volumes.sum() / SIDE**3, mean), strict=True))
    held = [
        getattr(fit, f"{MAPS[name]}_low") <= true <= getattr(fit, f"{MAPS[name]}_high")
        for name, true in truth.items()
    ]
    return {
        "Dice": overlap["Dice"],
        "surfaces um": round(_apart(prior, best, cells), 2),
        "volume %": overlap["volume %"],
        "permeability": (np.sort(best.permeability)[::-1] / mean).round(2).tolist(),
        "chi2": round(float((fit.residual_rms / fit.sigma) ** 2), 2),
        "status": Status(int(fit.status)).name,
        "S0": fit.S0_per_te.round(3).tolist(),
        "D": round(1e3 * float(fit.field_diffusivity[0]) / DIFFUSIVITY, 3),
        "held": [bool(x) for x in held],
    }


def _apart(prior, found, cells):
    """Mean distance between estimated and true walls, um, modulo point reflection."""
    found = surface(prior.interpolated(found.z))
    tree, distances = cKDTree(found), []
    for sign in (1, -1):
        true = sign * surface(lambda points: depths(cells, points))
        there, back = tree.query(true)[0].mean(), cKDTree(true).query(found)[0].mean()
        distances.append((there + back) / 2)
    return min(distances)


def _summary(rows, cells_of_bodies):
    """Medians and coverage over the rows of one condition."""
    median = {name: np.median([abs(row[name]) for row in rows])
              for name in ("Dice", "surfaces um", "volume %", "chi2")}  # fmt: skip
    within = sum(within_a_quarter(*one) for one in zip(rows, cells_of_bodies, strict=True))
    held = np.sum([row["held"] for row in rows], axis=0).tolist()
    return {
        **{name: f"{value:.2f}" for name, value in median.items()},
        "permeability within 25 %": f"{within} of {sum(map(len, cells_of_bodies))}",
        "S/V, volume, permeability covered": f"{held} of {len(rows)}",
        "MISFIT": sum(row["status"] == "MISFIT" for row in rows),
    }


def _table(rows):
    head = f"| {' | '.join(rows[0])} |\n{'|---' * len(rows[0])}|"
    return "\n".join([head, *(f"| {' | '.join(map(str, row.values()))} |" for row in rows)])


def main():
    """Print the tables and write them to results/."""
    parser = command(__doc__, "the ring")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--folder", type=Path, default=Path("smooth_bodies"))
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    warnings.filterwarnings("ignore", message="smooth cells are on trial|The grid is too coarse")
    kinds = KINDS[:1] if args.quick else KINDS
    named = [body for body in bodies(REPORTED, SEED) if body[0].startswith(kinds)]
    acquisition, every, summaries = published_protocol(), [], []
    signals = [signals_in(args.folder, acquisition, *body) for body in named]
    wanted = {name: CONDITIONS[name] for name in args.conditions}
    for _, group in groupby(wanted, key=lambda name: wanted[name].served_by):
        labels = list(group)
        kept = args.folder / f"otherwise {len(named)} {labels[0]}.json"
        if not kept.exists():
            found = fitted(acquisition, [wanted[label] for label in labels], named, signals)
            kept.write_text(json.dumps(found))
        for label, rows in zip(labels, json.loads(kept.read_text()), strict=True):
            every += [{"condition": label, "body": name} | row
                      for (name, _), row in zip(named, rows, strict=True)]  # fmt: skip
            summaries.append({"condition": label} | _summary(rows, [x for _, x in named]))
            print(_table(every[-len(rows) :]), flush=True)
    text = f"{_table(summaries)}\n\n{_table(every)}"
    print(text)
    complete = not args.quick and args.conditions == list(CONDITIONS)
    keep("smooth_bodies_otherwise.md", __doc__.split("\n\n")[1] + "\n\n" + text, complete=complete)


if __name__ == "__main__":
    main()
