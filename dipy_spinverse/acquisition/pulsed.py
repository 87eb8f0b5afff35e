"""Acquisitions of pulsed gradients, from arrays, gradient tables and files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks, files
from dipy_spinverse.acquisition.base import (
    SAME_B0,
    BaseAcquisition,
    counted,
    distinct_times,
    read_only,
)
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO, Waveforms, pulsed_waveforms
from dipy_spinverse.units import MS_PER_UM2, S
from dipy_spinverse.user_warnings import warn


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Acquisition(BaseAcquisition):
    """Measurements of a spin or stimulated echo with two equal rectangular gradient pulses.

    A number (for `directions`, one vector) applies to all measurements. The arrays are read-only
    copies.

    Parameters
    ----------
    b : float or array_like (M,)
        Diffusion weighting in ms/um^2 (1 is 1000 s/mm^2).
    directions : array_like (M, 3)
        Gradient directions of length 1 +- 0.01, normalised; zero where `isotropic`, and for b0
        that have none.
    small_delta : float or array_like (M,)
        Duration delta of a pulse in ms.
    big_delta : float or array_like (M,)
        Separation Delta of the leading edges of the two pulses in ms.
    te : float or array_like (M,), optional
        Echo time in ms, without the mixing time. Default: the shortest that fits all pulses, the
        largest Delta + delta - TM, for all measurements.
    b0_threshold : float, optional
        Measurements with b at or below this (ms/um^2) are b0: they normalise the data and give
        the noise. Their signals are those of their measured b.
    mixing_time : float or array_like (M,), optional
        TM of a stimulated echo in ms: storage of the magnetisation between the pulses.
    isotropic : bool or array_like (M,), optional
        Averages over all directions (powder averages). They need no direction.
    n_averages : int or array_like (M,), optional
        Magnitudes of which each measurement is the mean: directions of a powder average, or
        repetitions that were averaged. Not averages by the scanner ("NEX", DICOM's
        NumberOfAverages), which add complex signals and only lower the noise of the magnitude.

    Raises
    ------
    ValueError
        Missing, negative or non-finite values, wrong lengths; Delta < delta, TM > Delta - delta,
        TE < Delta + delta - TM; a weighted measurement without a unit direction; values that
        imply another unit.

    Notes
    -----
    b0 measurements may have zero `big_delta` and `small_delta` (no pulses); they are assigned
    those of another measurement with the same TE and TM. Each pair of TE and TM has its own
    signal without diffusion weighting.

    Examples
    --------
    >>> from dipy_spinverse.acquisition.pulsed import Acquisition
    >>> acquisition = Acquisition(
    ...     b=[0, 1, 1, 3], directions=[[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
    ...     small_delta=10, big_delta=[20, 20, 20, 60], te=80)
    >>> acquisition
    Acquisition(4 measurements, 1 b0, 2 shells, b <= 3 ms/um^2, 2 timings, 1 echo time)
    >>> acquisition.timings
    array([[10., 20., 80.],
           [10., 60., 80.]])
    >>> acquisition.subset(acquisition.big_delta == 60).q.round(3)
    array([0.23])
    """

    b: np.ndarray
    directions: np.ndarray
    small_delta: np.ndarray
    big_delta: np.ndarray
    te: np.ndarray
    b0_threshold: float
    mixing_time: np.ndarray
    isotropic: np.ndarray
    n_averages: np.ndarray

    def __init__(
        self,
        b: ArrayLike,
        directions: ArrayLike,
        small_delta: ArrayLike,
        big_delta: ArrayLike,
        te: ArrayLike | None = None,
        b0_threshold: float = 0.05,
        mixing_time: ArrayLike = 0.0,
        isotropic: ArrayLike = False,
        n_averages: ArrayLike = 1,
    ):
        b, directions = checks.gradients(b, directions)
        threshold = checks.threshold(b0_threshold)
        b0 = b <= threshold
        isotropic = checks.flags("isotropic", isotropic, b.size)
        undirected = isotropic | b0 & ((b == 0) | ~checks.is_unit(directions))
        directions = checks.unit_directions(directions, b, undirected)
        small = checks.per_measurement("small_delta", small_delta, b.size)
        big = checks.per_measurement("big_delta", big_delta, b.size)
        te = None if te is None else checks.per_measurement("te", te, b.size)
        mixing = checks.per_measurement("mixing_time", mixing_time, b.size)
        small, big = checks.fill_b0_timing(small, big, te, mixing, b0)
        te = checks.echo_time(small, big, te, mixing)
        dyads = np.einsum("mi,mj->mij", directions, directions)
        dyads[undirected] = np.eye(3) / 3
        self._set(
            b=b, directions=directions, small_delta=small, big_delta=big, te=te,
            mixing_time=np.minimum(mixing, big - small), isotropic=isotropic & ~b0,
            b_tensors=b[:, None, None] * dyads, b0_threshold=threshold,
            n_averages=checks.counts("n_averages", n_averages, b.size),
        )  # fmt: skip

    @classmethod
    def from_gtab(
        cls,
        gtab: GradientTable,
        te: ArrayLike | None = None,
        *,
        mixing_time: ArrayLike | None = None,
        isotropic: ArrayLike | None = None,
        n_averages: ArrayLike | None = None,
    ) -> Acquisition:
        """Convert a DIPY gradient table with pulse timings.

        Parameters
        ----------
        gtab : GradientTable
            With `big_delta` and `small_delta` in seconds, one for all or one per measurement.
            Its `b0_threshold` is used.
        te, mixing_time : float or array_like (M,), optional
            Echo time, and mixing time of a stimulated echo, in seconds, as in `Acquisition`.
        isotropic : bool or array_like (M,), optional
            Averages over all directions; their b-vectors are ignored.
        n_averages : int or array_like (M,), optional
            Magnitudes of which each measurement is the mean, as in `Acquisition`; 1 by default.

        Raises
        ------
        ValueError
            `gtab` without deltas, or with b-tensors that are not linear; and as `Acquisition`.

        Examples
        --------
        >>> from dipy.core.gradients import gradient_table
        >>> gtab = gradient_table([0, 1000], bvecs=[[0, 0, 0], [1, 0, 0]],
        ...                       big_delta=0.0431, small_delta=0.0106)
        >>> Acquisition.from_gtab(gtab, te=0.0895).diffusion_time.round(3)
        array([39.567, 39.567])
        """
        checks.linear_encoding(gtab)
        times = {"big_delta": gtab.big_delta, "small_delta": gtab.small_delta}
        times |= {"te": te, "mixing_time": mixing_time}
        averages = {"isotropic": isotropic, "n_averages": n_averages}
        return cls._from_dipy_units(gtab.bvals, gtab.bvecs, times, gtab.b0_threshold, averages)

    @classmethod
    def from_files(
        cls,
        bvals: str | PathLike | ArrayLike,
        bvecs: str | PathLike | ArrayLike | None = None,
        *,
        big_delta: str | PathLike | ArrayLike,
        small_delta: str | PathLike | ArrayLike,
        te: str | PathLike | ArrayLike | None = None,
        mixing_time: str | PathLike | ArrayLike | None = None,
        isotropic: str | PathLike | ArrayLike | None = None,
        n_averages: str | PathLike | ArrayLike | None = None,
        b0_threshold: float = 50,
    ) -> Acquisition:
        """Read b-values and b-vectors; pulse timings are arguments.

        Parameters
        ----------
        bvals : path or array_like (M,)
            b-values in s/mm^2.
        bvecs : path or array_like (M, 3) or (3, M), optional
            b-vectors; a 3 x 3 array has one measurement per row, as in DIPY. Optional if all
            weighted volumes are `isotropic`.
        big_delta, small_delta : float, array_like (M,) or path
            Separation and duration of the pulses in seconds, or a text file with one number per
            volume (or one for all).
        te, mixing_time : float, array_like (M,) or path, optional
            Echo time, and mixing time of a stimulated echo, in seconds, as in `Acquisition`.
        isotropic : bool, array_like (M,) or path, optional
            Volumes that are averages over all directions; in a file 1 for these and 0 for others.
        n_averages : int, array_like (M,) or path, optional
            Magnitudes of which each volume is the mean, as in `Acquisition`; 1 by default.
        b0_threshold : float, optional
            Volumes with b at or below this (s/mm^2) count as b0.

        Raises
        ------
        ValueError
            A file that cannot be parsed, and as `Acquisition`.

        Examples
        --------
        >>> Acquisition.from_files([0, 1000], [[0, 1, 0], [0, 0, 1]],
        ...                        big_delta=0.03, small_delta=0.01).te
        array([40., 40.])
        """
        bvals, bvecs = files.read_table(bvals, bvecs)
        sources = {"isotropic": isotropic, "n_averages": n_averages}
        averages = {name: files.read_numbers(name, value) for name, value in sources.items()}
        sources = {"big_delta": big_delta, "small_delta": small_delta}
        sources |= {"te": te, "mixing_time": mixing_time}
        times = {name: files.read_numbers(name, value) for name, value in sources.items()}
        return cls._from_dipy_units(bvals, bvecs, times, b0_threshold, averages)

    @classmethod
    def from_scheme(cls, path: str | PathLike, *, b0_threshold: float = 0) -> Acquisition:
        """Read a Camino scheme file, version 1 (STEJSKALTANNER).

        Each row is x y z, gradient strength in T/m, Delta, delta and TE in seconds. Lines that
        start with # or % are comments; the ``VERSION:`` line may be absent.

        Parameters
        ----------
        path : path
            The scheme file.
        b0_threshold : float, optional
            Rows with b at or below this (s/mm^2) count as b0. Default: only rows without a
            gradient, as a scheme file states the actual gradient.

        Raises
        ------
        ValueError
            Another version, a malformed file, and as `Acquisition`.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "two.scheme"
        >>> _ = path.write_text("VERSION: 1\\n"
        ...     "0 0 0 0    0.03 0.01 0.05\\n"
        ...     "1 0 0 0.04 0.03 0.01 0.05\\n")
        >>> Acquisition.from_scheme(path).b.round(3)
        array([0.   , 0.305])
        """
        b0_threshold, rows = checks.threshold(b0_threshold), files.read_scheme_rows(path)
        big = checks.seconds_to_ms("big_delta", rows[:, 4])
        small = checks.seconds_to_ms("small_delta", rows[:, 5])
        q = GYROMAGNETIC_RATIO * rows[:, 3] * small * 1e-9
        return cls(
            b=np.maximum(q**2 * (big - small / 3), 0),
            directions=rows[:, :3],
            small_delta=small,
            big_delta=big,
            te=checks.seconds_to_ms("te", rows[:, 6]),
            b0_threshold=b0_threshold / MS_PER_UM2,
        )

    @classmethod
    def from_bids(cls, json_path: str | PathLike, *, b0_threshold: float = 50) -> Acquisition:
        """Read a BIDS sidecar and the .bval and .bvec files of the same stem in its folder.

        The timing is read, in seconds and as one number or one per volume, from

        - Delta: ``BigDelta``; if absent ``LargeDelta`` or ``DiffusionGradientSeparation``
        - delta: ``SmallDelta``; if absent ``DiffusionGradientDuration``
        - TE: ``EchoTime``; if absent, the shortest that fits all pulses
        - TM of a stimulated echo: ``MixingTime``; 0 if absent

        ``BigDelta`` and ``SmallDelta`` are recommended by BIDS since 1.11.2; the other names are
        in use but not part of BIDS. Converters usually write none of them. Values that can only
        be milliseconds are refused. The inheritance principle of BIDS is not supported.

        Parameters
        ----------
        json_path : path
            The sidecar, ``..._dwi.json``.
        b0_threshold : float, optional
            Volumes with b at or below this (s/mm^2) count as b0.

        Raises
        ------
        ValueError
            A missing delta or file, and as `Acquisition`.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for suffix, text in ((".bval", "0 1000"), (".bvec", "0 1\\n0 0\\n0 0\\n"),
        ...                      (".json", '{"BigDelta": 0.03, "SmallDelta": 0.01}')):
        ...     _ = (folder / ("sub-01_dwi" + suffix)).write_text(text)
        >>> len(Acquisition.from_bids(folder / "sub-01_dwi.json"))
        2
        """
        return cls.from_files(**files.read_bids(json_path), b0_threshold=b0_threshold)

    @classmethod
    def _from_dipy_units(cls, bvals, bvecs, times, b0_threshold, averages):
        bvals, b0_threshold = checks.numeric("bvals", bvals), checks.threshold(b0_threshold)
        if bvals.size and 0 < bvals.max() <= b0_threshold:
            raise ValueError(
                f"bvals reach only {bvals.max():g}, b0_threshold is {b0_threshold:g}: no "
                "measurement is diffusion weighted. Give b-values in s/mm^2, or a lower "
                "b0_threshold."
            )
        checks.bvals(bvals)
        required = ("small_delta", "big_delta")
        stated = {name: t for name, t in times.items() if t is not None or name in required}
        return cls(
            b=bvals / MS_PER_UM2,
            directions=bvecs,
            b0_threshold=b0_threshold / MS_PER_UM2,
            **{name: value for name, value in averages.items() if value is not None},
            **{name: checks.seconds_to_ms(name, t) for name, t in stated.items()},
        )

    def to_gtab(self) -> GradientTable:
        """Convert to a DIPY gradient table.

        Returns
        -------
        GradientTable
            With `big_delta` and `small_delta` (M,) in seconds, without echo and mixing times. DIPY
            takes b from the gradient vectors: it is 0 of b0 without a direction.

        Raises
        ------
        ValueError
            Averages over directions, which a gradient table cannot represent.
        """
        deltas = {"big_delta": self.big_delta / S, "small_delta": self.small_delta / S}
        return self._gradient_table(self.directions, **deltas)

    @property
    def timings(self) -> np.ndarray:
        """(T, 3) delta, Delta and TE in ms of the distinct timings, sorted."""
        return self._distinct_timings[0][:, :3]

    @property
    def timing_index(self) -> np.ndarray:
        """(M,) row of `timings` of each measurement."""
        return self._distinct_timings[1]

    @cached_property
    def b0_per_timing(self) -> np.ndarray:
        """(T, M) bool: the b0 measurements of each of `timings`."""
        return self._b0_per_group(self.timing_index)

    @cached_property
    def diffusion_time(self) -> np.ndarray:
        """(M,) Delta - delta / 3 in ms."""
        return read_only(self.big_delta - self.small_delta / 3)

    @cached_property
    def q(self) -> np.ndarray:
        """(M,) plateau of q(t) between the pulses, sqrt(b / (Delta - delta/3)) in rad/um."""
        return read_only(np.sqrt(self.b / self.diffusion_time))

    @cached_property
    def direction_averaged(self) -> np.ndarray:
        """(M,) bool: `isotropic`, and b0 with b > 0 but no direction, whose weighting is hardly
        anisotropic."""
        return read_only(self.isotropic | (self.b > 0) & ~self.directions.any(axis=1))

    @cached_property
    def q_vectors(self) -> np.ndarray:
        """(M, 3) q times direction in rad/um; an error for averages over directions.

        0 of b0 without a direction, with a warning if they decay: simulations neglect it.
        """
        if self.isotropic.any():
            raise ValueError(
                f"acquisition has averages over directions (isotropic) at {self.isotropic.sum()} "
                f"of {len(self)} measurements, which have no wave vector: simulations on a grid "
                "need measurements of single directions. PackedCellsModel and compartment models "
                "accept averages."
            )
        neglected = self.b[self.direction_averaged].max(initial=0)
        if neglected > SAME_B0:
            warn(
                f"acquisition has b0 of up to b = {neglected:g} ms/um^2 without a direction; "
                "simulations on a grid neglect their decay. Give their directions."
            )
        return read_only(self.q[:, None] * self.directions)

    @cached_property
    def waveforms(self) -> tuple[Waveforms, ...]:
        """q(t) of all measurements, one entry per timing."""
        rows = [np.flatnonzero(self.timing_index == k) for k in range(len(self.timings))]
        return tuple(
            pulsed_waveforms(m, self.q_vectors[m], *timing)
            for m, timing in zip(rows, self._distinct_timings[0], strict=True)
        )

    @cached_property
    def gradient_t_per_m(self) -> np.ndarray:
        """(M,) gradient strength q / (gamma delta) in T/m."""
        return read_only(self.q * 1e9 / (GYROMAGNETIC_RATIO * self.small_delta))

    @cached_property
    def _distinct_timings(self):
        times = self.small_delta, self.big_delta, self.te, self.mixing_time
        return distinct_times(np.stack(times, axis=1))

    def _summary(self):
        shells = np.unique(self.b[~self.b0_mask].round(1)).size
        summary = [
            counted(shells, "shell"),
            f"b <= {self.b.max():.4g} ms/um^2",
            counted(len(self.timings), "timing"),
            counted(np.unique(self.te.round(3)).size, "echo time"),
        ]
        if self.mixing_time.any():
            summary.append(counted(np.unique(self.mixing_time.round(3)).size, "mixing time"))
        if self.isotropic.any():
            summary.append(f"{self.isotropic.sum()} averages over directions")
        if (self.n_averages > 1).any():
            summary.append(f"means of up to {self.n_averages.max()} magnitudes")
        return tuple(summary)
