"""The voxels of an image that a model fits: shapes, mask, screening, signal without diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dipy_spinverse.voxels.acquired import Acquired
from dipy_spinverse.voxels.noise import KNOWN, independent_noise
from dipy_spinverse.voxels.status import Status, screened


@dataclass(frozen=True, eq=False)
class Voxels:
    """Voxels that are fitted together.

    Attributes
    ----------
    signals : ndarray (V, M)
        In the unit of the data.
    S0 : ndarray (V, K)
        Signal without diffusion at each echo time, as measured or given.
    sigma : ndarray (V,) or None
        Standard deviation of the noise in each channel, where it is given.
    own : mapping of ndarray (V, ...)
        What a model knows of its voxels beside the signals.
    """

    signals: np.ndarray
    S0: np.ndarray
    sigma: np.ndarray | None
    own: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.signals)

    def __getitem__(self, rows) -> Voxels:
        sigma = None if self.sigma is None else self.sigma[rows]
        own = {name: value[rows] for name, value in self.own.items()}
        return Voxels(self.signals[rows], self.S0[rows], sigma, own)

    @property
    def signed(self) -> np.ndarray:
        """(V,) bool: with negative samples, which real parts have and magnitudes have not."""
        return self.signals.min(axis=1) < 0

    def over_S0(self) -> Voxels:
        """The same, over the signal without diffusion at the first echo time."""
        S0 = self.S0[:, :1]
        sigma = None if self.sigma is None else self.sigma / S0[:, 0]
        return Voxels(self.signals / S0, self.S0 / S0, sigma, self.own)


@dataclass(frozen=True, eq=False)
class Image:
    """An image, screened.

    Attributes
    ----------
    status : ndarray (...)
        CONVERGED where a fit is possible.
    voxels : Voxels
        Those, in order.
    noise : ndarray (V,)
        Standard deviation of the noise that does not rest on the model: the one given, else from
        repeated b0 and from what is beyond the harmonics of shells.
    freedom : int or ndarray (V,)
        Its degrees of freedom; 0 where it is not known.
    """

    status: np.ndarray
    voxels: Voxels
    noise: np.ndarray
    freedom: np.ndarray | int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the image."""
        return self.status.shape

    @property
    def rows(self) -> np.ndarray:
        """Places (V,) of the voxels in the flattened image."""
        return np.flatnonzero(self.status == Status.CONVERGED)

    def within(self, mask: np.ndarray) -> Image:
        """The same image with its voxels (...) in a mask alone."""
        chosen = mask.reshape(-1)[self.rows]
        freedom = np.broadcast_to(self.freedom, len(self.voxels))[chosen]
        status = np.where(mask, self.status, Status.NOT_FITTED)
        return Image(status, self.voxels[chosen], self.noise[chosen], freedom)


def image_of(data, mask, sigma, acquisition: Acquired, S0=None, own=None) -> Image:
    """Arguments of a fit, checked; warns of voxels that cannot be fitted.

    Parameters
    ----------
    data : array-like (..., M)
        Of one voxel or of an image of up to three dimensions.
    mask : array-like (...) or None
    sigma : float, array-like (...) or None
    acquisition : Acquired
    S0 : float, array-like (...) or None
        Signal without diffusion, where it is known.
    own : mapping of ndarray (prod(...), ...) or None
        What the model knows of the voxels, flattened.

    Raises
    ------
    ValueError
        Wrong shapes, complex data, noise that is not positive in a voxel that is wanted.
    """
    data = np.asarray(data)
    if np.iscomplexobj(data):
        raise ValueError(
            "data has complex values; give magnitudes, np.abs(data), or real parts without phase, "
            "np.real(data * np.exp(-1j * phase)) with the smooth phase of each volume."
        )
    if not 1 <= data.ndim <= 4 or data.shape[-1] != len(acquisition):
        raise ValueError(
            f"data has shape {data.shape}, the acquisition {len(acquisition)} measurements; give "
            "them along the last axis, of 1 to 4."
        )
    shape = data.shape[:-1]
    wanted = per_voxel("mask", True if mask is None else mask, shape).astype(bool)
    noise = None if sigma is None else per_voxel("sigma", sigma, shape).astype(float)
    if noise is not None and not (noise[wanted] > 0).all():
        raise ValueError("sigma has values that are not positive; give the noise's sd > 0.")
    flat = data.reshape(-1, data.shape[-1])
    signals = flat[wanted].astype(float)
    without = signal_without_diffusion(signals, acquisition)
    least = without.min(axis=1)
    if S0 is not None:
        known = per_voxel("S0", S0, shape).astype(float)[wanted]
        least = np.where(np.isfinite(known), np.minimum(least, known), np.nan)
        without = np.broadcast_to(known[:, None], without.shape)
    status = np.full(len(flat), int(Status.NOT_FITTED))
    status[wanted] = screened(signals, least)
    fittable = status[wanted] == Status.CONVERGED
    rows = np.flatnonzero(wanted)[fittable]
    known_noise = None if noise is None else noise[rows]
    own = {name: value[rows] for name, value in (own or {}).items()}
    voxels = Voxels(signals[fittable], without[fittable], known_noise, own)
    if known_noise is not None:
        return Image(status.reshape(shape), voxels, known_noise, KNOWN)
    level, freedom = independent_noise(voxels.signals, acquisition)
    return Image(status.reshape(shape), voxels, level, freedom)


def per_voxel(name: str, value, shape: tuple[int, ...]) -> np.ndarray:
    """Value of each voxel (V,), from one for all or an array of the data's shape."""
    value = np.asarray(value)
    if value.shape not in ((), shape):
        raise ValueError(
            f"{name} has shape {value.shape}, the data have voxels {shape}; give one value for "
            "all, or one for each voxel."
        )
    return np.broadcast_to(value, shape).reshape(-1)


def signal_without_diffusion(signals: np.ndarray, acquisition: Acquired) -> np.ndarray:
    """Mean b0 (V, K) of each echo time, or where it has none, of its measurements of least b."""
    columns = []
    for k, b0 in enumerate(acquisition.b0_per_te):
        if not b0.any():
            b = np.where(acquisition.te_index == k, acquisition.b, np.inf)
            b0 = b == b.min()
        with np.errstate(invalid="ignore", over="ignore"):
            columns.append(signals[:, b0].mean(axis=1))
    return np.stack(columns, axis=1)
