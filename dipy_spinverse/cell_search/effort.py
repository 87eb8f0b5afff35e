"""How much a search for cells does: budgets, chosen on the shapes of benchmarks/shapes.py."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Origin(Enum):
    """What a population starts from: beside random bodies or instead of them."""

    RANDOM = auto()  # random bodies alone, which find most single cells soon
    PUT_TOGETHER = auto()  # cells put together from single ones, too
    JOINED = auto()  # the best of all populations before


@dataclass(frozen=True)
class PopulationPlan:
    """What a population starts from, and the number of rounds in vain that end it."""

    origin: Origin
    patience: int


@dataclass(frozen=True)
class LibraryEffort:
    """Random bodies that are simulated once for all voxels."""

    n_bodies: int = 1500
    n_examples: int = 400  # those of which all measurements are simulated, where there is noise
    n_choosing: int = 6  # those whose sensitivities choose the measurements of the search
    n_single_cells: int = 3000  # to be put together


@dataclass(frozen=True)
class PopulationEffort:
    """Members of a population, and what each of its rounds adds."""

    n_starts: int = 6
    n_members: int = 4  # that survive a round
    n_disturbed: int = 3
    n_changed: int = 2  # at random
    n_proposed: int = 50  # changes of which the most promising one descends
    n_fresh: int = 1  # random bodies
    n_steps_first: int = 10  # of the descent of a body
    n_steps: int = 7  # of that of a member
    most_rounds: int = 14


@dataclass(frozen=True)
class TogetherEffort:
    """Combinations of single cells."""

    n_combined: int = 2000  # at random
    n_exchanges: int = 3  # of each cell of a combination
    n_simulated: int = 200  # of the best combinations
    n_lines: int = 12  # combinations that descend at first
    n_steps: int = 8  # of a descent
    n_moved: int = 4  # combinations of which all cells move
    n_found: int = 6  # combinations that descend after that
    n_places: int = 200  # that are tried for a cell
    n_moves: int = 25  # of all cells at once that are simulated


@dataclass(frozen=True)
class FlipEffort:
    """Flips of whole tetrahedra, one by one and several at once."""

    numbers: tuple[int, ...] = (0, 1, 2, 4, 8, 16)  # of flips that are simulated
    most_rounds: int = 3
    numbers_at_once: tuple[int, ...] = (2, 3, 4, 6, 10, 16)  # at most, of annealed flips
    n_sweeps: int = 200  # of annealing
    patience: int = 2  # how often the misfit may not fall
    n_finished: int = 3  # cells that flips by all measurements finish


@dataclass(frozen=True)
class AnnealingEffort:
    """Flips that make cells more probable."""

    numbers: tuple[int, ...] = (1, 2, 4, 8, 16)  # at most, until the linear model is made anew
    n_sweeps: int = 60
    most_rounds: int = 4


@dataclass(frozen=True)
class DrawEffort:
    """Cells that are drawn where there is noise."""

    n_finalists: int = 3  # of each population
    n_again: int = 3  # how often each finalist is found again
    n_steps: int = 7  # of a descent
    n_to_choose: int = 64  # draws of which the most typical is chosen


@dataclass(frozen=True)
class StepPrior:
    """How smooth the steps of a descent are."""

    lengths: tuple[float, ...] = (0.85, 1.06, 1.27)  # in distances of neighbouring tetrahedra
    whitening: float = 0.02  # part of the variance that is not smooth, relative to the rest


_PLANS = (
    PopulationPlan(Origin.RANDOM, 2),
    *[PopulationPlan(Origin.PUT_TOGETHER, 2)] * 3,
    PopulationPlan(Origin.JOINED, 4),
)


@dataclass(frozen=True)
class SearchEffort:
    """How much a search for cells does.

    Examples
    --------
    >>> from dipy_spinverse.cell_search import SearchEffort
    >>> SearchEffort(n_searched=64, library=LibraryEffort(n_bodies=500)).n_condensed
    64
    """

    # Measurements that are simulated, where there is no noise and where there is. 64 determine
    # half of the flips at walls, 128 most of them (benchmarks/measurements_searched.py).
    n_searched: int = 128
    n_condensed: int = 64
    # Flips of typical cells count as this many independent wrong labels; with 0 the misfit is
    # the plain sum of squares (benchmarks/ablation.py).
    wrong_labels: float = 100.0
    # What different populations find in noisy data may all be right.
    exact_populations: tuple[PopulationPlan, ...] = _PLANS * 2
    noisy_populations: tuple[PopulationPlan, ...] = (PopulationPlan(Origin.RANDOM, 3),) * 3
    library: LibraryEffort = LibraryEffort()
    population: PopulationEffort = PopulationEffort()
    together: TogetherEffort = TogetherEffort()
    flips: FlipEffort = FlipEffort()
    annealing: AnnealingEffort = AnnealingEffort()
    draws: DrawEffort = DrawEffort()
    steps: StepPrior = StepPrior()


DEFAULT_EFFORT = SearchEffort()
