"""How much a search for smooth cells does: budgets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SmoothEffort:
    """How much a search for smooth cells does."""

    coarse: int = 5  # cubes along the box, for the starts
    middle: int = 6  # for derivatives
    fine: int = 9  # for signals
    finest: int = 12  # beside it, for the limit, which corrects signals and judges ends
    n_examples: int = 2000  # random cells, simulated once for all voxels
    n_complete: int = 200  # of these with all measurements
    n_condensed: int = 96  # measurements that are simulated
    n_nearest: int = 6  # starts that are examples
    n_beside: tuple[int, ...] = (10, 6, 4, 4)  # that are two of them beside each other, three, ...
    n_steps_coarse: int = 15
    n_better: int = 8  # starts that go on to the middle grid
    n_steps_middle: int = 10
    n_moved: int = 1  # of their ends whose cells are put elsewhere
    n_moves: int = 3  # of these that descend
    n_good: int = 4  # lines that go on with the signals of the fine grid
    n_steps_fine: int = 10
    n_lines: int = 3  # that the limit of fine grids corrects
    n_corrections: int = 5  # at most, while each makes cells more probable
    n_steps_last: int = 5  # after each
    n_rounds: int = 2  # in which the cells of the best end are put elsewhere
    n_places_ranked: int = 12  # by the fine grid, after the middle one
    n_places: int = 2  # from which lines go on to ends of their own
    n_steps_of_draws: int = 6


DEFAULT_EFFORT = SmoothEffort()
