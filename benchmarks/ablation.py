"""Ablation of the cell search: each component removed in turn.

Shapes of `recovery.py`, noise-free; each run has at most the default number of rounds.
F1 of wall faces (CPU seconds).

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.ablation [--without disturbances ...]

Duration: about an hour on 2 cores (--quick: 1 min). Writes results/ablation.md.
"""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np

from benchmarks.command import command, keep
from benchmarks.measurements_searched import DIFFUSIVITY
from benchmarks.recovery import OPEN, WALL, all_shapes, published_protocol
from dipy_spinverse import compare_walls, simulate
from dipy_spinverse.cell_search import (
    CellInversion,
    CellSearchBudget,
    descent,
    exact_data,
    joint_changes,
    local_search,
)
from dipy_spinverse.cell_search.budget import InitialBodies, PopulationPlan
from dipy_spinverse.inversion import WALL_THRESHOLD

SHAPES = ("new bent axon 1", "plate 1", "new several 10")
WITHOUT_COMBINATIONS = tuple(
    PopulationPlan(InitialBodies.RANDOM, plan.patience)
    if plan.initial is InitialBodies.COMBINED
    else plan
    for plan in exact_data.EXACT_CYCLE
)
# Constants of the search that leave an ingredient out, by module and name.
ABLATIONS = {
    "nothing": [],
    "label changes": [(local_search, "_MAX_ROUNDS", 0), (joint_changes, "_PATIENCE", 0)],
    "joint label changes": [(joint_changes, "_PATIENCE", 0)],
    "combinations of single cells": [(exact_data, "EXACT_CYCLE", WITHOUT_COMBINATIONS)],
    "an objective that counts wrong labels": [(local_search, "_WRONG_LABELS", 0.0)],
    "smoothness of the steps": [
        (descent, "_LENGTHS", (0.01,)),
        (descent, "_INDEPENDENT_VARIANCE", 0.0),
    ],
}
# Ingredients that are left out by the budget.
BUDGETS = {
    "half of the measurements": CellSearchBudget(n_searched=64),
    "disturbances": CellSearchBudget(n_disturbed=0),
    "Gauss-Newton of random bodies": CellSearchBudget(n_first_steps=0),
}

ALL = (*ABLATIONS, *BUDGETS)


def recovered(acquisition, grid, true, name):
    """F1 of the walls of a shape without an ingredient, and CPU seconds."""
    signals = simulate(acquisition, grid, np.where(true, WALL, OPEN))
    start = time.process_time()
    with ExitStack() as patches:
        for module, constant, value in ABLATIONS.get(name, ()):
            patches.enter_context(patch.object(module, constant, value))
        inversion = CellInversion(
            acquisition, grid, diffusivity=DIFFUSIVITY, n_fields=0, seed=0,
            budget=BUDGETS.get(name),
        )  # fmt: skip
        found = inversion.run(signals[None], None).scaled_transmissibility[0] < WALL_THRESHOLD
    seconds = time.process_time() - start
    return compare_walls(found, true, grid, point_reflection=True).f1, seconds


def main():
    """Print the table and write it to results/."""
    parser = command(__doc__, f"all ingredients together, on {SHAPES[0]}")
    parser.add_argument("--without", nargs="+", choices=ALL, default=list(ALL))
    args = parser.parse_args()
    chosen, wanted = (["nothing"], SHAPES[:1]) if args.quick else (args.without, SHAPES)
    warnings.filterwarnings("ignore", message="The grid is too coarse")
    acquisition = published_protocol()
    shapes = [shape for shape in all_shapes() if shape[0] in wanted]
    lines = [
        " | ".join(["| without", *(name for name, *_ in shapes), "median F1", "median CPU-s |"]),
        "|---" * (len(shapes) + 3) + "|",
    ]
    print("\n".join(lines), flush=True)
    for name in chosen:
        rows = [recovered(acquisition, *shape, name) for _, *shape in shapes]
        cells = " | ".join(f"{f1:.2f} ({cpu:.0f})" for f1, cpu in rows)
        f1, cpu = np.median(rows, axis=0)
        lines.append(f"| {name} | {cells} | {f1:.2f} | {cpu:.0f} |")
        print(lines[-1], flush=True)
    text = __doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines)
    keep("ablation.md", text, complete=chosen == list(ALL))


if __name__ == "__main__":
    main()
