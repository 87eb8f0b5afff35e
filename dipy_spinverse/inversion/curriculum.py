"""The curriculum: the stages of an inversion, as data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.conversion import require_pulsed
from dipy_spinverse.inversion.priors import WallArea


@dataclass(frozen=True)
class Stage:
    """One stage of an inversion.

    Attributes
    ----------
    diffusion_times : tuple of int or None
        Diffusion times that are used, as ranks from the longest (0); larger ranks than there are
        stand for the shortest. All if None. b0 measurements are always used.
    priors : tuple
        The priors of this stage, see `dipy_spinverse.inversion.priors`.
    max_iterations : int
    tolerance : float
        Relative decrease of the objective in one iteration below which the stage ends.
    initial_value : float or None
        Mean scaled transmissibility of the random initial values of all faces; where None, the
        stage continues from the result of the one before.

    Examples
    --------
    >>> from dipy_spinverse.inversion.priors import WallArea
    >>> Stage(diffusion_times=(0,), priors=(WallArea(0.1),), max_iterations=10)
    Stage(diffusion_times=(0,), priors=(WallArea(weight=0.1),), max_iterations=10,
          tolerance=0.001, initial_value=None)
    """

    diffusion_times: tuple[int, ...] | None = None
    priors: tuple = ()
    max_iterations: int = 10
    tolerance: float = 1e-3
    initial_value: float | None = None

    def measurements(self, acquisition: BaseAcquisition) -> np.ndarray:
        """Mask (M,) of the measurements that are used."""
        if self.diffusion_times is None:
            return np.ones(len(acquisition), dtype=bool)
        times = require_pulsed(acquisition).diffusion_time.round(6)
        weighted = np.unique(times[~acquisition.b0_mask])[::-1]
        ranks = np.minimum(self.diffusion_times, len(weighted) - 1)
        return np.isin(times, weighted[ranks]) | acquisition.b0_mask


# For tissue, from almost open faces: outlines from the long diffusion times with a weak prior; a
# strong prior, which leaves local minima with too many walls; then the final strength. Chosen by
# hand.
DEFAULT_CURRICULUM = (
    Stage(diffusion_times=(0, 1), priors=(WallArea(0.01),), max_iterations=8, initial_value=0.8),
    Stage(priors=(WallArea(0.2),), max_iterations=8),
    Stage(priors=(WallArea(0.1),), max_iterations=10),
)

# For a body in an absorbing box, from almost closed faces: the longest diffusion time opens the
# outside, from which spins are lost, first. Chosen by hand.
CARVING_CURRICULUM = (
    Stage(diffusion_times=(0,), priors=(WallArea(0.1),), max_iterations=15, initial_value=0.15),
    Stage(priors=(WallArea(0.1),), max_iterations=20),
)
