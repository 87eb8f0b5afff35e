"""What a fit asks of its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from dipy_spinverse.acquisition.amplitudes import labels_of_others


class FittedModel(Protocol):
    """What a fit asks of its model: part of `VoxelModel`."""

    acquisition: Any
    amplitudes: Any = "te"

    def acquisition_of(self, gtab: Any) -> Any:
        """The acquisition that the model needs, from a gradient table."""

    @property
    def prior_maps(self) -> Mapping[str, np.ndarray]:
        """Samples (N,) of maps from the prior, in the units of a fit; none by default."""
        return {}

    @property
    def labelled(self) -> Any:
        """The acquisition, grouped by the labels of `amplitudes` in models that have them."""
        return self.acquisition

    def labels_at(self, acquisition: Any) -> np.ndarray:
        """Index (M,) of the S0 of measurements: that of the same echo time or timing.

        Raises
        ------
        ValueError
            Measurements without a label of the fit.
        """
        labels = self.labelled.te_index
        if labels.max() == 0:
            return np.zeros(len(acquisition), dtype=int)
        return labels_of_others(self.acquisition, labels, self.amplitudes, acquisition)

    def signals_of_fit(self, values: Mapping[str, np.ndarray], acquisition: Any) -> np.ndarray:
        """Signals (V, M) of the most probable parameters relative to those without diffusion."""
        raise NotImplementedError

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Settings of the model in JSON and in arrays, without its acquisition.

        Raises
        ------
        ValueError
            A model with user-defined functions, which cannot be saved.
        """
        raise NotImplementedError
