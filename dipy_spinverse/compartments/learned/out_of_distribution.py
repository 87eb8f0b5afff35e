"""Warnings of voxels unlike those that a learner has seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.voxels.image import Image
from dipy_spinverse.voxels.status import Status

_N_LOOKED_AT = 2000  # voxels that tell whether an image is like the training
_MARGIN = 0.05  # of the range of the training
_MANY = 0.05  # of the voxels


def warn_if_noise_differs(noise: np.ndarray, snr: tuple[float, float]) -> None:
    """Warn of noise (V,), over the signal without diffusion, outside of what was learned."""
    low, high = snr
    outside = (noise > 1.1 / low) | (noise < 0.9 / high)
    if outside.any():
        warnings.warn(
            f"{outside.sum()} of {len(noise)} voxels have a signal-to-noise ratio outside of "
            f"{low:g} to {high:g}, for which this learner was trained; train one with a "
            "wider snr, or fit these voxels.",
            stacklevel=3,
        )


def warn_if_out_of_distribution(
    image: Image,
    status: np.ndarray,
    acquisition: BaseAcquisition,
    encoder: Callable,
    scaling: Mapping[str, np.ndarray],
) -> None:
    """Warn of signals that are not like any of the training, or that it does not explain."""
    there = image.status == Status.CONVERGED
    voxels = image.voxels.over_S0()
    chosen = voxels[:: -(-len(voxels) // _N_LOOKED_AT)] if len(voxels) else voxels
    if not len(chosen):
        return
    noise = np.asarray(chosen.sigma)[:, None] / chosen.S0
    features, _ = encoder(chosen.signals / chosen.S0[:, acquisition.te_index], noise)
    low, high = scaling["x_low"], scaling["x_high"]
    margin = _MARGIN * (high - low)
    strange = (features < low - margin) | (features > high + margin)
    outside, misfit = strange.any(axis=1).mean(), (status[there] == Status.MISFIT).mean()
    if max(outside, misfit) > _MANY:
        warnings.warn(
            f"About {100 * outside:.0f} % of the voxels are unlike all that this learner has "
            f"seen, {100 * misfit:.0f} % are MISFIT: b-values, noise or tissue differ from "
            "those of its training. Fit these voxels, or train for this acquisition.",
            stacklevel=3,
        )
