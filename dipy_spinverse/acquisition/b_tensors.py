"""Acquisitions defined by their b-tensors; shape and axis of b-tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.base import BaseAcquisition, measurement_columns
from dipy_spinverse.acquisition.waveforms import Waveforms

# |b_Delta| below which the axis is ignored: its effect on a powder or a fibre is of this order,
# below the accuracy of b-values.
_SPHERICAL = 0.01


def b_anisotropy(b_tensors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """b_Delta (M,) and symmetry axis (M, 3) of the axially symmetric tensors nearest to b-tensors.

    b_Delta is 1 of linear (LTE), -0.5 of planar (PTE), 0 of spherical tensors (STE) and where b is
    0; https://doi.org/10.1063/1.4913502. The last nonzero component of an axis is positive.
    """
    values, vectors = np.linalg.eigh(b_tensors)
    axial = np.where(values[:, 2] - values[:, 1] >= values[:, 1] - values[:, 0], 2, 0)
    along = np.take_along_axis(values, axial[:, None], axis=1)[:, 0]
    trace = values.sum(axis=1)
    axes = np.take_along_axis(vectors, axial[:, None, None], axis=2)[..., 0]
    return (3 * along - trace) / (2 * np.where(trace > 0, trace, 1)), with_fixed_sign(axes)


def shape_and_axes(b_tensors: np.ndarray) -> dict[str, np.ndarray]:
    """`b`, `b_anisotropy` and `directions` of b-tensors; zeros for directions without an axis."""
    b, (shape, axes) = np.trace(b_tensors, axis1=1, axis2=2), b_anisotropy(b_tensors)
    # Of planar tensors the axis is normal to the plane.
    axes[(b == 0) | (np.abs(shape) < _SPHERICAL)] = 0
    return {"b": b, "b_anisotropy": shape, "directions": axes}


def with_fixed_sign(axes: np.ndarray) -> np.ndarray:
    """Axes (M, 3) whose last nonzero component is positive: eigenvectors have no sign."""
    last_nonzero = 2 - np.argmax(np.abs(axes[:, ::-1]) > 1e-9, axis=1)
    return axes * np.sign(np.take_along_axis(axes, last_nonzero[:, None], axis=1))


@dataclass(frozen=True, eq=False, repr=False, init=False)
class TensorAcquisition(BaseAcquisition):
    """An acquisition defined by b-tensors, for models of Gaussian diffusion.

    It has all attributes of a `BaseAcquisition` except `waveforms`.

    Parameters
    ----------
    b_tensors : array_like (M, 3, 3)
        ms/um^2.
    te, mixing_time : float or array_like (M,), optional
        ms. Each pair has its own signal without diffusion weighting.
    isotropic : bool or array_like (M,), optional
        Averages over all directions.
    n_averages : int or array_like (M,), optional
        Magnitudes of which each measurement is the mean, as in `Acquisition`.
    b0_threshold : float, optional
        Measurements with b at or below this (ms/um^2) are b0.

    Raises
    ------
    ValueError
        Tensors that are not symmetric or not positive semidefinite.

    Examples
    --------
    >>> import numpy as np
    >>> acquisition = TensorAcquisition([np.zeros((3, 3)), np.eye(3), np.diag([1.0, 1.0, 0.0])])
    >>> acquisition
    TensorAcquisition(3 measurements, 1 b0, b <= 3 ms/um^2)
    >>> acquisition.b_anisotropy
    array([ 0. ,  0. , -0.5])
    """

    b_tensors: np.ndarray
    te: np.ndarray
    mixing_time: np.ndarray
    isotropic: np.ndarray
    n_averages: np.ndarray
    b0_threshold: float

    def __init__(
        self,
        b_tensors: ArrayLike,
        te: ArrayLike = 0.0,
        mixing_time: ArrayLike = 0.0,
        isotropic: ArrayLike = False,
        n_averages: ArrayLike = 1,
        b0_threshold: float = 0.05,
    ):
        tensors = checks.b_tensors("b_tensors", b_tensors)
        n, encoding = len(tensors), shape_and_axes(tensors)
        self._set(
            b_tensors=tensors, **encoding,
            te=checks.per_measurement("te", te, n),
            mixing_time=checks.per_measurement("mixing_time", mixing_time, n),
            isotropic=checks.flags("isotropic", isotropic, n) & (encoding["b"] > 0),
            n_averages=checks.counts("n_averages", n_averages, n),
            b0_threshold=checks.threshold(b0_threshold),
        )  # fmt: skip

    @classmethod
    def from_acquisition(cls, acquisition: BaseAcquisition) -> TensorAcquisition:
        """Keep only the b-tensors of any acquisition."""
        columns = {name: getattr(acquisition, name) for name in measurement_columns(cls)}
        return cls(**columns, b0_threshold=acquisition.b0_threshold)

    @property
    def waveforms(self) -> tuple[Waveforms, ...]:
        raise ValueError(
            "acquisition is a TensorAcquisition, which has no waveforms: b-tensors define the "
            "signal of Gaussian diffusion only. Give the waveforms: "
            "WaveformAcquisition.from_samples."
        )

    def _summary(self):
        return (f"b <= {self.b.max():.4g} ms/um^2",)
