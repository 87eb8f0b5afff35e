"""TissueFractionFit: maps of tissue fractions, and how sure they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dipy_spinverse.voxels.fit import VoxelFit

if TYPE_CHECKING:
    from dipy_spinverse.tissue_fractions.model import TissueFractionModel


class TissueFractionFit(VoxelFit):
    """What :meth:`TissueFractionModel.fit` found; see :class:`VoxelFit` for what a map has.

    ``fit.model.tissues`` are the tissues with the constants that were used, estimated where they
    were unknown.

    Attributes
    ----------
    MAPS : tuple of str
        Names of the tissues, and "background": what gives no signal.
    S0 : ndarray (...)
        Signal of water of unit magnetisation: proton-density scale times receive sensitivity.
    b1 : ndarray (...)
        Transmit field over the nominal one, given or estimated.
    widest_std : ndarray (...)
        Standard deviation that the contrasts leave to the mixture of tissues that they tell
        least about. Where it is above 0.29, that of a fraction of which nothing is known, the
        status is `TISSUES_NOT_SEPARATED`.
    """

    def __init__(
        self, model: TissueFractionModel, status: np.ndarray, values: dict[str, np.ndarray]
    ):
        super().__init__(model, status, values)
        self.MAPS = model.maps
