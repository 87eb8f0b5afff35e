"""Measurements with any gradient waveform."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.b_tensors import b_anisotropy
from dipy_spinverse.acquisition.base import BaseAcquisition, read_only
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO, Waveforms, concatenate_pieces
from dipy_spinverse.units import MS_PER_UM2, S

_STRONGEST_T_PER_M = 10.0  # more than any scanner has, and 10 mT/m given as such
_LONGEST_MS = 3000.0  # T1 of water: a longer encoding leaves no signal
_GTAB_TOLERANCE = 0.05  # of b; b-values are rounded, and often leave out the imaging gradients


@dataclass(frozen=True, eq=False, repr=False, init=False)
class WaveformAcquisition(BaseAcquisition):
    """An acquisition whose gradients are given as waveforms.

    It has what all `BaseAcquisition` have.

    Parameters
    ----------
    waveforms : sequence of Waveforms
        Their rows together are 0 ... M-1.
    b0_threshold : float, optional
        Measurements with b at or below this (ms/um^2) are b0; their gradients count.

    Raises
    ------
    ValueError
        If there are none, or one does not refocus.

    Examples
    --------
    >>> from dipy_spinverse.acquisition.encodings import pulsed_gradients
    >>> acquisition = pulsed_gradients([0, 1, 2], [1, 0, 0], small_delta=8, big_delta=20, ramp=1)
    >>> acquisition
    WaveformAcquisition(3 measurements, 1 b0, b <= 2 ms/um^2, up to 29 ms)
    >>> acquisition.subset(acquisition.b > 1.5).b_anisotropy.round(6)
    array([1.])
    """

    waveforms: tuple[Waveforms, ...]
    b0_threshold: float

    def __init__(self, waveforms: Sequence[Waveforms], b0_threshold: float = 0.05):
        if not len(waveforms):
            raise ValueError("waveforms is empty; give at least one measurement.")
        for part in waveforms:
            _check_refocused(part)
        object.__setattr__(self, "waveforms", tuple(waveforms))
        object.__setattr__(self, "b0_threshold", float(b0_threshold))

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
    ) -> WaveformAcquisition:
        """Acquisition of sampled gradient waveforms.

        Parameters
        ----------
        gradients_T_per_m : array_like (M, T, 3) or sequence of (T_m, 3)
            Samples of the gradient, each held for `dt_s`: effective ones, whose sign refocusing
            pulses have turned, unless `refocusing_s` is given.
        dt_s : float or array_like (M,)
            Raster of the samples in seconds.
        te : float or array_like (M,), optional
            Echo time in seconds, without storage; the waveform is in its middle, and as long
            where it is not given.
        refocusing_s : float or sequence of float, optional
            When refocusing pulses turn the sign, seconds from the start of the waveform.
        storage_s : (start, stop), optional
            When the magnetisation is stored (mixing time of a stimulated echo), likewise.
        gtab : GradientTable, optional
            Must agree with the b-tensors of the waveforms within 5 % of b.
        b0_threshold : float, optional
            Measurements with b at or below this (s/mm^2) count as b0.

        Raises
        ------
        ValueError
            If waveforms do not refocus or disagree with `gtab`; bad samples or units.

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
        n = len(gradients)
        dt = checks.per_measurement("dt_s", dt_s, n) * S
        lasting = dt * [len(g) for g in gradients]
        if (dt <= 0).any() or lasting.max() > _LONGEST_MS:
            raise ValueError(
                f"dt_s is {dt.min() / S:g} to {dt.max() / S:g} s, and the longest waveform "
                f"lasts {lasting.max() / S:g} s; give the raster in seconds, for instance 1e-5."
            )
        storage = _checked_storage(storage_s, lasting.min())
        needed = lasting - (storage[1] - storage[0])
        te = (
            needed
            if te is None
            else checks.per_measurement("te", checks.seconds_to_ms("te", te), n)
        )
        short = te < needed - checks.TE_SLACK_MS
        if short.any():
            m = int(np.argmax(short))
            raise ValueError(
                f"te is {te[m] / S:g} s at measurement {m}, whose waveform lasts "
                f"{needed[m] / S:g} s; give a longer te, or none."
            )
        dead = np.maximum(te - needed, 0) / 2
        keys = np.column_stack([[len(g) for g in gradients], dt, dead]).round(9)
        _, alike = np.unique(keys, axis=0, return_inverse=True)
        parts = []
        for k in range(alike.max() + 1):
            rows = np.flatnonzero(alike.ravel() == k)
            samples = np.stack([gradients[m] for m in rows], axis=1)
            parts.append(_held(rows, samples, dt[rows[0]], dead[rows[0]], refocusing_s, storage))
        acquisition = cls(parts, b0_threshold / MS_PER_UM2)
        if gtab is not None:
            _check_agreement(acquisition, gtab)
        return acquisition

    def arrays(self) -> dict[str, np.ndarray]:
        found = {"b0_threshold": np.array(self.b0_threshold)}
        for k, part in enumerate(self.waveforms):
            found |= {f"{f.name}_{k}": getattr(part, f.name) for f in fields(Waveforms)}
        return found

    def to_gtab(self) -> GradientTable:
        """Hand the acquisition to a DIPY model.

        Returns
        -------
        GradientTable
            With b-tensors in `btens`, and without `big_delta` and `small_delta`.
        """
        return self._gradient_table(btens=self.b_tensors * MS_PER_UM2)

    def subset(self, index: ArrayLike | slice) -> WaveformAcquisition:
        chosen = self._chosen(index)
        parts = []
        for part in self.waveforms:
            place, old = np.nonzero(chosen[:, None] == part.rows)
            if len(place):
                parts.append(replace(part.select(old), rows=place))
        return WaveformAcquisition(parts, self.b0_threshold)

    @cached_property
    def b_tensors(self) -> np.ndarray:
        """(M, 3, 3) integral of q q^T, ms/um^2."""
        return self._in_order([part.b_tensors() for part in self.waveforms])

    @cached_property
    def b(self) -> np.ndarray:
        """(M,) trace of the b-tensor, ms/um^2."""
        return read_only(np.trace(self.b_tensors, axis1=1, axis2=2))

    @cached_property
    def directions(self) -> np.ndarray:
        """(M, 3) the axis of largest b; zeros at b0."""
        axes = np.linalg.eigh(self.b_tensors)[1][:, :, -1]
        # towards +z, or y, or x: the sign of an eigenvector is arbitrary
        last_nonzero = 2 - np.argmax(np.abs(axes[:, ::-1]) > 1e-9, axis=1)
        axes *= np.sign(np.take_along_axis(axes, last_nonzero[:, None], axis=1))
        axes[self.b0_mask] = 0
        return read_only(axes)

    @cached_property
    def te(self) -> np.ndarray:
        """(M,) time during which the magnetisation is transverse, ms."""
        return self._in_order([np.full(len(w.rows), w.echo_time) for w in self.waveforms])

    @cached_property
    def mixing_time(self) -> np.ndarray:
        """(M,) time during which it is stored (stimulated echo), ms."""
        return self._in_order([np.full(len(w.rows), w.mixing_time) for w in self.waveforms])

    @cached_property
    def isotropic(self) -> np.ndarray:
        """(M,) False: each waveform is played along its own directions."""
        return read_only(np.zeros(len(self), dtype=bool))

    @cached_property
    def b_anisotropy(self) -> np.ndarray:
        """(M,) shape b_Delta of axially symmetric b-tensors: 1 linear (LTE), -0.5 planar (PTE),
        0 spherical (STE); 0 where b is 0."""
        return read_only(b_anisotropy(self.b_tensors)[0])

    def _in_order(self, parts):
        rows = np.concatenate([part.rows for part in self.waveforms])
        return read_only(np.concatenate(parts)[np.argsort(rows)])

    def _summary(self):
        longest = max(part.times[-1] for part in self.waveforms)
        return f"b <= {self.b.max():.4g} ms/um^2", f"up to {longest:.4g} ms"


def _held(rows, samples, dt, dead, refocusing_s, storage):
    """Waveforms of samples (T, m, 3), T/m, that are held for dt ms each, between dead times."""
    t = (np.arange(len(samples)) + 0.5) * dt
    turns = checks.numeric("refocusing_s", [] if refocusing_s is None else refocusing_s) * S
    sign = (-1.0) ** (t[:, None] > turns).sum(axis=1)
    stored = (t > storage[0]) & (t < storage[1])
    if np.abs(samples[stored]).max(initial=0) > 0:
        raise ValueError(
            "gradients_T_per_m is not zero during storage_s, where gradients do not act on the "
            "stored magnetisation; set them to zero there."
        )
    rates = 1e-9 * GYROMAGNETIC_RATIO * sign[:, None, None] * samples
    new = np.append(True, (np.diff(rates, axis=0) != 0).any(axis=(1, 2)) | np.diff(stored))
    first = np.flatnonzero(new)
    durations = dt * np.diff(np.append(first, len(t)))
    off = np.zeros((2, len(rows), 3))
    pieces = zip(durations, (np.stack([r, r]) for r in rates[first]), stored[first], strict=True)
    return Waveforms(rows, *concatenate_pieces([(dead, off, False), *pieces, (dead, off, False)]))


def _checked_gradient(gradient, m):
    gradient = checks.numeric("gradients_T_per_m", gradient)
    if gradient.ndim != 2 or gradient.shape[1] != 3 or not np.isfinite(gradient).all():
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


def _check_refocused(waveforms):
    bad = ~waveforms.refocused()
    if bad.any():
        m = int(np.argmax(bad))
        left = np.linalg.norm(waveforms.q_at_knots[-1, m])
        raise ValueError(
            f"gradients of measurement {waveforms.rows[m]} (and {bad.sum() - 1} more) do "
            f"not refocus: q is {left:.4g} rad/um at the echo, {waveforms.largest_q[m]:.4g} at "
            "most. Effective gradients must integrate to zero; if these are the gradients as "
            "played, give the time of the refocusing pulse, refocusing_s."
        )


def _check_agreement(acquisition, gtab):
    """b-values, and b-tensors where it has them, of a gradient table."""
    if len(gtab.bvals) != len(acquisition):
        raise ValueError(
            f"gtab has {len(gtab.bvals)} measurements, but there are {len(acquisition)} waveforms."
        )
    weighted = ~gtab.b0s_mask
    expected = gtab.btens
    if expected is None:
        expected = gtab.bvals[:, None, None] * np.einsum("mi,mj->mij", gtab.bvecs, gtab.bvecs)
    checks.symmetric_tensors("gtab.btens", expected)
    apart = np.linalg.norm(acquisition.b_tensors - expected / MS_PER_UM2, axis=(1, 2))
    apart /= np.maximum(gtab.bvals / MS_PER_UM2, 1e-12)
    bad = weighted & (apart > _GTAB_TOLERANCE)
    if bad.any():
        m = int(np.argmax(bad))
        raise ValueError(
            f"gtab has b = {gtab.bvals[m]:.4g} s/mm^2 at measurement {m}, its waveform "
            f"{MS_PER_UM2 * acquisition.b[m]:.4g} s/mm^2, and their b-tensors differ by "
            f"{100 * apart[m]:.3g} % ({bad.sum() - 1} more differ by over "
            f"{100 * _GTAB_TOLERANCE:g} %). Check units, order and directions of the waveforms."
        )
