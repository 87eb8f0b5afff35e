"""The search in data without noise, or nearly: cells are judged by how many labels are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.cell_search.effort import FlipEffort, PopulationPlan
from dipy_spinverse.cell_search.joint_changes import jointly_improved
from dipy_spinverse.cell_search.labelled import (
    N_TYPICAL,
    LabelledCells,
    Misfit,
    SimulatedCells,
    Target,
    label_changes,
)
from dipy_spinverse.cell_search.local_search import locally_improved
from dipy_spinverse.cell_search.protocols import Member, Tools

# Chosen on the shapes of benchmarks/shapes.py.
_BODY_ERROR = 1e-4  # of random bodies as descriptions of cells, over the initial magnetisation
_NOT_EXPLAINED = 0.3  # error of what single flips do not explain, relative to the residual
_NEAR = 1 / 64  # misfit per measurement up to which cells are nearly right
_APART = 3  # tetrahedra in which members differ, where the best are nearly right
_FAR_APART = 12  # elsewhere
# Residual, over the initial magnetisation of a tetrahedron, beyond which no cells of the lattice
# explain the data. Measured after a first population: 1.2 for three balls of the lattice that are
# found late, 4.8 for a ring off the lattice.
_FAR_OFF = 3.0
_LEAST_GAIN = 0.1  # that a round should bring, of the mean squared residual, relative to it


@dataclass(frozen=True, eq=False)
class ExactData:
    """Data of which some measurements serve the search, and all its end."""

    complete: Target
    target: Target  # the same of the measurements that serve the search
    library: SimulatedCells  # random bodies, as this target measures them
    tools: Tools

    @property
    def populations(self) -> tuple[PopulationPlan, ...]:
        """Those that evolve, one after the other."""
        return self.tools.effort.exact_populations

    @property
    def ranked_library(self) -> np.ndarray:
        """Indices of random bodies, the best first."""
        misfit = self._misfit(self.target, self.library.labels[:N_TYPICAL], _BODY_ERROR)
        expected = self.target.expected(self.library.signals)
        return np.argsort(misfit(self.target.data / self.target.sigma - expected))

    def judge(self, cells: list[LabelledCells]) -> WrongLabels:
        """A judge of cells like some, the first of which are the best."""
        typical = cells[:N_TYPICAL]
        size = np.sqrt(min(self.target.chi_square(state) for state in typical))
        error = _NOT_EXPLAINED * size * np.median(self.target.sigma)
        return self.judge_with_error([state.labels for state in typical], error)

    def judge_with_error(self, labels, error: float) -> WrongLabels:
        """A judge of cells like the first of labels (N, T), whose signals have an error."""
        misfit = self._misfit(self.target, labels[:N_TYPICAL], error)
        return WrongLabels(misfit, self.tools.effort.flips)

    def jointly_improved(self, member: Member, rng: np.random.Generator) -> LabelledCells | None:
        """Cells that are nearly right, after flips of several tetrahedra at once; or None."""
        if not _nearly_right(member.misfit, len(self.target.data)):
            return None

        def misfit_at(cells):
            return self.judge([cells]).misfit

        return jointly_improved(
            member.target, member.cells, misfit_at, rng, self.tools.effort.flips
        )

    def solved_by(self, population: list[Member]) -> bool:
        """Whether the best residual is no more than errors of the data."""
        return any(self.target.explained_by(member.cells) for member in population)

    def hopeless(self, population: list[Member]) -> bool:
        """Whether the best are so far off that no cells of the lattice explain the data."""
        least = min(self.target.chi_square(member.cells) for member in population)
        beyond = (least - 1) * np.median(self.target.sigma) ** 2
        return beyond > (_FAR_OFF / len(self.target.grid.volumes)) ** 2

    def distance(self, population: list[Member]) -> float:
        """Logarithm of the least residual, in steps that count as progress."""
        least = min(self.target.chi_square(member.cells) for member in population)
        return np.log(least) / _LEAST_GAIN

    def conclusion(
        self, populations: list[list[Member]], n_draws: int, rng: np.random.Generator
    ) -> tuple[LabelledCells, list[LabelledCells]]:
        """The best cells, by all measurements, and others that explain the data."""
        found = [member.cells for population in populations for member in population]
        judge = self.judge(sorted(found, key=self.target.chi_square))
        # The same labels may come with other leaks, which the judge does not see.
        found = [x for x in found if self.target.explained_by(x)] or found
        found.sort(key=lambda x: judge(self.target, x))
        finished = [self._finished(cells) for cells in found[: self.tools.effort.flips.n_finished]]
        # Cells that are far apart hardly tell on which side of the box the others are.
        for labels in self.tools.changes.mirrored_in_part(finished[0].labels):
            finished += self.complete.cells(labels[None], finished[0].leaks)
        explained = [x for x in finished if self.complete.explained_by(x)]
        equals = sorted(explained, key=self.complete.chi_square) or finished
        return equals[0], [equals[k] for k in rng.integers(len(equals), size=n_draws)]

    def _finished(self, cells):
        """Cells after flips by all measurements."""
        cells = self.complete.cells(cells.labels[None], cells.leaks)[0]
        misfit = self._misfit(self.complete, [cells.labels], 0.0)
        return locally_improved(self.complete, cells, misfit, self.tools.effort.flips)

    def _misfit(self, target, some_labels, error):
        scale = max(error / np.median(target.sigma), 1.0)
        flips = [label_changes(target, labels, self.tools.leaks) for labels in some_labels]
        return Misfit(flips, scale, self.tools.effort.wrong_labels)


@dataclass(frozen=True, eq=False)
class WrongLabels:
    """Judges cells by the misfit that counts wrong labels."""

    misfit: Misfit
    effort: FlipEffort

    def __call__(self, target: Target, cells: LabelledCells) -> float:
        """How far cells are off."""
        return self.misfit(target.residual(cells)[None])[0]

    def improved(
        self, target: Target, cells: LabelledCells, rng: np.random.Generator
    ) -> LabelledCells:
        """Cells after flips that bring them closer to the data."""
        return locally_improved(target, cells, self.misfit, self.effort)

    def least_apart(self, best: float) -> int:
        """Tetrahedra in which members differ at least: fewer, the fewer are wrong."""
        return _APART if _nearly_right(best, len(self.misfit.root)) else _FAR_APART


def _nearly_right(misfit, n_measurements):
    return misfit <= _NEAR * n_measurements
