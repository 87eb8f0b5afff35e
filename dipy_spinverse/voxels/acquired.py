"""What stands behind the images of voxels."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from dipy.core.gradients import GradientTable


class Acquired(Protocol):
    """What the voxel layer asks of an acquisition of M measurements at K echo times.

    `BaseAcquisition` of diffusion have it, and what a model of other images puts in their place.
    """

    def __len__(self) -> int:
        """M."""

    @property
    def b(self) -> np.ndarray:
        """(M,) diffusion weighting, ms/um^2."""

    @property
    def echo_times(self) -> np.ndarray:
        """(K,) ascending, ms."""

    @property
    def te_index(self) -> np.ndarray:
        """(M,) place in `echo_times` of each measurement."""

    @property
    def b0_per_te(self) -> np.ndarray:
        """(K, M) bool: repeats of the signal without diffusion at each of `echo_times`."""

    @property
    def repeated_b0(self) -> np.ndarray:
        """(R, M) bool: groups of measurements that are repeats of each other."""

    def to_gtab(self) -> GradientTable:
        """As DIPY has it."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, of which `VoxelModel.acquisition_from` makes it again."""
