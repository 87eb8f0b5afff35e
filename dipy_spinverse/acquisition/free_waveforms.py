"""Measurements with any gradient waveform."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from dipy.core.gradients import GradientTable, gradient_table

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO, Waveforms, joined

_STRONGEST_T_PER_M = 10.0  # more than any scanner has, and 10 mT/m given as such
_LONGEST_MS = 3000.0
_GTAB_TOLERANCE = 0.05  # b-values are rounded, and often leave out the imaging gradients
_TE_SLACK_MS = 5e-3


def _only_pulsed(name):
    def refuse(self):
        raise ValueError(
            f"acquisition has free gradient waveforms, and no {name}, which only a pair of "
            "rectangular pulses has; give an Acquisition(b, directions, small_delta, big_delta) "
            "here. Waveforms can be simulated: simulate, simulate_with_jacobian."
        )

    return property(refuse, doc="Not of waveforms: raises a ValueError.")


class WaveformAcquisition(Acquisition):
    """An acquisition whose gradients are given as waveforms, made by `Acquisition.from_waveforms`.

    It has what any acquisition has, except for what only pulsed gradients have (`small_delta`,
    `big_delta`, `q`, `timings` ...): asking for that raises a ValueError.

    Parameters
    ----------
    waveforms : sequence of Waveforms
        Their rows together are 0 ... M-1.
    b0_threshold : float, optional
        As of :class:`Acquisition`, but the gradients of b0 measurements count.

    Attributes
    ----------
    b : ndarray (M,)
        Trace of the b-tensor, ms/um^2.
    b_tensors : ndarray (M, 3, 3)
        ms/um^2.
    directions : ndarray (M, 3)
        The axis of largest b; zeros at b0.
    te : ndarray (M,)
        Time during which the magnetisation is transverse, ms.
    mixing_time : ndarray (M,)
        Time during which it is stored (stimulated echo), ms.

    Raises
    ------
    ValueError
        If a waveform does not refocus.
    """

    def __init__(self, waveforms: list[Waveforms], b0_threshold: float = 0.05):
        n = sum(len(part.rows) for part in waveforms)
        b_tensors, te, mixing = np.empty((n, 3, 3)), np.empty(n), np.empty(n)
        for part in waveforms:
            _check_refocused(part)
            b_tensors[part.rows] = part.b_tensors()
            te[part.rows], mixing[part.rows] = part.echo_time, part.mixing_time
        b = np.trace(b_tensors, axis1=1, axis2=2)
        directions = np.linalg.eigh(b_tensors)[1][:, :, -1]
        # towards +z, or y, or x: the sign of an eigenvector is arbitrary
        last_nonzero = 2 - np.argmax(np.abs(directions[:, ::-1]) > 1e-9, axis=1)
        directions *= np.sign(np.take_along_axis(directions, last_nonzero[:, None], axis=1))
        directions[b <= b0_threshold] = 0
        for name, value in (
            ("b", b), ("directions", directions), ("te", te), ("mixing_time", mixing),
            ("b_tensors", b_tensors),
        ):  # fmt: skip
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        object.__setattr__(self, "b0_threshold", float(b0_threshold))
        object.__setattr__(self, "waveforms", tuple(waveforms))

    small_delta = _only_pulsed("small_delta")
    big_delta = _only_pulsed("big_delta")
    diffusion_time = _only_pulsed("diffusion_time")
    q = _only_pulsed("q")
    q_vectors = _only_pulsed("q_vectors")
    gradient_t_per_m = _only_pulsed("gradient_t_per_m")
    timings = _only_pulsed("timings")
    timing_index = _only_pulsed("timing_index")
    b0_per_timing = _only_pulsed("b0_per_timing")

    def to_gtab(self) -> GradientTable:
        """Hand the acquisition to a DIPY model.

        Returns
        -------
        GradientTable
            With b-tensors in `btens`, and without `big_delta` and `small_delta`.
        """
        return gradient_table(
            np.where(self.b0_mask, 0.0, self.b) * 1000,
            bvecs=self.directions,
            btens=self.b_tensors * 1000,
            b0_threshold=self.b0_threshold * 1000,
        )

    def subset(self, index) -> WaveformAcquisition:
        chosen = np.atleast_1d(np.arange(len(self))[index])
        parts = []
        for part in self.waveforms:
            place, old = np.nonzero(chosen[:, None] == part.rows)
            if len(place):
                kept = part.select(old)
                parts.append(Waveforms(place, kept.times, kept.rates, kept.stored))
        return WaveformAcquisition(parts, self.b0_threshold)

    def __repr__(self) -> str:
        longest = max(part.times[-1] for part in self.waveforms)
        return (
            f"WaveformAcquisition({len(self)} measurement{'s' * (len(self) > 1)}, "
            f"{self.b0_mask.sum()} b0, b <= {self.b.max():.4g} ms/um^2, up to {longest:.4g} ms)"
        )

    @cached_property
    def b_anisotropy(self) -> np.ndarray:
        """(M,) shape b_Delta of axially symmetric b-tensors: 1 linear (LTE), -0.5 planar (PTE),
        0 spherical (STE); 0 where b is 0."""
        values = np.linalg.eigvalsh(self.b_tensors)
        alone = np.where(values[:, 2] - values[:, 1] >= values[:, 1] - values[:, 0], 2, 0)
        axial = np.take_along_axis(values, alone[:, None], axis=1)[:, 0]
        trace = values.sum(axis=1)
        return (3 * axial - trace) / (2 * np.where(trace > 0, trace, 1))


def sampled_acquisition(
    gradients_T_per_m, dt_s, te, refocusing_s, storage_s, gtab, b0_threshold
) -> WaveformAcquisition:
    """As :meth:`Acquisition.from_waveforms`, which describes the arguments."""
    gradients = [_checked_gradient(g, m) for m, g in enumerate(gradients_T_per_m)]
    if not gradients:
        raise ValueError("gradients_T_per_m is empty; give one waveform (T, 3) per measurement.")
    n = len(gradients)
    dt = checks.per_measurement("dt_s", dt_s, n) * 1000
    lasting = dt * [len(g) for g in gradients]
    if (dt <= 0).any() or lasting.max() > _LONGEST_MS:
        raise ValueError(
            f"dt_s is {dt.min() / 1000:g} to {dt.max() / 1000:g} s, and the longest waveform "
            f"lasts {lasting.max() / 1000:g} s; give the raster in seconds, for instance 1e-5."
        )
    storage = _checked_storage(storage_s, lasting.min())
    needed = lasting - (storage[1] - storage[0])
    te = needed if te is None else checks.per_measurement(
        "te", checks.seconds_to_ms("te", te), n
    )  # fmt: skip
    short = te < needed - _TE_SLACK_MS
    if short.any():
        m = int(np.argmax(short))
        raise ValueError(
            f"te is {te[m] / 1000:g} s at measurement {m}, whose waveform lasts "
            f"{needed[m] / 1000:g} s; give a longer te, or none."
        )
    dead = np.maximum(te - needed, 0) / 2
    keys = np.column_stack([[len(g) for g in gradients], dt, dead]).round(9)
    _, alike = np.unique(keys, axis=0, return_inverse=True)
    parts = []
    for k in range(alike.max() + 1):
        rows = np.flatnonzero(alike.ravel() == k)
        samples = np.stack([gradients[m] for m in rows], axis=1)
        t = (np.arange(len(samples)) + 0.5) * dt[rows[0]]
        parts.append(_held(rows, samples, t, dt[rows[0]], dead[rows[0]], refocusing_s, storage))
    acquisition = WaveformAcquisition(parts, b0_threshold / 1000)
    if gtab is not None:
        _check_agreement(acquisition, gtab)
    return acquisition


def _held(rows, samples, t, dt, dead, refocusing_s, storage):
    """Waveforms of samples (T, m, 3), T/m, that are held for dt ms each, at centres t."""
    turns = checks.numeric("refocusing_s", [] if refocusing_s is None else refocusing_s) * 1000
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
    return Waveforms(rows, *joined([(dead, off, False), *pieces, (dead, off, False)]))


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
    storage = checks.numeric("storage_s", storage_s) * 1000
    if storage.shape != (2,) or not 0 <= storage[0] < storage[1] <= shortest:
        raise ValueError(
            f"storage_s is {storage_s!r}; give start and stop in seconds, within the waveforms, "
            f"which last {shortest / 1000:g} s."
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
    apart = np.linalg.norm(acquisition.b_tensors - expected / 1000, axis=(1, 2))
    apart /= np.maximum(gtab.bvals / 1000, 1e-12)
    bad = weighted & (apart > _GTAB_TOLERANCE)
    if bad.any():
        m = int(np.argmax(bad))
        raise ValueError(
            f"gtab has b = {gtab.bvals[m]:.4g} s/mm^2 at measurement {m}, its waveform "
            f"{1000 * acquisition.b[m]:.4g} s/mm^2, and their b-tensors differ by "
            f"{100 * apart[m]:.3g} % ({bad.sum() - 1} more differ by over "
            f"{100 * _GTAB_TOLERANCE:g} %). Check units, order and directions of the waveforms."
        )
