"""NIfTI files of a fit: maps with their intervals, and predicted signals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from dipy.io.utils import split_filename_extension
from nibabel.openers import ImageOpener

from dipy_spinverse.report.descriptions import MAP_DESCRIPTIONS, map_description
from dipy_spinverse.voxels.status import FITTED

if TYPE_CHECKING:
    from dipy_spinverse.voxels.fit import VoxelFit

MAP_SUFFIXES = ("", "_std", "_low", "_high")
_PREDICTED_TOGETHER = 5000  # voxels; limits memory, does not affect results


def save_image(path: Path, values: np.ndarray, affine: np.ndarray, description: str = "") -> None:
    """Write NIfTI in mm, integers as int16 and others as float32."""
    dtype = np.int16 if values.dtype.kind in "biu" else np.float32
    nib.save(_image(values.astype(dtype), affine, description), path)


def _image(values, affine, description):
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description[:79]  # all that the header has room for
    return image


def save_predictions(fit: VoxelFit, path: Path, affine: np.ndarray, description: str = "") -> None:
    """Write the signals that a fit predicts, one volume at a time to limit memory."""
    rows = np.flatnonzero(np.isin(fit.status, FITTED))
    signals = np.empty((len(fit.model.acquisition), len(rows)), dtype=np.float32)
    for k in range(0, len(rows), _PREDICTED_TOGETHER):
        chunk = rows[k : k + _PREDICTED_TOGETHER]
        signals[:, k : k + len(chunk)] = fit[np.unravel_index(chunk, fit.shape)].predict().T
    shape = (*fit.shape, len(signals))
    header = _image(np.broadcast_to(np.float32(0), shape), affine, description).header
    with ImageOpener(str(path), "wb") as file:
        header.write_to(file)
        for measurement in signals:
            volume = np.zeros(fit.status.size, dtype=np.float32)
            volume[rows] = measurement
            file.write(volume.reshape(fit.shape).tobytes(order="F"))


def save_map(fit: VoxelFit, name: str, path: Path, affine: np.ndarray) -> None:
    """Write a map to `path`, and what the fit has of the other :func:`map_paths`."""
    description = f"{name} ({map_description(name, fit).unit}), dipy_spinverse"
    for suffix, target in zip(MAP_SUFFIXES, map_paths(path), strict=True):
        values = getattr(fit, name + suffix, fit.S0_hat if name + suffix == "S0" else None)
        if values is not None:
            space = (*fit.shape, *(1,) * (3 - len(fit.shape)))
            values = values.reshape(space + values.shape[len(fit.shape) :])
            save_image(target, values, affine, description)


def save_maps(fit: VoxelFit, folder: str | Path, affine: np.ndarray) -> None:
    """See :meth:`VoxelFit.save_maps`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = (name for name in MAP_DESCRIPTIONS if name != "S0_hat" and hasattr(fit, name))
    for name in dict.fromkeys((*fit.MAPS, "S0", *described)):
        save_map(fit, name, folder / f"{name}.nii.gz", affine)


def map_paths(path: Path) -> list[Path]:
    """Paths of a map, and of its standard deviation and limits with ``_std`` and so on."""
    stem, extension = split_filename_extension(path)
    return [path.with_name(f"{stem}{suffix}{extension}") for suffix in MAP_SUFFIXES]
