"""What a search for cells consists of: a task with an objective, and members of populations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dipy_spinverse.cell_search.budget import CellSearchBudget, PopulationPlan
from dipy_spinverse.cell_search.cell_operations import CellOperations
from dipy_spinverse.cell_search.descent import Descent, PartialCells
from dipy_spinverse.cell_search.labelled import LabelledCells, Target


class CellObjective(Protocol):
    """Compares the members of a population."""

    def __call__(self, target: Target, cells: LabelledCells) -> float:
        """Misfit of cells."""

    def improved(
        self, target: Target, cells: LabelledCells, rng: np.random.Generator
    ) -> LabelledCells:
        """Cells of a smaller misfit, after changes of labels at the walls."""

    def min_different(self, misfit: float) -> int:
        """Tetrahedra in which members differ at least, given the misfit of the best."""


@dataclass(frozen=True, eq=False)
class Member:
    """Cells of a population, as fitted in volume fractions and as labels, and their misfit."""

    target: Target  # exact for these cells
    partial: PartialCells
    cells: LabelledCells
    misfit: float


@dataclass(frozen=True, eq=False)
class SearchTools:
    """What all voxels of a search share."""

    descend: Descent
    operations: CellOperations
    transmissibility: np.ndarray  # (2,) initial values, of walls and of other faces
    budget: CellSearchBudget


class SearchTask(ABC):
    """What is sought in a voxel."""

    target: Target  # that candidates are compared with

    @property
    @abstractmethod
    def populations(self) -> tuple[PopulationPlan, ...]:
        """Populations that evolve, one after the other."""

    @property
    @abstractmethod
    def ranking(self) -> np.ndarray:
        """Indices of random bodies, the best first."""

    @abstractmethod
    def objective(self, cells: list[LabelledCells]) -> CellObjective:
        """Objective for cells similar to these, of which the first are the best."""

    @abstractmethod
    def progress_measure(self, population: list[Member]) -> float:
        """Distance of the best members from the data, in steps that count as progress."""

    @abstractmethod
    def conclusion(
        self, populations: list[list[Member]], n_draws: int, rng: np.random.Generator
    ) -> tuple[LabelledCells, list[LabelledCells]]:
        """The best cells, and others that explain the data."""

    def jointly_improved(self, member: Member, rng: np.random.Generator) -> LabelledCells | None:
        """Cells after joint changes of several labels, or None where these cannot help."""
        return None

    def solved_by(self, population: list[Member]) -> bool:
        """Whether the search can end."""
        return False

    def hopeless(self, population: list[Member]) -> bool:
        """Whether the best of all cells are too far off for any to explain the data."""
        return False
