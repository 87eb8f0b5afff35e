"""TissueFractionFit: maps of tissue fractions and their uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dipy_spinverse.voxels.fit import VoxelFit

if TYPE_CHECKING:
    from dipy_spinverse.tissue_fractions.model import TissueFractionModel


class TissueFractionFit(VoxelFit):
    """Result of :meth:`TissueFractionModel.fit`; see :class:`VoxelFit` for the maps.

    ``fit.model.tissues`` are the tissues with the constants that were used, estimated if they
    were unknown.

    Attributes
    ----------
    MAPS : tuple of str
        Names of the tissues, and "background", which has no signal.
    S0 : ndarray (...)
        Signal of water of unit magnetisation: proton-density scale times receive sensitivity.
    b1 : ndarray (...)
        Transmit field over the nominal one, known or estimated.
    widest_std : ndarray (...)
        Standard deviation of the least determined combination of tissues. Above 0.29, that of a
        uniform fraction, the status is `TISSUES_NOT_SEPARATED`.
    """

    def __init__(
        self, model: TissueFractionModel, status: np.ndarray, values: dict[str, np.ndarray]
    ):
        super().__init__(model, status, values)
        self.MAPS = model.maps
