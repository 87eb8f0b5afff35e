"""The voxels of an image to be fitted: checks, mask, signal without diffusion, noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.gains import warn_of_gains
from dipy_spinverse.voxels.memory import check_memory
from dipy_spinverse.voxels.noise import (
    KNOWN,
    TEMPORARY_NUMBERS,
    noise_before_fit,
    warn_of_unknown_noise,
)
from dipy_spinverse.voxels.progress import waiting
from dipy_spinverse.voxels.status import Status, status_before_fit

_REAL = "biuf"  # kinds of NumPy's types


@dataclass(frozen=True, eq=False)
class Voxels:
    """Voxels of a chunk or of an image.

    Attributes
    ----------
    signals : ndarray (V, M)
        In the unit of the data.
    S0 : ndarray (V, K)
        Signal without diffusion at each echo time, as measured or given.
    sigma : ndarray (V,) or None
        Standard deviation of the noise in each channel, if known.
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
        """Whether (V,) a voxel has negative samples, which are real parts, not magnitudes."""
        return self.signals.min(axis=1) < 0

    def over_S0(self) -> Voxels:
        """The same, divided by the signal without diffusion at the first echo time."""
        S0 = self.S0[:, :1]
        sigma = None if self.sigma is None else self.sigma / S0[:, 0]
        return Voxels(self.signals / S0, self.S0 / S0, sigma, self.attributes)


@dataclass(frozen=True, eq=False)
class Image:
    """An image whose voxels were checked.

    Attributes
    ----------
    status : ndarray (...)
        CONVERGED where a fit is possible.
    voxels : Voxels
        These V voxels, in order.
    noise : ndarray (V,)
        Given standard deviation of the noise, or its estimate by :func:`noise_before_fit`.
    freedom : ndarray (V,) of int
        Its degrees of freedom; 0 where it is not known.
    """

    status: np.ndarray
    voxels: Voxels
    noise: np.ndarray
    freedom: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image."""
        return self.status.shape

    @property
    def rows(self) -> np.ndarray:
        """Indices (V,) of the voxels in the flattened image."""
        return np.flatnonzero(self.status == Status.CONVERGED)

    def within(self, mask: np.ndarray) -> Image:
        """The image restricted to a mask (...)."""
        chosen = mask.reshape(-1)[self.rows]
        status = np.where(mask, self.status, Status.NOT_FITTED)
        return Image(status, self.voxels[chosen], self.noise[chosen], self.freedom[chosen])

    def with_initial_noise(self) -> Image:
        """The image with the noise level at the start of a fit: the given or the estimated one.

        Voxels without an estimate get the median of the others; without any, nothing changes.
        """
        estimated = self.freedom > 0
        if self.voxels.sigma is not None or not estimated.any():
            return self
        sigma = np.where(estimated, self.noise, np.median(self.noise[estimated]))
        return replace(self, voxels=replace(self.voxels, sigma=sigma))


def image_of(
    data,
    mask,
    sigma,
    acquisition: BaseAcquisition,
    S0=None,
    attributes=None,
    max_memory: float | None = None,
    verbose: bool = False,
) -> Image:
    """Checked arguments of `fit`; warns of voxels that cannot be fitted.

    Data (..., M) that are not an array, such as the `dataobj` of a NIfTI image, are read volume
    by volume. S0 (...) is the signal without diffusion, if known; attributes are those of
    :class:`Voxels`, of all voxels. Raises ValueError, or MemoryError above `max_memory` bytes.
    """
    data = _checked(data, len(acquisition))
    shape = data.shape[:-1]
    inside = wanted_voxels("mask", True if mask is None else mask, shape)
    if not inside.any():
        warn(f"mask has no voxel of the {len(inside)}: nothing is fitted.")
    weighted = acquisition.b.any()  # images of other contrasts are not
    if S0 is None and weighted and not acquisition.b0_per_te.any():
        warn(
            f"The acquisition has no b0 (smallest b {acquisition.b.min():g} ms/um^2): S0 is "
            "extrapolated from weighted signals, and the noise is not known from repeated b0. Add "
            "b0 volumes, or raise b0_threshold if some have a small b."
        )
    noise = None if sigma is None else per_voxel("sigma", sigma, shape)
    if noise is not None and not ((noise[inside] > 0) & np.isfinite(noise[inside])).all():
        raise ValueError(
            "sigma has values that are not positive and finite; give the noise's sd > 0, in the "
            "unit of the data."
        )
    # Signals and temporary arrays.
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
    warn_of_gains(voxels.signals, acquisition, known_noise)
    if known_noise is not None:
        freedom = np.full(len(known_noise), KNOWN)
        return Image(status.reshape(shape), voxels, known_noise, freedom)
    status = status.reshape(shape)
    if weighted and len(voxels):
        warn_of_unknown_noise(acquisition)
    with waiting("estimating the noise", verbose):
        level, freedom = noise_before_fit(voxels.signals, acquisition, status == Status.CONVERGED)
    return Image(status, voxels, level, freedom)


def _checked(data, n_measurements):
    """The data, which may still be in a file."""
    if isinstance(data, np.ma.MaskedArray):
        data = data.astype(float).filled(np.nan)
    if not isinstance(getattr(data, "dtype", None), np.dtype):
        data = _array("data", data)
    if data.dtype.kind == "c":
        raise ValueError(
            "data has complex values; give magnitudes, np.abs(data), or phase-corrected real "
            "parts, np.real(data * np.exp(-1j * phase)) with the smooth phase of each volume."
        )
    if not 1 <= data.ndim <= 4 or data.shape[-1] != n_measurements:
        raise ValueError(
            f"data has shape {data.shape}, but the acquisition has {n_measurements} measurements; "
            "give 1 to 4 axes, with the measurements along the last."
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
    """Voxels (prod(shape),) of a mask that are neither 0 nor NaN.

    ValueError for fractions and negative values, for which the user must choose a threshold.
    """
    values = per_voxel(name, mask, shape)
    inside = (values != 0) & ~np.isnan(values)
    bad = inside & ~((values > 0) & (values == np.round(values)) & np.isfinite(values))
    if bad.any():
        raise ValueError(
            f"{name} has {bad.sum()} values that are fractions, negative or infinite, such as "
            f"{values[bad][0]:g}; give 0 and 1, for instance mask > 0.5."
        )
    return inside


def per_voxel(name: str, value, shape: tuple[int, ...]) -> np.ndarray:
    """Values (prod(shape),) of all voxels, from one number or an array of this shape."""
    value = _array(name, value)
    if value.dtype.kind not in _REAL:
        raise ValueError(f"{name} has values of type {value.dtype}; give real numbers.")
    if value.shape not in ((), shape):
        raise ValueError(
            f"{name} has shape {value.shape}, but the voxels of the data have shape {shape}; give "
            "one value for all, or one for each voxel."
        )
    return np.broadcast_to(value.astype(float, copy=False), shape).reshape(-1)


def _array(name, value):
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} is not an array of numbers ({error}); give one.") from None


def signal_without_diffusion(
    signals: np.ndarray, acquisition: BaseAcquisition, labels: np.ndarray | None = None
) -> np.ndarray:
    """Mean b0 (V, L) of each label (M,), by default each echo time.

    Without b0, the mean of its measurements of smallest b.
    """
    labels = acquisition.te_index if labels is None else labels
    any_b0 = acquisition.b0_per_te.any(axis=0)
    columns = []
    for k in range(labels.max() + 1):
        b0 = any_b0 & (labels == k)
        if not b0.any():
            b = np.where(labels == k, acquisition.b, np.inf)
            b0 = b == b.min()
        with np.errstate(invalid="ignore", over="ignore"):
            columns.append(signals[:, b0].mean(axis=1))
    return np.stack(columns, axis=1)
