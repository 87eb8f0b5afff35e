"""Warnings about voxels outside of the distribution of the training set."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.learned.features import FeatureEncoder
from dipy_spinverse.compartments.learned.learner import Scaling
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.image import Image
from dipy_spinverse.voxels.status import Status

# Chosen by hand; they decide only whether there is a warning.
_MAX_VOXELS = 2000  # a sample of the image that shows whether it is like the training set
_MARGIN = 0.05  # of the range of a feature
_WARNING_SHARE = 0.05  # of the voxels
_SNR_MARGIN = 0.1


def warn_if_noise_differs(noise: np.ndarray, snr: tuple[float, float]) -> None:
    """Warn of noise (V,), over the signal without diffusion, outside of the range of training."""
    low, high = snr
    outside = (noise > (1 + _SNR_MARGIN) / low) | (noise < (1 - _SNR_MARGIN) / high)
    if outside.any():
        warn(
            f"{outside.sum()} of {len(noise)} voxels have a signal-to-noise ratio outside of "
            f"{low:g} to {high:g}, for which this learner was trained; train one with a "
            "wider snr, or fit these voxels."
        )


def warn_if_out_of_distribution(
    image: Image,
    status: np.ndarray,
    acquisition: BaseAcquisition,
    encoder: FeatureEncoder,
    scaling: Scaling,
) -> None:
    """Warn of many voxels with a feature beyond the range of training, or with a misfit."""
    voxels = image.voxels.over_S0()
    sample = voxels[:: -(-len(voxels) // _MAX_VOXELS)] if len(voxels) else voxels
    if not len(sample):
        return
    noise = np.asarray(sample.sigma)[:, None] / sample.S0
    features, _ = encoder(sample.signals / sample.S0[:, acquisition.te_index], noise)
    margin = _MARGIN * (scaling.maximum - scaling.minimum)
    is_outside = (features < scaling.minimum - margin) | (features > scaling.maximum + margin)
    outside = is_outside.any(axis=1).mean()
    misfit = (status[image.status == Status.CONVERGED] == Status.MISFIT).mean()
    if max(outside, misfit) > _WARNING_SHARE:
        warn(
            f"About {100 * outside:.0f} % of the voxels are outside of the distribution of the "
            f"training set, {100 * misfit:.0f} % are MISFIT: b-values, noise or tissue differ "
            "from those of the training. Fit these voxels, or train for this acquisition."
        )
