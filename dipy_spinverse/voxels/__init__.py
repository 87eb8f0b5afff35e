"""Common base of all models: images, status, noise, statistics, chunks, fits."""

from dipy_spinverse.voxels.status import Status

__all__ = [
    "Status",
]
