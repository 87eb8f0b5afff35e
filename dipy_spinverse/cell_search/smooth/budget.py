"""Search budgets of smooth cells: how many candidates are simulated, on which grids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SmoothSearchBudget:
    """Numbers of candidates of a search for smooth cells."""

    # Chosen on the bodies of benchmarks/notes/walls_off_grid.md, which says what more or less of
    # each changed: 4 cubes do not separate two rods, 9 and 12 have errors below 0.6 %, 96
    # measurements predict the others to 0.1-0.25 of the noise, more symmetry images did not help.
    # Results are in benchmarks/results/smooth_bodies.md.

    # Along the box: of the grids for initial cells, for derivatives, for signals, and of the
    # finest, which with the one before gives signals in the limit of fine grids.
    cubes: tuple[int, int, int, int] = (5, 6, 9, 12)
    n_examples: int = 2000  # random cells that are simulated once for all voxels
    n_complete: int = 200  # those with all measurements
    n_condensed: int = 96  # measurements that are simulated
    n_nearest: int = 6  # initial cells that are single examples
    n_combined: tuple[int, ...] = (10, 6, 4, 4)  # those of two examples, of three, and so on
    n_steps: tuple[int, int, int] = (15, 10, 10)  # of each descent on the first three grids
    n_selected: tuple[int, int, int] = (8, 4, 3)  # descents that go on after these grids
    n_images: tuple[int, int] = (3, 2)  # symmetry images on the middle grid, and in the limit
    n_image_rounds: int = 2  # of the latter
    n_corrections: int = 5  # by the limit of fine grids, at most
    n_final_steps: int = 5  # after each correction
    n_sample_steps: int = 6  # of each posterior sample
