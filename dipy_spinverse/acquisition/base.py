"""What every acquisition has, in ms and ms/um^2."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from dipy.core.gradients import GradientTable, gradient_table
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition.waveforms import Waveforms
from dipy_spinverse.units import MS_PER_UM2

# ms/um^2, within which b0 count as repeats: their signals differ by at most 0.75 % (half of it
# times D of free water, 3 um^2/ms), well below the noise of a voxel.
SAME_B0 = 0.005
_TIME_DECIMALS = 6  # of ms: float64 seconds times 1000 are exact to far better than 1 ns


class BaseAcquisition(ABC):
    """M diffusion-weighted measurements; the subclasses differ in what defines the encoding.

    `Acquisition` is defined by pulse timings and directions, `WaveformAcquisition` by sampled
    gradient waveforms, `TensorAcquisition` by b-tensors alone.

    Attributes
    ----------
    b : ndarray (M,)
        Trace of the b-tensor, ms/um^2.
    b_tensors : ndarray (M, 3, 3)
        ms/um^2.
    directions : ndarray (M, 3)
        Axis of the b-tensor; zeros where it has none.
    te : ndarray (M,)
        Time during which the magnetisation is transverse, ms.
    mixing_time : ndarray (M,)
        Time during which the magnetisation is stored (stimulated echo), ms.
    isotropic : ndarray (M,) of bool
        Averages over all gradient directions (powder averages).
    n_averages : ndarray (M,) of int
        Magnitudes of which each measurement is the mean.
    waveforms : tuple of Waveforms
        q(t) of all measurements; their rows together are 0 ... M-1.
    b0_threshold : float
        Measurements with b at or below this (ms/um^2) are b0: they normalise the data and give
        the noise. Their signals are those of their measured b.
    """

    b: np.ndarray
    b_tensors: np.ndarray
    directions: np.ndarray
    te: np.ndarray
    mixing_time: np.ndarray
    isotropic: np.ndarray
    n_averages: np.ndarray
    b0_threshold: float

    @property
    @abstractmethod
    def waveforms(self) -> tuple[Waveforms, ...]:
        """q(t) of all measurements."""

    def to_gtab(self) -> GradientTable:
        """Convert to a DIPY gradient table with `btens`.

        b-tensors without an axis get the b-vector (0, 0, 1): DIPY takes b from the vectors.
        """
        has_axis = self.directions.any(axis=1) | (self.b == 0)
        bvecs = np.where(has_axis[:, None], self.directions, [0.0, 0.0, 1.0])
        return self._gradient_table(bvecs, btens=self.b_tensors * MS_PER_UM2)

    @abstractmethod
    def _summary(self) -> tuple[str, ...]:
        """What `repr` adds to the counts."""

    def subset(self, index: ArrayLike | slice) -> Self:
        """Select measurements.

        Parameters
        ----------
        index : int, slice, integer or boolean array
            As for a NumPy array of length M.

        Examples
        --------
        >>> from dipy_spinverse.acquisition import Acquisition
        >>> acquisition = Acquisition(b=[0, 1], directions=[[0, 0, 0], [1, 0, 0]],
        ...                           small_delta=10, big_delta=20)
        >>> acquisition.subset(~acquisition.b0_mask).b
        array([1.])
        """
        rows = self._rows(index)
        columns = {name: getattr(self, name)[rows] for name in measurement_columns(type(self))}
        return replace(self, **columns)  # type: ignore[type-var]

    def with_labels(self, labels: np.ndarray) -> Self:
        """The same measurements, whose S0 are those of labels (M,), 0 ... L-1, not of echo times.

        `te_index` are then the labels, and `echo_times` those of their first measurements;
        `subset` and `arrays` are without labels.
        """
        if np.array_equal(labels, self.te_index):
            return self
        first = np.unique(labels, return_index=True)[1]
        times = np.stack([self.te, self.mixing_time], axis=1)[first]
        labelled = copy(self)
        for name in ("b0_per_te", "repeated_b0"):
            vars(labelled).pop(name, None)
        vars(labelled)["_distinct_echoes"] = read_only(times), read_only(np.array(labels))
        return labelled

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays from which `acquisition_from_arrays` restores the acquisition."""
        columns = {name: getattr(self, name) for name in measurement_columns(type(self))}
        return {**columns, "b0_threshold": np.array(self.b0_threshold)}

    def __len__(self) -> int:
        return self.b.size

    def __repr__(self) -> str:
        summary = counted(len(self), "measurement"), f"{self.b0_mask.sum()} b0", *self._summary()
        return f"{type(self).__name__}({', '.join(summary)})"

    @cached_property
    def b0_mask(self) -> np.ndarray:
        """(M,) bool: b at or below `b0_threshold`."""
        return read_only(self.b <= self.b0_threshold)

    @property
    def echo_times(self) -> np.ndarray:
        """(K,) TE in ms of the distinct pairs of TE and mixing time, ascending."""
        return self._distinct_echoes[0][:, 0]

    @property
    def mixing_times(self) -> np.ndarray:
        """(K,) mixing time in ms of each of `echo_times`."""
        return self._distinct_echoes[0][:, 1]

    @property
    def te_index(self) -> np.ndarray:
        """(M,) index into `echo_times` of each measurement."""
        return self._distinct_echoes[1]

    @cached_property
    def b0_per_te(self) -> np.ndarray:
        """(K, M) bool: the b0 measurements of each of `echo_times`."""
        return self._b0_per_group(self.te_index)

    @cached_property
    def repeated_b0(self) -> np.ndarray:
        """(R, M) bool: groups of b0 measurements of the same echo time, b and direction."""
        sign = np.sign(self.directions @ [1.0, 1e-3, 1e-6])[:, None]
        b = (self.b / SAME_B0).round()
        directions = np.where(b[:, None] > 0, (sign * self.directions).round(1), 0.0)
        encoding = np.column_stack([self.te_index, b, directions])
        groups = np.unique(encoding, axis=0, return_inverse=True)[1].reshape(-1)
        masks = self._b0_per_group(groups)
        return read_only(masks[masks.any(axis=1)])

    @cached_property
    def _distinct_echoes(self):
        return distinct_times(np.stack([self.te, self.mixing_time], axis=1))

    def _set(self, **attributes: Any) -> None:
        """Set attributes of a frozen instance; arrays become read-only."""
        for name, value in attributes.items():
            array = isinstance(value, np.ndarray)
            object.__setattr__(self, name, read_only(value) if array else value)

    def _b0_per_group(self, group):
        return read_only(self.b0_mask & (group == np.arange(group.max() + 1)[:, None]))

    def _gradient_table(self, bvecs, **encoding):
        if self.isotropic.any():
            raise ValueError(
                "acquisition has averages over directions (isotropic), which a gradient table "
                "cannot represent; give the Acquisition itself."
            )
        return gradient_table(
            self.b * MS_PER_UM2,
            bvecs=bvecs,
            b0_threshold=self.b0_threshold * MS_PER_UM2,
            **encoding,
        )

    def _rows(self, index):
        return np.atleast_1d(np.arange(len(self))[index])


def measurement_columns(kind: type[BaseAcquisition]) -> list[str]:
    """Constructor arguments with one entry per measurement: all fields but `b0_threshold`."""
    return [field.name for field in fields(kind) if field.name != "b0_threshold"]  # type: ignore[arg-type]


def distinct_times(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of times (ms), sorted, and the index of each row among them."""
    values, index = np.unique(times.round(_TIME_DECIMALS), axis=0, return_inverse=True)
    return read_only(values), read_only(index.reshape(-1))


def read_only(array: np.ndarray) -> np.ndarray:
    """The same array, made read-only."""
    array.flags.writeable = False
    return array


def counted(number: int, noun: str) -> str:
    """For instance "1 shell", "2 shells"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
