"""Images and masks from NIfTI files: opened without being read, checked before they are used."""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from dipy_spinverse.voxels.image import wanted_voxels
from dipy_spinverse.voxels.memory import check_memory

# What nibabel raises for damaged and foreign files.
_DAMAGED = (
    ImageFileError, HeaderDataError, EOFError, zlib.error, ValueError, TypeError, KeyError,
    IndexError, OverflowError, AttributeError, NotImplementedError,
)  # fmt: skip
# Compression makes files at most so many times smaller (zlib's own bound).
_MOST_COMPRESSED = 1040
# Of a voxel's edge, by which corners of two images may be apart and yet be the same place.
_SAME_PLACE = 0.1


class StoredImage:
    """An image in a file, of which only what is asked for is read.

    It is indexed like an array, best volume by volume along the last axis.

    Parameters
    ----------
    path : str or Path
    name : str
        Argument of which messages speak.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy dtype
        In the file.
    affine : ndarray (4, 4)

    Raises
    ------
    ValueError
        No image, a truncated one, one without a place in space.

    Examples
    --------
    >>> import tempfile, nibabel, numpy as np
    >>> path = tempfile.mkdtemp() + "/dwi.nii.gz"
    >>> nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 1, 30), np.float32), np.eye(4)), path)
    >>> image = StoredImage(path, "data")
    >>> image.shape, image[..., 29].mean()
    ((2, 2, 1, 30), np.float32(1.0))
    """

    def __init__(self, path: str | Path, name: str):
        self.path, self.name = Path(path), name
        if not self.path.is_file():
            raise FileNotFoundError(f"{name}: there is no file {path}.")
        try:
            image: Any = nib.load(self.path, keep_file_open=True)
            self.affine = np.array(image.affine, dtype=float)
            self._stored = image.dataobj
            self.shape = tuple(map(int, self._stored.shape))
            self.dtype = np.dtype(self._stored.dtype)
        except _DAMAGED as error:
            raise self._unreadable(error) from error
        if not np.isfinite(self.affine).all() or abs(np.linalg.det(self.affine)) < 1e-12:
            raise ValueError(f"{name}: {path} has an affine that is no place in space.")
        self._check_size()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dataobj(self) -> np.ndarray:
        """All values, under the name that nibabel's images have for them."""
        self.check_real()
        check_memory(f"{self.name}: {self.path}", 8 * math.prod(self.shape))
        return self[...]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.dataobj, dtype=dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            return np.asarray(self._stored[index])
        except (OSError, *_DAMAGED) as error:
            raise self._unreadable(error) from error

    def _check_size(self):
        """Refuse headers that promise more than the file can hold, before room is made for it."""
        size = os.path.getsize(self.path)
        promised = math.prod(self.shape) * self.dtype.itemsize
        max_bytes = size if self.path.suffix == ".nii" else size * _MOST_COMPRESSED
        if promised > max_bytes or min(self.shape, default=0) < 1:
            raise ValueError(
                f"{self.name}: {self.path} has {size} bytes, too few for its shape {self.shape}; "
                "it was cut off, or is damaged. Copy or convert it again."
            )

    def _unreadable(self, error):
        reason = " ".join(str(error).split())[:200]
        return ValueError(
            f"{self.name}: {self.path} is no image that can be read ({reason}); give a NIfTI file."
        )

    def check_real(self) -> None:
        """Refuse complex values and colours."""
        if self.dtype.kind == "c":
            raise ValueError(
                f"{self.name}: {self.path} has complex values; write magnitudes, or real parts "
                "after the phase is removed."
            )
        if self.dtype.kind not in "iuf":
            raise ValueError(f"{self.name}: {self.path} has values of type {self.dtype}.")


def volume_of(path: str | Path, like: tuple[tuple[int, ...], np.ndarray], name: str) -> np.ndarray:
    """Values (X, Y, Z) of a file that lies in the same place as the images.

    Parameters
    ----------
    path : str or Path
    like : (shape, affine)
        Shape (X, Y, Z) and affine of the images.
    name : str
        Argument of which messages speak.

    Raises
    ------
    ValueError
        Another shape or place, or no image.
    """
    stored, (shape, affine) = StoredImage(path, name), like
    stored.check_real()
    if stored.shape != shape and stored.shape != (*shape, 1):
        raise ValueError(
            f"{name}: {path} has shape {stored.shape}, the images {shape}; resample it to the "
            "images."
        )
    distance = _apart(stored.affine, affine, shape)
    if distance > _SAME_PLACE * np.linalg.norm(affine[:3, :3], axis=0).min():
        raise ValueError(
            f"{name}: {path} lies elsewhere: its corners are up to {distance:.3g} mm from those "
            "of the images. Resample it to the images."
        )
    check_memory(f"{name}: {path}", 2 * math.prod(shape) * 8)
    return stored[...].reshape(shape)


def mask_of(path: str | Path, like: tuple[tuple[int, ...], np.ndarray], name: str) -> np.ndarray:
    """Voxels (X, Y, Z) bool of a mask file: those that are neither 0 nor NaN.

    Raises
    ------
    ValueError
        As `volume_of`; a mask of fractions, or without any voxel.
    """
    shape = like[0]
    try:
        mask = wanted_voxels("mask", volume_of(path, like, name), shape).reshape(shape)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(name) else f"{name}: {path}: {text}") from None
    if not mask.any():
        raise ValueError(f"{name}: {path} has no voxel inside; there is nothing to fit.")
    return mask


def _apart(affine_a, affine_b, shape):
    """Largest distance, mm, between the corners of two images of one shape."""
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij"), axis=-1)
    corners = corners.reshape(-1, 3)
    difference = corners @ (affine_a - affine_b)[:3, :3].T + (affine_a - affine_b)[:3, 3]
    return np.linalg.norm(difference, axis=1).max()
