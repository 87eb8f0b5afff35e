"""The noise level that a learner is told."""

from __future__ import annotations

import warnings

import numpy as np

from dipy_spinverse.compartments.learned.features import Encoder
from dipy_spinverse.voxels.noise import noise_from_b0


def estimated_noise(data: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Standard deviation (V,) from repeated b0 and from what is beyond the harmonics.

    Parameters
    ----------
    data : ndarray (V, M)
    encoder : Encoder

    Raises
    ------
    ValueError
        Too few measurements to tell.
    """
    b0 = encoder.acquisition.b0_mask
    squares, freedom = encoder.noise(data)
    if b0.any():
        of_b0, freedom_b0 = noise_from_b0(data[:, b0], encoder.acquisition.subset(b0))
        if of_b0 is not None:
            squares, freedom = squares + freedom_b0 * of_b0**2, freedom + freedom_b0
    if not (freedom > 0).all():
        raise ValueError(
            "sigma is needed: there are too few repeated b0 measurements to estimate the noise, "
            f"and too few directions at low b in {(freedom == 0).sum()} voxels."
        )
    return np.sqrt(squares / freedom)


def warn_of_noise(noise: np.ndarray, snr: tuple[float, float]) -> None:
    """Warn of noise (V,), over the signal without diffusion, that was not learned."""
    outside = (noise > 1.1 / snr[0]) | (noise < 0.9 / snr[1])
    if outside.any():
        warnings.warn(
            f"{outside.sum()} of {len(noise)} voxels have a signal-to-noise ratio outside of "
            f"{snr[0]:g} to {snr[1]:g}, for which this learner was trained; train one with a "
            "wider snr, or fit these voxels.",
            stacklevel=3,
        )
