"""Images and masks in NIfTI files, checked, and read only when needed."""

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
from scipy.ndimage import affine_transform

from dipy_spinverse.voxels.image import wanted_voxels
from dipy_spinverse.voxels.memory import check_memory

# Exceptions of nibabel for damaged files and other formats.
_DAMAGED = (
    ImageFileError, HeaderDataError, EOFError, zlib.error, ValueError, TypeError, KeyError,
    IndexError, OverflowError, AttributeError, NotImplementedError,
)  # fmt: skip
# Maximum compression ratio of deflate, https://zlib.net/zlib_tech.html (1032), and some headers.
_MAX_COMPRESSION = 1040
# Tolerance of the positions of two images, in voxel edges. Chosen by hand.
_POSITION_TOLERANCE = 0.1


class StoredImage:
    """An image in a file, which is indexed like an array and reads only the requested values.

    It is meant to be read volume by volume, along the last axis.

    Parameters
    ----------
    path : str or Path
    name : str
        Argument in error messages.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy dtype
        That of the file.
    affine : ndarray (4, 4)
        From voxels to mm.

    Raises
    ------
    FileNotFoundError
    ValueError
        The file is not an image, is truncated, or has a singular affine.

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
            raise ValueError(f"{name}: {path} has a singular affine; correct its header.")
        self._check_size()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dataobj(self) -> np.ndarray:
        """All values; the same name as in images of nibabel."""
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
        """Refuse a truncated file before memory is allocated for its values."""
        size = os.path.getsize(self.path)
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        max_bytes = size if self.path.suffix == ".nii" else size * _MAX_COMPRESSION
        if n_bytes > max_bytes or min(self.shape, default=0) < 1:
            raise ValueError(
                f"{self.name}: {self.path} has {size} bytes, too few for its shape {self.shape}; "
                "it is truncated or damaged. Copy or convert it again."
            )

    def _unreadable(self, error):
        reason = " ".join(str(error).split())[:200]
        return ValueError(
            f"{self.name}: {self.path} cannot be read as an image ({reason}); give a NIfTI file."
        )

    def check_real(self) -> None:
        """Raise ValueError for complex values and colours."""
        if self.dtype.kind == "c":
            raise ValueError(
                f"{self.name}: {self.path} has complex values; write magnitudes, or real parts "
                "after the phase is removed."
            )
        if self.dtype.kind not in "iuf":
            raise ValueError(f"{self.name}: {self.path} has values of type {self.dtype}.")


def volume_of(path: str | Path, like: tuple[tuple[int, ...], np.ndarray], name: str) -> np.ndarray:
    """Values (X, Y, Z) of an image file.

    ValueError unless it has the same shape and position as `like`, the shape (X, Y, Z) and affine
    of the data. `name` is the argument in error messages.
    """
    stored, (shape, affine) = StoredImage(path, name), like
    stored.check_real()
    if stored.shape != shape and stored.shape != (*shape, 1):
        raise ValueError(
            f"{name}: {path} has shape {stored.shape}, but the images have {shape}; resample "
            "it to the images."
        )
    distance = _corner_distance(stored.affine, affine, shape)
    if distance > _POSITION_TOLERANCE * np.linalg.norm(affine[:3, :3], axis=0).min():
        raise ValueError(
            f"{name}: {path} has another position: its corners are up to {distance:.3g} mm from "
            "those of the images. Resample it to the images."
        )
    check_memory(f"{name}: {path}", 2 * math.prod(shape) * 8)
    return stored[...].reshape(shape)


def resampled_volume(
    path: str | Path, like: tuple[tuple[int, ...], np.ndarray], name: str
) -> np.ndarray:
    """Values (X, Y, Z) of an image file at the voxels of the shape and affine `like`; linear."""
    stored, (shape, affine) = StoredImage(path, name), like
    stored.check_real()
    if len(stored.shape) != 3:
        raise ValueError(f"{name}: {path} has shape {stored.shape}; give a 3-D image.")
    to_stored = np.linalg.inv(stored.affine) @ affine
    return affine_transform(
        stored[...].astype(float), to_stored[:3, :3], to_stored[:3, 3], shape, order=1
    )


def mask_of(path: str | Path, like: tuple[tuple[int, ...], np.ndarray], name: str) -> np.ndarray:
    """Mask (X, Y, Z) of bool from a file: voxels that are neither 0 nor NaN.

    ValueError as :func:`volume_of`, and for fractions or an empty mask.
    """
    shape = like[0]
    try:
        mask = wanted_voxels("mask", volume_of(path, like, name), shape).reshape(shape)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(name) else f"{name}: {path}: {text}") from None
    if not mask.any():
        raise ValueError(f"{name}: {path} has no voxels; give a mask of the voxels to fit.")
    return mask


def _corner_distance(affine_a, affine_b, shape):
    """Largest distance, mm, between the corners of two images of one shape."""
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij"), axis=-1)
    corners = corners.reshape(-1, 3)
    difference = corners @ (affine_a - affine_b)[:3, :3].T + (affine_a - affine_b)[:3, 3]
    return np.linalg.norm(difference, axis=1).max()
