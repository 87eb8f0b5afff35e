"""What every model has: an acquisition, its class of fits, and settings to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from dipy.core.gradients import GradientTable
from dipy.reconst.base import ReconstModel
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import Measurements, measurements_of
from dipy_spinverse.voxels.fit import VoxelFit


class VoxelModel(ReconstModel):
    """A model of the signals of voxels.

    A subclass fits by :func:`dipy_spinverse.voxels.chunks.fit_image`, to which it gives a
    function from a chunk of voxels to named arrays, and says

    - `Fit`, the class of its fits,
    - `signals_of_fit`, the signals (V, M) of the values of a fit over those without diffusion,
    - `settings`, the arguments by which `from_settings` makes it again.

    Parameters
    ----------
    gtab : GradientTable or Measurements
    te : float or array-like (M,), optional
        Echo times, s, where `gtab` is a GradientTable.

    Attributes
    ----------
    acquisition : Measurements
    """

    Fit: ClassVar[type[VoxelFit]] = VoxelFit
    acquisition: Measurements

    def __init__(self, gtab: GradientTable | Measurements, te: ArrayLike | None = None):
        self.acquisition = self.acquisition_of(gtab, te)

    @property
    def gtab(self) -> GradientTable:
        """The acquisition as DIPY has it."""
        return self.acquisition.to_gtab()

    def acquisition_of(
        self, gtab: GradientTable | Measurements, te: ArrayLike | None = None
    ) -> Measurements:
        """What `gtab` says of measurements, as far as the model needs it."""
        return measurements_of(gtab, te)

    def signals_of_fit(
        self, values: Mapping[str, np.ndarray], acquisition: Measurements
    ) -> np.ndarray:
        """Signals (V, M) of the likeliest parameters over those without diffusion."""
        raise NotImplementedError

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """What JSON holds of the model, and what arrays do, beside its acquisition.

        Raises
        ------
        ValueError
            A model with parts of one's own, which no file can hold.
        """
        raise NotImplementedError

    @classmethod
    def from_settings(
        cls, acquisition: Measurements, settings: dict, arrays: Mapping[str, np.ndarray]
    ) -> VoxelModel:
        """The model of :meth:`settings`."""
        return cls(acquisition, **settings)
