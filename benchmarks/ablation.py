"""What each ingredient of the search for cells is worth: left out, one at a time.

Shapes of `recovery.py`, noise-free, as there; each run may take as many rounds as the default.
F1 of wall faces (CPU seconds).

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.ablation [--without "random changes" ...]

Duration: about an hour on 2 cores (--quick: 1 min). Writes results/ablation.md.
"""

from __future__ import annotations

import time
import warnings

import numpy as np

from benchmarks.command import command, keep
from benchmarks.measurements_searched import DIFFUSIVITY
from benchmarks.recovery import OPEN, WALL, all_shapes, published_protocol
from dipy_spinverse import compare_walls, simulate
from dipy_spinverse.cell_search import CellInversion, SearchEffort
from dipy_spinverse.cell_search.effort import (
    FlipEffort,
    Origin,
    PopulationEffort,
    PopulationPlan,
    StepPrior,
)
from dipy_spinverse.inversion import WALL_THRESHOLD

SHAPES = ("new bent axon 1", "plate 1", "new several 10")
NOT_TOGETHER = tuple(
    PopulationPlan(Origin.RANDOM, plan.patience) if plan.origin is Origin.PUT_TOGETHER else plan
    for plan in SearchEffort().exact_populations
)
ABLATIONS = {
    "nothing": SearchEffort(),
    "half of the measurements": SearchEffort(n_searched=64),
    "Gauss-Newton in partial volumes": SearchEffort(
        population=PopulationEffort(n_steps_first=0, n_steps=0)
    ),
    "flips of whole tetrahedra": SearchEffort(flips=FlipEffort(most_rounds=0, patience=0)),
    "flips of several tetrahedra at once": SearchEffort(flips=FlipEffort(patience=0)),
    "single cells put together": SearchEffort(exact_populations=NOT_TOGETHER),
    "a misfit that counts wrong tetrahedra": SearchEffort(wrong_labels=0.0),
    "disturbances": SearchEffort(population=PopulationEffort(n_disturbed=0, n_changed=5)),
    "random changes": SearchEffort(population=PopulationEffort(n_disturbed=5, n_changed=0)),
    "smoothness of the steps": SearchEffort(steps=StepPrior(lengths=(0.01,), independent=0.0)),
}


def recovered(acquisition, grid, true, effort):
    """F1 of the walls of a shape, and CPU seconds."""
    signals = simulate(acquisition, grid, np.where(true, WALL, OPEN))
    start = time.process_time()
    inversion = CellInversion(
        acquisition, grid, diffusivity=DIFFUSIVITY, n_fields=0, seed=0, effort=effort
    )
    found = inversion.run(signals[None], None).scaled_transmissibility[0] < WALL_THRESHOLD
    seconds = time.process_time() - start
    return compare_walls(found, true, grid, point_reflection=True).f1, seconds


def main():
    """Print the table and write it to results/."""
    parser = command(__doc__, f"all ingredients together, on {SHAPES[0]}")
    parser.add_argument("--without", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
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
        rows = [recovered(acquisition, *shape, ABLATIONS[name]) for _, *shape in shapes]
        cells = " | ".join(f"{f1:.2f} ({cpu:.0f})" for f1, cpu in rows)
        f1, cpu = np.median(rows, axis=0)
        lines.append(f"| {name} | {cells} | {f1:.2f} | {cpu:.0f} |")
        print(lines[-1], flush=True)
    text = __doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines)
    keep("ablation.md", text, complete=chosen == list(ABLATIONS))


if __name__ == "__main__":
    main()
