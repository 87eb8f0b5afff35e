"""Data of a voxel, and the errors that its measurements share: of S0 and of the diffusivity."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

# Standard deviation of an unknown scale about its first estimate, to linearise its effect; wide
# enough that the data determine it.
SCALE_SD = 0.05


@dataclass(frozen=True, eq=False)
class VoxelData:
    """Signals of a voxel over its initial magnetisation, as far as that is known.

    Attributes
    ----------
    data, sigma : ndarray (M,)
        And standard deviations of their errors.
    rician_sigma : ndarray (M,)
        Noise level that biases the mean of magnitude data; 0 for none.
    scale_of : ndarray (K, M) of bool
        Measurements of each unknown scale; none where S0 is known.
    """

    data: np.ndarray
    sigma: np.ndarray
    rician_sigma: np.ndarray
    scale_of: np.ndarray

    @property
    def unbiased(self) -> np.ndarray:
        """Data (M,) corrected for the Rician bias of their second moment."""
        return np.sqrt((self.data**2 - self.rician_sigma**2).clip(0))

    def over(self, scales: np.ndarray) -> VoxelData:
        """The data over scales (K,)."""
        scale = self.scale(scales)
        return replace(
            self,
            data=self.data / scale,
            sigma=self.sigma / scale,
            rician_sigma=self.rician_sigma / scale,
        )

    def scale(self, scales: np.ndarray) -> np.ndarray:
        """Scale (M,) of each measurement, of scales (K,)."""
        return np.where(self.scale_of.any(axis=0), scales @ self.scale_of, 1.0)

    @property
    def scale_errors(self) -> np.ndarray:
        """Changes (K, M) of the data by a standard deviation of each unknown scale."""
        return SCALE_SD * self.scale_of * self.unbiased
