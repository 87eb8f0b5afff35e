"""The search in data (almost) without noise: cells are compared by their wrong labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.cell_search.budget import EXACT_CYCLE, PopulationPlan
from dipy_spinverse.cell_search.joint_changes import jointly_improved
from dipy_spinverse.cell_search.labelled import (
    N_TYPICAL,
    LabelledCells,
    SimulatedCells,
    Target,
    label_changes,
)
from dipy_spinverse.cell_search.local_search import NEARLY_CORRECT, LabelErrorMisfit
from dipy_spinverse.cell_search.member import Member, SearchTools

# Set by hand on the shapes of benchmarks/shapes.py, as is all below without another source.
_BODY_ERROR = 1e-4  # of random bodies as models of cells, over the initial magnetisation
_UNEXPLAINED = 0.3  # error that single label changes leave, relative to the residual
_N_FINISHED = 3  # cells that are improved by all measurements
# Root mean square residual, over the initial magnetisation of one tetrahedron, above which no
# cells of the lattice explain the data. Measured after a first population: 1.2 for three balls on
# the lattice that are recovered late, 4.8 for a ring off the lattice
# (benchmarks/notes/walls_off_grid.md).
_HOPELESS_RESIDUAL = 3.0
_MIN_RELATIVE_GAIN = 0.1  # of the mean squared residual, that counts as progress


@dataclass(frozen=True, eq=False)
class ExactData:
    """Data of which some measurements serve the search, and all its conclusion."""

    complete: Target
    target: Target  # the same, of the measurements that serve the search
    library: SimulatedCells  # random bodies, simulated for this target
    tools: SearchTools

    @property
    def populations(self) -> tuple[PopulationPlan, ...]:
        """Populations that evolve, one after the other."""
        return EXACT_CYCLE * self.tools.budget.n_cycles

    @property
    def ranking(self) -> np.ndarray:
        """Indices of random bodies, the best first."""
        misfit = self._misfit(self.target, self.library.labels[:N_TYPICAL], _BODY_ERROR)
        return np.argsort(misfit.of_residuals(self.target.residual_of(self.library.signals)))

    def objective(self, cells: list[LabelledCells]) -> LabelErrorMisfit:
        """Objective for cells similar to these, of which the first are the best."""
        typical = cells[:N_TYPICAL]
        size = np.sqrt(min(self.target.reduced_chi_square(state) for state in typical))
        error = _UNEXPLAINED * size * np.median(self.target.sigma)
        return self.objective_with_error([state.labels for state in typical], error)

    def objective_with_error(self, labels, error: float) -> LabelErrorMisfit:
        """Objective for cells similar to the first of labels (N, T), given their signal error."""
        return self._misfit(self.target, labels[:N_TYPICAL], error)

    def jointly_improved(self, member: Member, rng: np.random.Generator) -> LabelledCells | None:
        """Nearly correct cells after joint changes of several labels, or None."""
        if member.misfit > NEARLY_CORRECT * len(self.target.data):
            return None

        def misfit_at(cells):
            return self.objective([cells])

        return jointly_improved(member.target, member.cells, misfit_at, rng)

    def solved_by(self, population: list[Member]) -> bool:
        """Whether the smallest residual is consistent with the errors of the data."""
        return any(self.target.explained_by(member.cells) for member in population)

    def hopeless(self, population: list[Member]) -> bool:
        """Whether the best are so far off that no cells of the lattice explain the data."""
        least = min(self.target.reduced_chi_square(member.cells) for member in population)
        mean_square = (least - 1) * np.median(self.target.sigma) ** 2
        return mean_square > (_HOPELESS_RESIDUAL / len(self.target.grid.volumes)) ** 2

    def progress_measure(self, population: list[Member]) -> float:
        """Logarithm of the smallest residual, in steps that count as progress."""
        least = min(self.target.reduced_chi_square(member.cells) for member in population)
        return np.log(least) / _MIN_RELATIVE_GAIN

    def conclusion(
        self, populations: list[list[Member]], n_draws: int, rng: np.random.Generator
    ) -> tuple[LabelledCells, list[LabelledCells]]:
        """The best cells, by all measurements, and others that explain the data."""
        cells = [member.cells for population in populations for member in population]
        objective = self.objective(sorted(cells, key=self.target.reduced_chi_square))
        # The objective is insensitive to transmissibilities, in which the same labels can differ.
        cells = [x for x in cells if self.target.explained_by(x)] or cells
        cells.sort(key=lambda x: objective(self.target, x))
        finished = [self._finished(x) for x in cells[:_N_FINISHED]]
        # Signals hardly depend on the side of the box on which each of several distant cells is.
        single_cells = self.tools.operations.connected_cells(finished[0].labels)
        for labels in self.tools.operations.with_reflections(single_cells)[1:]:
            finished += self.complete.cells(labels[None], finished[0].transmissibility)
        explained = [x for x in finished if self.complete.explained_by(x)]
        equivalent = sorted(explained, key=self.complete.reduced_chi_square) or finished
        indices = rng.integers(len(equivalent), size=n_draws)
        return equivalent[0], [equivalent[k] for k in indices]

    def _finished(self, cells):
        """Cells after label changes by all measurements."""
        cells = self.complete.cells(cells.labels[None], cells.transmissibility)[0]
        return self._misfit(self.complete, [cells.labels], 0.0).improved(self.complete, cells)

    def _misfit(self, target, typical_labels, error):
        scale = max(error / np.median(target.sigma), 1.0)
        transmissibility = self.tools.transmissibility
        changes = [label_changes(target, labels, transmissibility) for labels in typical_labels]
        return LabelErrorMisfit(changes, scale)
