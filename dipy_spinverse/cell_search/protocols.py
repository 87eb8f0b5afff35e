"""Roles in the search for cells: a task says what is looked for, a judge which cells are best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dipy_spinverse.cell_search.cell_operations import CellOperations
from dipy_spinverse.cell_search.descent import Descent, PartialCells
from dipy_spinverse.cell_search.effort import PopulationPlan, SearchEffort
from dipy_spinverse.cell_search.labelled import LabelledCells, Target


class Objective(Protocol):
    """Compares the members of a population."""

    def __call__(self, target: Target, cells: LabelledCells) -> float:
        """How far cells are off."""

    def improved(
        self, target: Target, cells: LabelledCells, rng: np.random.Generator
    ) -> LabelledCells:
        """Cells after flips that bring them closer to the data."""

    def least_apart(self, best: float) -> int:
        """Tetrahedra in which members differ at least, given the misfit of the best."""


@dataclass(frozen=True, eq=False)
class Member:
    """Cells of a population: as they descended, their labels, and how far these are off."""

    target: Target  # exact for these cells
    partial: PartialCells
    cells: LabelledCells
    misfit: float


@dataclass(frozen=True, eq=False)
class Tools:
    """What all voxels of a search share."""

    descend: Descent
    changes: CellOperations
    leaks: np.ndarray  # (2,) from which the search starts
    effort: SearchEffort


class SearchTask(Protocol):
    """What is looked for in a voxel."""

    @property
    def target(self) -> Target:
        """What cells are compared with on the way."""

    @property
    def populations(self) -> tuple[PopulationPlan, ...]:
        """Those that evolve, one after the other."""

    @property
    def ranked_library(self) -> np.ndarray:
        """Indices of random bodies, the best first."""

    def judge(self, cells: list[LabelledCells]) -> Objective:
        """A judge of cells like some, the first of which are the best."""

    def jointly_improved(self, member: Member, rng: np.random.Generator) -> LabelledCells | None:
        """Cells after flips of several tetrahedra at once, or None if that would be in vain."""

    def solved_by(self, population: list[Member]) -> bool:
        """Whether nothing better needs to be looked for."""

    def hopeless(self, population: list[Member]) -> bool:
        """Whether nothing that explains the data is to be found, given the best of all."""

    def distance(self, population: list[Member]) -> float:
        """How far the best are from the data, in steps that count as progress."""

    def conclusion(
        self, populations: list[list[Member]], n_draws: int, rng: np.random.Generator
    ) -> tuple[LabelledCells, list[LabelledCells]]:
        """The best cells, and others that explain the data."""
