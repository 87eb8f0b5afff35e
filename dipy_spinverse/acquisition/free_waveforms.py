"""Acquisitions defined by gradient waveforms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.b_tensors import shape_and_axes
from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO, Waveforms, concatenate_pieces
from dipy_spinverse.units import MS_PER_UM2, S

_STRONGEST_T_PER_M = 10.0  # above any scanner; a gradient of 10 mT/m given in mT/m reaches it
_LONGEST_MS = 3000.0  # about T1 of free water: a longer encoding leaves no signal
_GTAB_TOLERANCE = 0.05  # of b; b-values are rounded and often omit the imaging gradients


@dataclass(frozen=True, eq=False, repr=False, init=False)
class WaveformAcquisition(BaseAcquisition):
    """An acquisition defined by gradient waveforms.

    It has all attributes of a `BaseAcquisition`. See :mod:`dipy_spinverse.acquisition.encodings`
    for common waveforms, and :meth:`from_samples` for sampled ones.

    Parameters
    ----------
    waveforms : sequence of Waveforms
        Their rows together are 0 ... M-1.
    b0_threshold : float, optional
        Measurements with b at or below this (ms/um^2) are b0; their gradients are simulated.
    n_averages : int or array_like (M,), optional
        Magnitudes of which each measurement is the mean, as in `Acquisition`.

    Raises
    ------
    ValueError
        No waveforms, or one that is not refocused at the echo.

    Examples
    --------
    >>> from dipy_spinverse.acquisition.encodings import pulsed_gradients
    >>> acquisition = pulsed_gradients([0, 1, 2], [1, 0, 0], small_delta=8, big_delta=20, ramp=1)
    >>> acquisition
    WaveformAcquisition(3 measurements, 1 b0, b <= 2 ms/um^2, up to 29 ms)
    >>> acquisition.subset(acquisition.b > 1.5).b_anisotropy.round(6)
    array([1.])
    """

    _waveforms: tuple[Waveforms, ...]
    b0_threshold: float
    n_averages: np.ndarray

    def __init__(
        self,
        waveforms: Sequence[Waveforms],
        b0_threshold: float = 0.05,
        n_averages: ArrayLike = 1,
    ):
        if not len(waveforms):
            raise ValueError("waveforms is empty; give at least one measurement.")
        order = np.argsort(np.concatenate([group.rows for group in waveforms]))

        def of_all(values):
            return np.concatenate(values)[order]

        not_refocused = ~of_all([group.refocused() for group in waveforms])
        q = of_all([np.linalg.norm(group.q_at_knots[-1], axis=1) for group in waveforms])
        checks.raise_where(not_refocused, "gradients do not refocus: q at the echo", q, "rad/um",
                           "be 0. Effective gradients must integrate to zero; if these are actual "
                           "gradients, give the time of the refocusing pulse, "
                           "refocusing_s.")  # fmt: skip
        b_tensors = of_all([group.b_tensors() for group in waveforms])
        self._set(
            _waveforms=tuple(waveforms), b0_threshold=checks.threshold(b0_threshold),
            b_tensors=b_tensors, **shape_and_axes(b_tensors),
            te=of_all([np.full(len(w.rows), w.echo_time) for w in waveforms]),
            mixing_time=of_all([np.full(len(w.rows), w.mixing_time) for w in waveforms]),
            isotropic=np.zeros(len(b_tensors), dtype=bool),
            n_averages=checks.counts("n_averages", n_averages, len(b_tensors)),
        )  # fmt: skip

    @property
    def waveforms(self) -> tuple[Waveforms, ...]:
        return self._waveforms

    @classmethod
    def from_samples(
        cls,
        gradients_T_per_m: Iterable[ArrayLike],
        dt_s: ArrayLike,
        te: ArrayLike | None = None,
        *,
        refocusing_s: ArrayLike | None = None,
        storage_s: tuple[float, float] | None = None,
        gtab: GradientTable | None = None,
        b0_threshold: float = 50,
        n_averages: ArrayLike = 1,
    ) -> WaveformAcquisition:
        """Acquisition of sampled gradient waveforms.

        Parameters
        ----------
        gradients_T_per_m : array_like (M, T, 3) or sequence of (T_m, 3)
            Samples of the gradient, constant for `dt_s` each: of the effective gradient, whose
            sign refocusing pulses have inverted, unless `refocusing_s` is given.
        dt_s : float or array_like (M,)
            Raster of the samples in seconds.
        te : float or array_like (M,), optional
            Echo time in seconds, without storage; the waveform is centred in it. Default: the
            duration of the waveform.
        refocusing_s : float or sequence of float, optional
            Times of the refocusing pulses, seconds from the start of the waveform.
        storage_s : (start, stop), optional
            Storage of the magnetisation (mixing time of a stimulated echo), likewise.
        gtab : GradientTable, optional
            Must agree with the b-tensors of the waveforms within 5 % of b.
        b0_threshold : float, optional
            Measurements with b at or below this (s/mm^2) count as b0.
        n_averages : int or array_like (M,), optional
            As in the constructor.

        Raises
        ------
        ValueError
            Waveforms that are not refocused or disagree with `gtab`; invalid samples or units.

        Examples
        --------
        >>> import numpy as np
        >>> gradient = np.zeros((400, 3))
        >>> gradient[:100, 0], gradient[300:, 0] = 0.08, 0.08
        >>> WaveformAcquisition.from_samples([gradient], 1e-4, refocusing_s=0.02).b.round(3)
        array([1.221])
        """
        gradients = [_checked_gradient(g, m) for m, g in enumerate(gradients_T_per_m)]
        if not gradients:
            raise ValueError(
                "gradients_T_per_m is empty; give one waveform (T, 3) per measurement."
            )
        n_samples = [len(g) for g in gradients]
        dt, dead_time, storage = _sample_timing(n_samples, dt_s, te, storage_s)
        timings = np.column_stack([n_samples, dt, dead_time]).round(9)
        _, timing_index = np.unique(timings, axis=0, return_inverse=True)
        waveforms = []
        for k in range(timing_index.max() + 1):
            rows = np.flatnonzero(timing_index.ravel() == k)
            samples = np.stack([gradients[m] for m in rows], axis=1)
            timing = dt[rows[0]], dead_time[rows[0]], refocusing_s, storage
            waveforms.append(_piecewise_constant(rows, samples, *timing))
        acquisition = cls(waveforms, checks.threshold(b0_threshold) / MS_PER_UM2, n_averages)
        if gtab is not None:
            _check_agreement(acquisition, gtab)
        return acquisition

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {"b0_threshold": np.array(self.b0_threshold), "n_averages": self.n_averages}
        for k, group in enumerate(self.waveforms):
            arrays |= {f"{f.name}_{k}": getattr(group, f.name) for f in fields(Waveforms)}
        return arrays

    def subset(self, index: ArrayLike | slice) -> WaveformAcquisition:
        chosen = self._rows(index)
        waveforms = []
        for group in self.waveforms:
            new_rows, members = np.nonzero(chosen[:, None] == group.rows)
            if len(new_rows):
                waveforms.append(replace(group.select(members), rows=new_rows))
        return WaveformAcquisition(waveforms, self.b0_threshold, self.n_averages[chosen])

    def _summary(self):
        longest = max(group.times[-1] for group in self.waveforms)
        return f"b <= {self.b.max():.4g} ms/um^2", f"up to {longest:.4g} ms"


def _sample_timing(n_samples, dt_s, te, storage_s):
    """Raster (M,), dead time before and after the waveform (M,), and storage (2,), ms."""
    n = len(n_samples)
    dt = checks.per_measurement("dt_s", dt_s, n) * S
    duration = dt * n_samples
    if (dt <= 0).any() or duration.max() > _LONGEST_MS:
        raise ValueError(
            f"dt_s is {dt.min() / S:g} to {dt.max() / S:g} s, and the longest waveform "
            f"lasts {duration.max() / S:g} s; give the raster in seconds, for instance 1e-5."
        )
    storage = _checked_storage(storage_s, duration.min())
    shortest = duration - (storage[1] - storage[0])
    if te is None:
        return dt, np.zeros(n), storage
    te = checks.per_measurement("te", checks.seconds_to_ms("te", te), n)
    too_short = te < shortest - checks.TE_SLACK_MS
    requirement = "be at least the duration of the waveform. Give a longer te, or none."
    checks.raise_where(too_short, "te", te / S, "s", requirement)
    return dt, np.maximum(te - shortest, 0) / 2, storage


def _piecewise_constant(rows, samples, dt, dead_time, refocusing_s, storage):
    """Waveforms of samples (T, m, 3), T/m, of dt ms each, between dead times."""
    t = (np.arange(len(samples)) + 0.5) * dt
    refocusing = checks.numeric("refocusing_s", [] if refocusing_s is None else refocusing_s) * S
    sign = (-1.0) ** (t[:, None] > refocusing).sum(axis=1)
    stored = (t > storage[0]) & (t < storage[1])
    if np.abs(samples[stored]).max(initial=0) > 0:
        raise ValueError(
            "gradients_T_per_m is not zero during storage_s, where gradients do not act on the "
            "stored magnetisation; set them to zero there."
        )
    rates = 1e-9 * GYROMAGNETIC_RATIO * sign[:, None, None] * samples
    changes = (np.diff(rates, axis=0) != 0).any(axis=(1, 2)) | np.diff(stored)
    starts = np.flatnonzero(np.append(True, changes))
    durations = dt * np.diff(np.append(starts, len(t)))
    off = (dead_time, np.zeros((2, len(rows), 3)), False)
    pieces = zip(durations, (np.stack([r, r]) for r in rates[starts]), stored[starts], strict=True)
    return Waveforms(rows, *concatenate_pieces([off, *pieces, off]))


def _checked_gradient(gradient, m):
    gradient = checks.numeric("gradients_T_per_m", gradient)
    shaped = gradient.ndim == 2 and gradient.shape[1] == 3 and len(gradient) > 0
    if not shaped or not np.isfinite(gradient).all():
        raise ValueError(
            f"gradients_T_per_m has shape {gradient.shape} at measurement {m}; give finite "
            "samples (T, 3) for each measurement."
        )
    strongest = np.abs(gradient).max(initial=0)
    if strongest > _STRONGEST_T_PER_M:
        raise ValueError(
            f"gradients_T_per_m reaches {strongest:g} at measurement {m}, which looks like mT/m; "
            "divide by 1000."
        )
    return gradient


def _checked_storage(storage_s, shortest):
    if storage_s is None:
        return np.zeros(2)
    storage = checks.numeric("storage_s", storage_s) * S
    if storage.shape != (2,) or not 0 <= storage[0] < storage[1] <= shortest:
        raise ValueError(
            f"storage_s is {storage_s!r}; give start and stop in seconds, within the waveforms, "
            f"which last {shortest / S:g} s."
        )
    return storage


def _check_agreement(acquisition, gtab):
    """Refuse a gradient table whose b-tensors, or b-values and directions, differ."""
    checks.gradient_table("gtab", gtab)
    if len(gtab.bvals) != len(acquisition):
        raise ValueError(
            f"gtab has {len(gtab.bvals)} measurements, but there are {len(acquisition)} waveforms."
        )
    expected = gtab.btens
    if expected is None:
        expected = gtab.bvals[:, None, None] * np.einsum("mi,mj->mij", gtab.bvecs, gtab.bvecs)
    checks.symmetric_tensors("gtab.btens", expected)
    deviation = np.linalg.norm(acquisition.b_tensors - expected / MS_PER_UM2, axis=(1, 2))
    deviation /= np.maximum(gtab.bvals / MS_PER_UM2, 1e-12)
    checks.raise_where(
        ~gtab.b0s_mask & (deviation > _GTAB_TOLERANCE),
        "the difference of the b-tensors of gtab and waveforms", 100 * deviation, "% of b",
        f"be at most {100 * _GTAB_TOLERANCE:g} %. Check units, order and directions of the "
        "waveforms.",
    )  # fmt: skip
