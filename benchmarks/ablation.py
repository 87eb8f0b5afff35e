"""What each ingredient of the search for cells is worth: left out, one at a time.

Shapes of `recovery.py`, noise-free, as there; each run may take as many rounds as the default.
F1 of wall faces (CPU seconds).

    DIPY_SPINVERSE_DATA=<folder> python benchmarks/ablation.py [--without "random changes" ...]
"""

from __future__ import annotations

import argparse
import warnings
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
from recovery import all_shapes, published_protocol, recover

from dipy_spinverse.cell_search import descent, evolution, labelled, polish, search
from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.separate_cells import SeparateCells

RESULTS = Path(__file__).parent / "results" / "ablation.md"
SHAPES = ("new bent axon 1", "plate 1", "new several 10")


def _as_they_are(task, target, cells, rng):
    return cells


def _no_cells(self, rng):
    yield 1, []


ABLATIONS = {
    "nothing": {},
    "half of the measurements": {(search, "_N_SEARCHED"): 64},
    "Gauss-Newton in partial volumes": {
        (evolution, "_N_STEPS_FIRST"): 0, (evolution, "_N_STEPS"): 0,
    },
    "flips of whole tetrahedra": {
        (polish, "_MOST_ROUNDS"): 0, (ExactData, "perfected"): _as_they_are,
    },
    "flips of several tetrahedra at once": {(ExactData, "perfected"): _as_they_are},
    "single cells put together": {(SeparateCells, "in_likely_numbers"): _no_cells},
    "a misfit that counts wrong tetrahedra": {(labelled, "_WRONG_LABELS"): 0.0},
    "disturbances": {(evolution, "_N_DISTURBED"): 0, (evolution, "_N_CHANGED"): 5},
    "random changes": {(evolution, "_N_DISTURBED"): 5, (evolution, "_N_CHANGED"): 0},
    "smoothness of the steps": {
        (descent, "_SMOOTH_LENGTHS"): (0.01,), (descent, "_INDEPENDENT"): 0.0,
    },
}  # fmt: skip


def main():
    """Print the table and write it to results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    chosen = parser.parse_args().without
    warnings.filterwarnings("ignore", message="The grid is too coarse")
    acquisition = published_protocol()
    shapes = [shape for shape in all_shapes() if shape[0] in SHAPES]
    lines = [
        " | ".join(["| without", *(name for name, *_ in shapes), "median F1", "median CPU-s |"]),
        "|---" * (len(shapes) + 3) + "|",
    ]
    print("\n".join(lines), flush=True)
    for name in chosen:
        with ExitStack() as stack:
            for (owner, attribute), value in ABLATIONS[name].items():
                stack.enter_context(patch.object(owner, attribute, value))
            rows = [recover(acquisition, grid, true, "cell search") for _, grid, true in shapes]
        cells = " | ".join(f"{row['F1']:.2f} ({row['CPU']:.0f})" for row in rows)
        f1, cpu = (np.median([row[key] for row in rows]) for key in ("F1", "CPU"))
        lines.append(f"| {name} | {cells} | {f1:.2f} | {cpu:.0f} |")
        print(lines[-1], flush=True)
    if chosen == list(ABLATIONS):
        RESULTS.write_text(__doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
