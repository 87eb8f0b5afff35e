"""Several cells that explain noisy data: what is found again when noise and start are others."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.descent import Descent
from dipy_spinverse.cell_search.effort import DrawEffort
from dipy_spinverse.cell_search.labelled import LabelledCells, Target
from dipy_spinverse.cell_search.probability import LogProbability
from dipy_spinverse.threads import in_threads

# How far finalists are disturbed, in prior standard deviations of a step.
_DISTURBANCE = 1.0
# Of the log probability: how probable each is found depends on how far the search got, too. For
# the calibration of benchmarks/noisy_cells.py.
_TEMPERATURE = 30.0


def posterior_ensemble(
    probability: LogProbability,
    descend: Descent,
    finalists: list[tuple[Target, LabelledCells]],
    n_draws: int,
    rng: np.random.Generator,
    effort: DrawEffort,
) -> list[LabelledCells]:
    """Draws of cells, by randomized maximum likelihood [1]_.

    Finalists are disturbed and descend to data with further noise. They end in other cells, as
    far as the data do not tell these apart. All are drawn, the more often the more probable they
    are, given the data as measured.

    References
    ----------
    .. [1] Chen and Oliver, Math. Geosci. 44 (2012), https://doi.org/10.1007/s11004-011-9376-z
    """

    def found_again(finalist, own_rng):
        target, cells = finalist
        other = target.noisier(own_rng)
        start = descend.blurred(cells.labels, cells.leaks)
        partial = descend(other, start, own_rng, effort.n_steps, _DISTURBANCE)
        start = other.cells(partial.labels[None], partial.leaks)[0]
        found = probability.annealed(other, start, own_rng)
        return target.exact_at(found), found

    starts = finalists * effort.n_again
    finalists = finalists + in_threads(found_again, starts, rng.spawn(len(starts)))
    values = np.array([probability(target, cells) for target, cells in finalists])
    weights = np.exp((values - values.max()) / _TEMPERATURE)
    chosen = rng.choice(len(finalists), n_draws, p=weights / weights.sum())
    return [finalists[k][1] for k in chosen]
