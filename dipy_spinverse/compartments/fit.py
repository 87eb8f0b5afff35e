"""CompartmentFit: the maps of a compartment model, and how sure they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dipy_spinverse.voxels.fit import VoxelFit

if TYPE_CHECKING:
    from dipy_spinverse.compartments.model import CompartmentModel


class CompartmentFit(VoxelFit):
    """What :meth:`CompartmentModel.fit` found; see :class:`VoxelFit` for what a map has.

    Attributes
    ----------
    MAPS : tuple of str
        Those of the model, and S0 (in the units of the data).
    n_fibres : ndarray (...) of int
        Fibre populations that were fitted.
    axis : ndarray (..., 3)
        Of the largest population.
    axes : ndarray (..., 3, 3)
        Of up to three populations, as rows, largest first; zero beyond `n_fibres`.
    fibre_fractions : ndarray (..., 3)
        Their shares of the signal, likeliest; with draws also `fibre_fractions_std`, `_low` and
        `_high`.
    axes_cone : ndarray (..., 3)
        Angle about each axis that holds 95 % of its draws, degrees.
    S0_per_te : ndarray (..., K)
        Signal without diffusion at each echo time.
    effective_draws : ndarray (...)
        Effective number of posterior draws; intervals with less than 20 are rough.
    """

    def __init__(self, model: CompartmentModel, status: np.ndarray, values: dict[str, np.ndarray]):
        super().__init__(model, status, values)
        self.MAPS = (*model.definition.maps, "S0")
