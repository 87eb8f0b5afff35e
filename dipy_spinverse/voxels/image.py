"""Signals of an image, as compartment models and learners take them up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.voxels.status import Status, screened, voxels_of


@dataclass(frozen=True, eq=False)
class Image:
    """Voxels of an image.

    Attributes
    ----------
    shape : tuple of int
        Of the image.
    signals : ndarray (V, M)
    noise : ndarray (V,) or None
        Standard deviation in each channel, where it was given.
    status : ndarray (V,)
        CONVERGED where a fit is possible.
    rows : ndarray (F,)
        Voxels where it is.
    S0 : ndarray (V,)
        Signal without diffusion at the first echo time; 1 where no fit is possible.
    scale : ndarray (V, K)
        That of each echo time over the first.
    """

    shape: tuple[int, ...]
    signals: np.ndarray
    noise: np.ndarray | None
    status: np.ndarray
    rows: np.ndarray
    S0: np.ndarray
    scale: np.ndarray


def image_of(data, mask, sigma, acquisition: Acquisition) -> Image:
    """Arguments of a fit, checked; warns of voxels that cannot be fitted."""
    signals, wanted, noise, shape = voxels_of(data, mask, sigma, len(acquisition))
    S0_te = signal_without_diffusion(signals, acquisition)
    status = screened(signals, wanted, S0_te.min(axis=1), stacklevel=4)
    fittable = status == Status.CONVERGED
    S0 = np.where(fittable, S0_te[:, 0], 1)
    return Image(shape, signals, noise, status, np.flatnonzero(fittable), S0, S0_te / S0[:, None])


def signal_without_diffusion(signals: np.ndarray, acquisition: Acquisition) -> np.ndarray:
    """Mean b0 (V, K) of each echo time, or where there is none, of the measurements of least b."""
    masks = acquisition.b0_per_te
    if not masks.any():
        masks = (acquisition.b == acquisition.b.min())[None]
    with np.errstate(invalid="ignore", over="ignore"):
        return np.stack([signals[:, mask].mean(axis=1) for mask in masks], axis=1)
