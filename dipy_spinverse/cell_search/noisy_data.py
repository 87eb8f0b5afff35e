"""The search in noisy data: cells are judged by their probability."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.descent import Descent
from dipy_spinverse.cell_search.ensemble import ensemble
from dipy_spinverse.cell_search.labelled import Cells, Target
from dipy_spinverse.cell_search.probability import Posterior, with_likeliest_leaks
from dipy_spinverse.cell_search.smoothness import Smoothness

_N_TYPICAL, _APART = 3, 6
# Finalists of each population, and samples of which the most typical is chosen.
_N_FINALISTS, _N_TO_CHOOSE = 3, 64
# Of the log probability, that a round should bring.
_LEAST_GAIN = 0.5
# Temperature from which what most samples share is annealed: to small changes only.
_WARM = 0.3


class NoisyData:
    """Data whose noise hides single tetrahedra.

    Parameters
    ----------
    complete : Target
    target : CondensedTarget
        Of the same data.
    signals : ndarray (N, M)
        Of a library of random bodies.
    descend : Descent
    mirrored : ndarray (T,)
        The tetrahedron that each is reflected to.
    """

    # What populations start from, and after how many rounds in vain each ends; what different ones
    # find may all be right.
    populations = (("random", 3),) * 3

    def __init__(
        self, complete: Target, target: CondensedTarget, signals, descend: Descent, mirrored
    ):
        self._complete, self.target, self._descend = complete, target, descend
        residuals = complete.data / complete.sigma - complete.expected(signals)
        self.ranked_library = np.argsort((residuals**2).sum(axis=1))
        self._smoothness, self._mirrored = Smoothness(target.grid), mirrored

    def judge(self, cells: list[Cells]) -> Improbability:
        """A judge of cells like some, the first of which are the best."""
        return Improbability(Posterior(self._smoothness, self.target, cells[:_N_TYPICAL]))

    def solved_by(self, population) -> bool:
        """Never: other populations may find cells that are as probable."""
        return False

    def distance(self, population) -> float:
        """How improbable the best are, in steps that count as progress."""
        return population[0].misfit / _LEAST_GAIN

    def conclusion(self, populations, n_samples: int, rng) -> tuple[Cells, list[Cells]]:
        """The most typical of probable cells, and others in proportion to their probability."""
        members = sorted(
            (member for population in populations for member in population[:_N_FINALISTS]),
            key=lambda member: member.misfit,
        )
        typical = [member.cells for member in members[:_N_TYPICAL]]
        posterior = Posterior(self._smoothness, self.target, typical)
        finalists = [(member.target, member.cells) for member in members]
        number = max(n_samples, _N_TO_CHOOSE)
        samples = ensemble(posterior, self._descend, finalists, number, rng)
        typical = most_typical(samples, self._mirrored)
        # What most samples share is closer to the truth, if it explains the data, too.
        shared = self._shared_by_most(samples, typical)
        shared = posterior.annealed(self.target.exact_at(shared), shared, rng, _WARM)
        typical, shared = (
            with_likeliest_leaks(self._complete, self._complete.cells(x.labels[None], x.leaks)[0])
            for x in (typical, shared)
        )
        most = self._complete.chi_square(typical) + self._complete.chance
        best = shared if self._complete.chi_square(shared) < most else typical
        return best, samples[:n_samples]

    def _shared_by_most(self, samples, reference):
        """Cells of those tetrahedra that are inside in most samples, all on the same side."""
        labels = np.array([cells.labels for cells in samples])
        reflected = labels[:, self._mirrored]
        common, common_turned = ((x & reference.labels).sum(axis=1) for x in (labels, reflected))
        turned = (common_turned > common)[:, None]
        shared = np.where(turned, reflected, labels).mean(axis=0) > 0.5
        return self.target.cells(shared[None], reference.leaks)[0] if shared.any() else reference


def most_typical(cells: list[Cells], mirrored: np.ndarray) -> Cells:
    """Those of some cells that overlap most with all others, up to point reflection.

    Parameters
    ----------
    cells : list of Cells
    mirrored : ndarray (T,)
        The tetrahedron that each is reflected to.
    """
    labels = np.array([state.labels for state in cells]).astype(float)
    common = np.maximum(labels @ labels.T, labels @ labels[:, mirrored].T)
    sizes = labels.sum(axis=1)
    overlap = 2 * common / (sizes[:, None] + sizes)
    return cells[overlap.sum(axis=1).argmax()]


class Improbability:
    """Judges cells by their probability, given the data."""

    def __init__(self, posterior: Posterior):
        self._posterior = posterior

    def __call__(self, target: Target, cells: Cells) -> float:
        """Minus the log probability of cells."""
        return -self._posterior(target, cells)

    def improved(self, target: Target, cells: Cells, rng: np.random.Generator) -> Cells:
        """More probable cells."""
        return self._posterior.annealed(target, cells, rng)

    def least_apart(self, best: float) -> int:
        """Tetrahedra in which the members of a population differ at least."""
        return _APART

    def nearly_right(self, misfit: float) -> bool:
        """Never so that more flips would tell: noise hides what is left."""
        return False
