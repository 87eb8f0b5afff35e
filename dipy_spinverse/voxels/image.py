"""The voxels of an image that a model fits: shapes, mask, screening, signal without diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dipy_spinverse.voxels.acquired import Acquired
from dipy_spinverse.voxels.memory import check_memory
from dipy_spinverse.voxels.noise import KNOWN, TEMPORARY_NUMBERS, noise_before_fit
from dipy_spinverse.voxels.status import Status, status_before_fit

_REAL = "biuf"  # kinds of NumPy's types


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
    attributes : mapping of ndarray (V, ...)
        What else a model knows of each voxel, such as initial values.
    """

    signals: np.ndarray
    S0: np.ndarray
    sigma: np.ndarray | None
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.signals)

    def __getitem__(self, rows) -> Voxels:
        sigma = None if self.sigma is None else self.sigma[rows]
        attributes = {name: value[rows] for name, value in self.attributes.items()}
        return Voxels(self.signals[rows], self.S0[rows], sigma, attributes)

    @property
    def signed(self) -> np.ndarray:
        """(V,) bool: with negative samples, which real parts have and magnitudes have not."""
        return self.signals.min(axis=1) < 0

    def over_S0(self) -> Voxels:
        """The same, over the signal without diffusion at the first echo time."""
        S0 = self.S0[:, :1]
        sigma = None if self.sigma is None else self.sigma / S0[:, 0]
        return Voxels(self.signals / S0, self.S0 / S0, sigma, self.attributes)


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


def image_of(
    data,
    mask,
    sigma,
    acquisition: Acquired,
    S0=None,
    attributes=None,
    max_memory: float | None = None,
) -> Image:
    """Arguments of a fit, checked; warns of voxels that cannot be fitted.

    Parameters
    ----------
    data : array-like (..., M)
        Of one voxel or of an image of up to three dimensions. What is no array but has a shape
        and can be indexed, as the `dataobj` of a NIfTI image, is read volume by volume.
    mask : array-like (...) or None
        Outside where 0 or NaN.
    sigma : float, array-like (...) or None
    acquisition : Acquired
    S0 : float, array-like (...) or None
        Signal without diffusion, where it is known.
    attributes : mapping of ndarray (prod(...), ...) or None
        See :class:`Voxels`.
    max_memory : float or None
        Bytes that they may take; half of what is free where None.

    Raises
    ------
    ValueError
        Wrong shapes, data that are no real numbers, masks of fractions, noise that is not
        positive and finite in a voxel that is wanted.
    MemoryError
        More voxels than fit into memory.
    """
    data = _checked(data, len(acquisition))
    shape = data.shape[:-1]
    inside = wanted_voxels("mask", True if mask is None else mask, shape)
    noise = None if sigma is None else per_voxel("sigma", sigma, shape)
    if noise is not None and not ((noise[inside] > 0) & np.isfinite(noise[inside])).all():
        raise ValueError(
            "sigma has values that are not positive and finite; give the noise's sd > 0, in the "
            "unit of the data."
        )
    # Once more for what is made of them.
    n_temporary = max(data.shape[-1], TEMPORARY_NUMBERS if noise is None else 0)
    n_bytes = np.count_nonzero(inside) * 8 * (data.shape[-1] + n_temporary)
    check_memory(f"data of {np.count_nonzero(inside)} voxels", n_bytes, max_memory)
    signals = _samples(data, inside.reshape(shape))
    measured_S0 = signal_without_diffusion(signals, acquisition)
    min_S0 = measured_S0.min(axis=1)
    if S0 is not None:
        given_S0 = per_voxel("S0", S0, shape)[inside]
        min_S0 = np.where(np.isfinite(given_S0), np.minimum(min_S0, given_S0), np.nan)
        measured_S0 = np.broadcast_to(given_S0[:, None], measured_S0.shape)
    status = np.full(len(inside), int(Status.NOT_FITTED))
    status[inside] = status_before_fit(signals, min_S0)
    fittable = status[inside] == Status.CONVERGED
    rows = np.flatnonzero(inside)[fittable]
    if not fittable.all():
        signals, measured_S0 = signals[fittable], measured_S0[fittable]
    known_noise = None if noise is None else noise[rows]
    attributes = {name: value[rows] for name, value in (attributes or {}).items()}
    voxels = Voxels(signals, measured_S0, known_noise, attributes)
    if known_noise is not None:
        return Image(status.reshape(shape), voxels, known_noise, KNOWN)
    status = status.reshape(shape)
    level, freedom = noise_before_fit(voxels.signals, acquisition, status == Status.CONVERGED)
    return Image(status, voxels, level, freedom)


def _checked(data, n_measurements):
    """Data as they are, also such as are still in a file."""
    if isinstance(data, np.ma.MaskedArray):
        data = data.astype(float).filled(np.nan)
    if not isinstance(getattr(data, "dtype", None), np.dtype):
        data = _array("data", data)
    if data.dtype.kind == "c":
        raise ValueError(
            "data has complex values; give magnitudes, np.abs(data), or real parts without phase, "
            "np.real(data * np.exp(-1j * phase)) with the smooth phase of each volume."
        )
    if not 1 <= data.ndim <= 4 or data.shape[-1] != n_measurements:
        raise ValueError(
            f"data has shape {data.shape}, the acquisition {n_measurements} measurements; give "
            "them along the last axis, of 1 to 4."
        )
    if data.dtype.kind not in _REAL:
        raise ValueError(f"data has values of type {data.dtype}; give numbers.")
    return data


def _samples(data, mask):
    """Signals (V, M) of the voxels of a mask (...), read volume by volume from a file."""
    if isinstance(data, np.ndarray):
        return data[mask].astype(float, copy=False)
    signals = np.empty((np.count_nonzero(mask), data.shape[-1]))
    for m in range(data.shape[-1]):
        signals[:, m] = np.asarray(data[..., m])[mask]
    return signals


def wanted_voxels(name: str, mask, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels (V,) of a mask, flattened: those that are neither 0 nor NaN.

    Raises
    ------
    ValueError
        A mask of fractions, or of values below 0: which voxels are inside is then a choice.
    """
    values = per_voxel(name, mask, shape)
    inside = (values != 0) & ~np.isnan(values)
    bad = inside & ~((values > 0) & (values == np.round(values)) & np.isfinite(values))
    if bad.any():
        raise ValueError(
            f"{name} has the value {values[bad][0]:g}, in {bad.sum()} voxels neither in nor out; "
            "give 0 and 1, as mask > 0.5 of fractions."
        )
    return inside


def per_voxel(name: str, value, shape: tuple[int, ...]) -> np.ndarray:
    """Number of each voxel (V,), from one for all or an array of the data's shape."""
    value = _array(name, value)
    if value.dtype.kind not in _REAL:
        raise ValueError(f"{name} has values of type {value.dtype}; give real numbers.")
    if value.shape not in ((), shape):
        raise ValueError(
            f"{name} has shape {value.shape}, the data have voxels {shape}; give one value for "
            "all, or one for each voxel."
        )
    return np.broadcast_to(value.astype(float, copy=False), shape).reshape(-1)


def _array(name, value):
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} is no array of numbers ({error}); give one.") from None


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
