"""Voxels of an image: which can be fitted, and arguments that each may have its own of."""

from __future__ import annotations

import warnings
from enum import IntEnum

import numpy as np


class Status(IntEnum):
    """What came of a voxel."""

    NOT_FITTED = 0
    """Outside of the mask."""
    CONVERGED = 1
    """The optimiser stopped by its own rule, or reached the noise level."""
    NOT_CONVERGED = 2
    """The iterations came to their end above the noise level."""
    MISFIT = 3
    """The residual is above 1.5 times the noise, and more than by chance: the model does not
    explain the signals."""
    BAD_SAMPLES = 4
    """NaN, infinite or negative samples."""
    NO_SIGNAL = 5
    """All samples are zero."""
    NO_B0 = 6
    """The b0 signal, or the S0 given, is not positive."""
    PATTERN_NOT_DETERMINED = 7
    """Converged, but other wall fields that explain the same signals have their walls elsewhere
    (`pattern_agreement` is below 0.8): the maps hold, a mesh shows one of many patterns."""


def per_voxel(name: str, value, shape: tuple[int, ...]) -> np.ndarray:
    """Value of each voxel (V,), from one for all or an array of the data's shape."""
    value = np.asarray(value)
    if value.shape not in ((), shape):
        raise ValueError(
            f"{name} has shape {value.shape}, the data have voxels {shape}; give one value for "
            "all, or one for each voxel."
        )
    return np.broadcast_to(value, shape).reshape(-1)


def voxels_of(
    data: np.ndarray, mask: np.ndarray | None, sigma, n_measurements: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[int, ...]]:
    """Arguments of a fit, checked, voxel by voxel.

    Parameters
    ----------
    data : array-like (..., M)
    mask : array-like (...) or None
    sigma : float, array-like (...) or None
    n_measurements : int

    Returns
    -------
    flat : ndarray (V, M)
    wanted : ndarray (V,) of bool
    noise : ndarray (V,) or None
    shape : tuple of int
        Of the image.

    Raises
    ------
    ValueError
        Wrong shapes, noise that is not positive in a voxel that is wanted.
    """
    data = np.asarray(data)
    if not 1 <= data.ndim <= 4 or data.shape[-1] != n_measurements:
        raise ValueError(
            f"data has shape {data.shape}, the acquisition {n_measurements} measurements; give "
            "them along the last axis, of 1 to 4."
        )
    shape = data.shape[:-1]
    wanted = per_voxel("mask", True if mask is None else mask, shape).astype(bool)
    noise = None if sigma is None else per_voxel("sigma", sigma, shape).astype(float)
    if noise is not None and not (noise[wanted] > 0).all():
        raise ValueError("sigma has values that are not positive; give the noise's sd > 0.")
    return data.reshape(-1, data.shape[-1]).astype(float), wanted, noise, shape


def screened(
    flat: np.ndarray, wanted: np.ndarray, S0: np.ndarray | None = None, stacklevel: int = 3
) -> np.ndarray:
    """Status (V,) before a fit, CONVERGED where one is possible; warns of what is not.

    Parameters
    ----------
    flat : ndarray (V, M)
        Magnitudes.
    wanted : ndarray (V,) of bool
    S0 : ndarray (V,), optional
        Signal without diffusion, which must be positive.
    stacklevel : int, optional
        Of the warning.
    """
    status = np.full(len(flat), int(Status.CONVERGED))
    if S0 is not None:
        with np.errstate(invalid="ignore"):
            status[~((S0 > 0) & np.isfinite(S0))] = Status.NO_B0
    status[~(np.isfinite(flat) & (flat >= 0)).all(axis=1)] = Status.BAD_SAMPLES
    status[(flat == 0).all(axis=1)] = Status.NO_SIGNAL
    status[~wanted] = Status.NOT_FITTED
    bad = wanted & (status != Status.CONVERGED)
    if bad.any():
        warnings.warn(
            f"{bad.sum()} of {wanted.sum()} voxels cannot be fitted (NaN, infinite or negative "
            "samples, or no signal); their status says why, their maps are zero.",
            stacklevel=stacklevel,
        )
    return status
