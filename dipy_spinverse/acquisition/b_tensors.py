"""Measurements of which the b-tensors are known, but not the waveforms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.base import BaseAcquisition, read_only
from dipy_spinverse.acquisition.waveforms import Waveforms
from dipy_spinverse.units import MS_PER_UM2

_SPHERICAL = 0.01  # b_Delta below which directions do not matter


def b_anisotropy(b_tensors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shape and symmetry axis of the axially symmetric tensors nearest to b-tensors.

    Parameters
    ----------
    b_tensors : ndarray (M, 3, 3)

    Returns
    -------
    shape : ndarray (M,)
        b_Delta: 1 linear (LTE), -0.5 planar (PTE), 0 spherical (STE); 0 where b is 0.
    axes : ndarray (M, 3)
        With a positive last component that is not zero.
    """
    values, vectors = np.linalg.eigh(b_tensors)
    alone = np.where(values[:, 2] - values[:, 1] >= values[:, 1] - values[:, 0], 2, 0)
    axial = np.take_along_axis(values, alone[:, None], axis=1)[:, 0]
    trace = values.sum(axis=1)
    axes = np.take_along_axis(vectors, alone[:, None, None], axis=2)[..., 0]
    last = 2 - np.argmax(np.abs(axes[:, ::-1]) > 1e-9, axis=1)
    axes = axes * np.sign(np.take_along_axis(axes, last[:, None], axis=1))
    return (3 * axial - trace) / (2 * np.where(trace > 0, trace, 1)), axes


@dataclass(frozen=True, eq=False, repr=False, init=False)
class TensorAcquisition(BaseAcquisition):
    """An acquisition of b-tensors, for models of diffusion that is Gaussian.

    It has what all `BaseAcquisition` have but waveforms.

    Parameters
    ----------
    b_tensors : array_like (M, 3, 3)
        ms/um^2.
    te, mixing_time : float or array_like (M,), optional
        ms. Each pair has its own signal without diffusion.
    isotropic : bool or array_like (M,), optional
        Averages over all directions.
    b0_threshold : float, optional
        Measurements with b at or below this (ms/um^2) are b0.

    Raises
    ------
    ValueError
        Tensors that are not symmetric or have negative b along a direction.

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
    b0_threshold: float

    def __init__(
        self,
        b_tensors: ArrayLike,
        te: ArrayLike = 0.0,
        mixing_time: ArrayLike = 0.0,
        isotropic: ArrayLike = False,
        b0_threshold: float = 0.05,
    ):
        tensors = checks.numeric("b_tensors", b_tensors)
        if tensors.ndim != 3 or tensors.shape[1:] != (3, 3) or not len(tensors):
            raise ValueError(f"b_tensors has shape {tensors.shape}; give (M, 3, 3), in ms/um^2.")
        checks.symmetric_tensors("b_tensors", tensors)
        least, trace = np.linalg.eigvalsh(tensors)[:, 0], np.trace(tensors, axis1=1, axis2=2)
        if (least < -1e-3 * np.maximum(trace, 1e-6)).any():
            m = int(np.argmin(least))
            raise ValueError(
                f"b_tensors has b = {least[m]:.3g} ms/um^2 along a direction of measurement {m}; "
                "a b-tensor is an integral of q q^T, and nowhere negative. Correct it."
            )
        values = (
            tensors,
            checks.per_measurement("te", te, len(tensors)),
            checks.per_measurement("mixing_time", mixing_time, len(tensors)),
            checks.flags("isotropic", isotropic, len(tensors)) & (trace > b0_threshold),
        )
        for name, value in zip(_PER_MEASUREMENT, values, strict=True):
            object.__setattr__(self, name, read_only(value))
        object.__setattr__(self, "b0_threshold", float(b0_threshold))

    @classmethod
    def from_measurements(cls, measured: BaseAcquisition) -> TensorAcquisition:
        """Of measurements with any waveforms, the b-tensors alone."""
        columns = {name: getattr(measured, name) for name in _PER_MEASUREMENT}
        return cls(**columns, b0_threshold=measured.b0_threshold)

    def arrays(self) -> dict[str, np.ndarray]:
        columns = {name: getattr(self, name) for name in _PER_MEASUREMENT}
        return {**columns, "b0_threshold": np.array(self.b0_threshold)}

    def subset(self, index: ArrayLike | slice) -> TensorAcquisition:
        chosen = self._chosen(index)
        columns = {name: getattr(self, name)[chosen] for name in _PER_MEASUREMENT}
        return TensorAcquisition(**columns, b0_threshold=self.b0_threshold)

    def to_gtab(self) -> GradientTable:
        """Hand the acquisition to a DIPY model: a gradient table with `btens`."""
        return self._gradient_table(btens=self.b_tensors * MS_PER_UM2)

    @cached_property
    def b(self) -> np.ndarray:
        """(M,) trace of the b-tensor, ms/um^2."""
        return read_only(np.trace(self.b_tensors, axis1=1, axis2=2))

    @cached_property
    def b_anisotropy(self) -> np.ndarray:
        """(M,) shape b_Delta; see the function of this name."""
        return read_only(b_anisotropy(self.b_tensors)[0])

    @cached_property
    def directions(self) -> np.ndarray:
        """(M, 3) symmetry axes of the b-tensors (of planar ones, across the plane); zeros of
        spherical ones and at b0."""
        shape, axes = b_anisotropy(self.b_tensors)
        axes[self.b0_mask | (np.abs(shape) < _SPHERICAL)] = 0
        return read_only(axes)

    @cached_property
    def waveforms(self) -> tuple[Waveforms, ...]:
        raise ValueError(
            "acquisition is a TensorAcquisition, which has no waveforms: only diffusion that is "
            "Gaussian is known by its b-tensors. Give the waveforms: "
            "WaveformAcquisition.from_samples."
        )

    def _summary(self):
        return (f"b <= {self.b.max():.4g} ms/um^2",)


_PER_MEASUREMENT = ("b_tensors", "te", "mixing_time", "isotropic")
