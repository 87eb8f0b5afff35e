"""What lies under every model: images, status, noise, statistics, chunks, fits."""

from dipy_spinverse.voxels.status import Status

__all__ = [
    "Status",
]
