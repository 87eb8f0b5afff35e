"""Search budgets: how many candidates a search for cells simulates."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class InitialBodies(Enum):
    """Initial members of a population."""

    RANDOM = auto()  # random bodies alone, which suffice for most single cells
    COMBINED = auto()  # combinations of single cells, and random bodies
    MERGED = auto()  # the best members of all populations so far


@dataclass(frozen=True)
class PopulationPlan:
    """Initial members of a population, and after how many rounds without progress it ends."""

    initial: InitialBodies
    patience: int


@dataclass(frozen=True)
class CellSearchBudget:
    """How many candidates a search for cells simulates."""

    # n_searched: 64 measurements determine half of the label changes at walls, 128 most of them
    # (benchmarks/results/measurements_searched.md). n_translated, n_best, n_descents and
    # n_single_cells: benchmarks/results/separate_cells.md. All other numbers were set by hand on
    # the shapes of benchmarks/shapes.py, all of which are recovered
    # (benchmarks/results/recovery.md).
    n_searched: int = 128  # measurements that are simulated without noise
    n_condensed: int = 64  # those with noise
    n_bodies: int = 1500  # random bodies that are simulated once for all voxels
    n_examples: int = 400  # those of which all measurements are simulated
    n_single_cells: int = 3000  # to be combined, simulated once for all voxels
    n_initial: int = 6  # initial bodies of a population
    n_disturbed: int = 5  # members of a population that are disturbed in each round
    n_first_steps: int = 10  # of Gauss-Newton, of an initial body
    n_rounds: int = 14  # of a population, at most
    n_cycles: int = 2  # repetitions of the sequence of populations
    n_combinations: int = 2000  # of single cells, random ones
    n_descents: int = 12  # combinations that are optimised
    n_translated: int = 4  # combinations whose cells are translated
    n_best: int = 6  # combinations that are kept


# Several small populations in sequence: one large population soon descends from one ancestor and
# stays in its local minimum (benchmarks/notes/recovery.md). What each step of a search contributes
# is in benchmarks/results/ablation.md.
EXACT_CYCLE = (
    PopulationPlan(InitialBodies.RANDOM, 2),
    *[PopulationPlan(InitialBodies.COMBINED, 2)] * 3,
    PopulationPlan(InitialBodies.MERGED, 4),
)
