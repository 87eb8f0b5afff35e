"""Several cells that explain noisy data: what is found again when noise and start are others."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.cell_search.descent import Descent, PartialCells
from dipy_spinverse.cell_search.labelled import Cells, Target
from dipy_spinverse.cell_search.probability import Posterior
from dipy_spinverse.threads import in_threads

# How often each finalist is found again, in how many steps, and how far it is disturbed before.
_N_AGAIN, _N_STEPS, _DISTURBANCE = 3, 7, 1.0
# How probable each is found depends on how far the search got, too.
_TEMPERATURE = 30.0


def ensemble(
    posterior: Posterior,
    descend: Descent,
    finalists: list[tuple[Target, Cells]],
    n_samples: int,
    rng: np.random.Generator,
) -> list[Cells]:
    """Draws of cells, by randomized maximum likelihood [1]_.

    Finalists are disturbed and descend to data with further noise. They end in other cells, as
    far as the data do not tell these apart. All are drawn, the more often the more probable they
    are, given the data as measured.

    Parameters
    ----------
    posterior : Posterior
    descend : Descent
    finalists : list of (Target, Cells)
        Of populations that evolved apart.
    n_samples : int
    rng : Generator

    References
    ----------
    .. [1] Chen and Oliver, Math. Geosci. 44 (2012), https://doi.org/10.1007/s11004-011-9376-z
    """

    def found_again(finalist, own_rng):
        target, cells = finalist
        other = target.noisier(own_rng)
        blurred = PartialCells(descend.blurred(cells.labels), cells.leaks)
        partial = descend(other, blurred, own_rng, _N_STEPS, _DISTURBANCE)
        start = other.cells(partial.labels[None], partial.leaks)[0]
        found = posterior.annealed(other, start, own_rng)
        return target.exact_at(found), found

    starts = finalists * _N_AGAIN
    finalists = finalists + in_threads(found_again, starts, rng.spawn(len(starts)))
    values = np.array([posterior(target, cells) for target, cells in finalists])
    weights = np.exp((values - values.max()) / _TEMPERATURE)
    chosen = rng.choice(len(finalists), n_samples, p=weights / weights.sum())
    return [finalists[k][1] for k in chosen]
