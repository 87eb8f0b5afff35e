"""The search in noisy data: cells are compared by their posterior probability."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipy_spinverse.cell_search.budget import InitialBodies, PopulationPlan
from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.descent import Descent
from dipy_spinverse.cell_search.labelled import N_TYPICAL, LabelledCells, Target
from dipy_spinverse.cell_search.member import Member, SearchTools
from dipy_spinverse.cell_search.probability import (
    NegativeLogPosterior,
    Smoothness,
    with_fitted_transmissibility,
)
from dipy_spinverse.threads import in_threads

# Set by hand on the shapes of benchmarks/shapes.py, as is all below without another source.
_MIN_GAIN = 0.5  # of the log posterior, that counts as progress
_N_FINALISTS = 3  # of each population
_N_REFITS = 3  # of each finalist, to other noise
_N_STEPS = 7  # of Gauss-Newton, of a refit
_DISTURBANCE = 1.0  # before a refit, in prior standard deviations of a step
_MIN_DRAWS = 64  # from which the medoid is chosen
_CONSENSUS_TEMPERATURE = 0.3  # initial one, at which the consensus of the draws changes little
# Draws are weighted by their posterior probability to the power 1/30, as their differences depend
# on how far each fit converged; with it wall probabilities are calibrated
# (benchmarks/results/noisy_cells.md).
_TEMPERATURE = 30.0


@dataclass(frozen=True, eq=False)
class NoisyData:
    """Data whose noise hides single tetrahedra."""

    complete: Target
    target: CondensedTarget  # of the same data
    signals: np.ndarray  # (N, M) of random bodies
    tools: SearchTools

    # Different populations may end in different cells that are all plausible.
    populations = (PopulationPlan(InitialBodies.RANDOM, 3),) * 3

    @property
    def ranking(self) -> np.ndarray:
        """Indices of random bodies, the best first."""
        return np.argsort((self.complete.residual_of(self.signals) ** 2).sum(axis=1))

    @cached_property
    def _smoothness(self):
        return Smoothness(self.target.grid)

    def objective(self, cells: list[LabelledCells]) -> NegativeLogPosterior:
        """Objective for cells similar to these, of which the first are the best."""
        return NegativeLogPosterior(self._smoothness, self.target, cells[:N_TYPICAL])

    def progress_measure(self, population: list[Member]) -> float:
        """Minus the log posterior of the best, in steps that count as progress."""
        return population[0].misfit / _MIN_GAIN

    def jointly_improved(self, member: Member, rng: np.random.Generator) -> LabelledCells | None:
        """None: joint changes of labels do not help where noise hides single tetrahedra."""
        return None

    def solved_by(self, population: list[Member]) -> bool:
        """False: a search in noisy data ends without progress only."""
        return False

    def conclusion(
        self, populations: list[list[Member]], n_draws: int, rng: np.random.Generator
    ) -> tuple[LabelledCells, list[LabelledCells]]:
        """Cells that most draws from the posterior share, and such draws."""
        members = [m for population in populations for m in population[:_N_FINALISTS]]
        members.sort(key=lambda member: member.misfit)
        objective = self.objective([member.cells for member in members])
        finalists = [(member.target, member.cells) for member in members]
        n_all = max(n_draws, _MIN_DRAWS)
        draws = posterior_ensemble(objective, self.tools.descend, finalists, n_all, rng)
        typical = medoid(draws, self.tools.operations.reflected)
        # The consensus is closer to the truth than the medoid, if it explains the data, too.
        consensus = self._consensus(draws, typical)
        consensus = objective.improved(
            self.target.exact_at(consensus), consensus, rng, _CONSENSUS_TEMPERATURE
        )
        typical, consensus = (
            with_fitted_transmissibility(
                self.complete, self.complete.cells(x.labels[None], x.transmissibility)[0]
            )
            for x in (typical, consensus)
        )
        limit = self.complete.reduced_chi_square(typical) + self.complete.chi_square_tolerance
        best = consensus if self.complete.reduced_chi_square(consensus) < limit else typical
        return best, draws[:n_draws]

    def _consensus(self, draws, reference):
        """Cells of the tetrahedra inside in most draws, reflected to the side of a reference."""
        labels = np.array([cells.labels for cells in draws])
        reflected = labels[:, self.tools.operations.reflected]
        overlap, overlap_reflected = (
            (x & reference.labels).sum(axis=1) for x in (labels, reflected)
        )
        to_reflect = (overlap_reflected > overlap)[:, None]
        majority = np.where(to_reflect, reflected, labels).mean(axis=0) > 0.5
        if not majority.any():
            return reference
        return self.target.cells(majority[None], reference.transmissibility)[0]


def posterior_ensemble(
    objective: NegativeLogPosterior,
    descend: Descent,
    finalists: list[tuple[Target, LabelledCells]],
    n_draws: int,
    rng: np.random.Generator,
) -> list[LabelledCells]:
    """Draws of cells by randomized maximum likelihood, https://doi.org/10.1007/s11004-011-9376-z:
    finalists refitted to data with further noise, with tempered posterior weights."""

    def refitted(finalist, rng):
        target, cells = finalist
        noisier = target.noisier(rng)
        initial = descend.blurred(cells.labels, cells.transmissibility)
        partial = descend(noisier, initial, rng, _N_STEPS, _DISTURBANCE)
        candidate = noisier.cells(partial.labels[None], partial.transmissibility)[0]
        candidate = objective.improved(noisier, candidate, rng)
        return target.exact_at(candidate), candidate

    initial = finalists * _N_REFITS
    candidates = finalists + in_threads(refitted, initial, rng.spawn(len(initial)))
    costs = np.array([objective(target, cells) for target, cells in candidates])
    weights = np.exp((costs.min() - costs) / _TEMPERATURE)
    indices = rng.choice(len(candidates), n_draws, p=weights / weights.sum())
    return [candidates[k][1] for k in indices]


def medoid(cells: list[LabelledCells], reflected: np.ndarray) -> LabelledCells:
    """Cells of the largest total Dice overlap with all others, up to reflection (T,)."""
    labels = np.array([state.labels for state in cells]).astype(float)
    common = np.maximum(labels @ labels.T, labels @ labels[:, reflected].T)
    sizes = labels.sum(axis=1)
    overlap = 2 * common / (sizes[:, None] + sizes)
    return cells[overlap.sum(axis=1).argmax()]
