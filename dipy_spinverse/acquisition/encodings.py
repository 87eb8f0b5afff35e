"""Acquisitions of the usual gradient waveforms, in ms and ms/um^2.

Each function takes one timing; :func:`concatenate` puts several acquisitions into one. In all of
them

- `b` (M,) are b-values, ms/um^2, one for each row of
- `directions` (M, 3), unit vectors;
- `te` is the echo time, ms, without the time during which the magnetisation is stored; as short
  as possible where it is not given;
- a ValueError tells of b, directions or times that are bad or do not fit each other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.waveforms import Waveforms, concatenate_pieces

_SAMPLES_PER_PERIOD = 256  # of sines; linear in between


class _Piece(NamedTuple):
    """A part of a profile: its duration in ms, its height at both ends, and whether it stores."""

    duration: float
    start: float = 0.0
    end: float = 0.0
    stored: bool = False


def pulsed_gradients(
    b: ArrayLike, directions: ArrayLike, small_delta: float, big_delta: float, *,
    ramp: float = 0.0, mixing_time: float = 0.0, te: float | None = None,
) -> WaveformAcquisition:  # fmt: skip
    """Spin or stimulated echo with two trapezoidal pulses.

    Parameters
    ----------
    b, directions, te
        As in all of :mod:`dipy_spinverse.acquisition.encodings`.
    small_delta : float
        Duration of a pulse from the start of its ramp up to the start of its ramp down, ms.
    big_delta : float
        Separation of the starts of the pulses, ms.
    ramp : float, optional
        Duration of a ramp, ms.
    mixing_time : float, optional
        Time between the pulses, in its middle, during which the magnetisation is stored and
        decays with T1, ms. The factor 1/2 of a stimulated echo is left to S0.

    References
    ----------
    .. [1] Tanner, "Use of the stimulated echo in NMR diffusion studies", J. Chem. Phys. 52 (1970),
       https://doi.org/10.1063/1.1673336

    Examples
    --------
    >>> pulsed_gradients([1.0], [[1, 0, 0]], 8, 200, ramp=0.5, mixing_time=180).mixing_time
    array([180.])
    """
    b, directions = _weightings(b, directions)
    pulse = _trapezoid(small_delta, ramp)
    rest = _gap("big_delta", big_delta, small_delta + ramp)
    apart = (rest - _time("mixing_time", mixing_time)) / 2
    if apart < 0:
        raise ValueError(
            f"mixing_time is {mixing_time:g} ms, but only {rest:g} ms lie between the pulses."
        )
    wait = [_Piece(apart), _Piece(mixing_time, stored=True), _Piece(apart)]
    return _along([*pulse, *wait, *_times(pulse, -1)], b, directions, te)


def double_diffusion(
    b: ArrayLike, first: ArrayLike, second: ArrayLike, small_delta: float, big_delta: float,
    mixing_time: float, *, ramp: float = 0.0, te: float | None = None,
) -> WaveformAcquisition:  # fmt: skip
    """Double diffusion encoding: two pulse pairs, one after the other.

    Parameters
    ----------
    b : array_like (M,)
        Of each of the two pairs, ms/um^2; the measurement's own is the double.
    first, second : array_like (M, 3)
        Unit vectors of the gradients of the two pairs.
    small_delta, big_delta, ramp
        Of each pair, as in :func:`pulsed_gradients`.
    mixing_time : float
        From the start of the second pulse to the start of the third, ms.
    te
        As in all of :mod:`dipy_spinverse.acquisition.encodings`.

    References
    ----------
    .. [1] Shemesh et al., "Conventions and nomenclature for double diffusion encoding NMR and
       MRI", Magn. Reson. Med. 75 (2016), https://doi.org/10.1002/mrm.25901

    Examples
    --------
    >>> double_diffusion([0.5], [[1, 0, 0]], [[0, 1, 0]], 5, 20, 25).b_tensors[0].round(6) + 0
    array([[0.5, 0. , 0. ],
           [0. , 0.5, 0. ],
           [0. , 0. , 0. ]])
    """
    b, first = _weightings(b, first)
    _, second = _weightings(b, second)
    pulse = _trapezoid(small_delta, ramp)
    rest = _gap("big_delta", big_delta, small_delta + ramp)
    between = _gap("mixing_time", mixing_time, small_delta + ramp)
    pair, wait = [*pulse, _Piece(rest), *_times(pulse, -1)], _Piece(between)
    q = np.sqrt(b / _b_of(pair))[:, None]
    profiles = [[*pair, wait, *_times(pair, 0)], [*_times(pair, 0), wait, *pair]]
    return _played(profiles, [q * first, q * second], te)


def oscillating_gradients(
    b: ArrayLike, directions: ArrayLike, period: float, n_periods: int, separation: float, *,
    shape: str = "cosine", te: float | None = None,
) -> WaveformAcquisition:  # fmt: skip
    """Oscillating gradients on both sides of a refocusing pulse.

    Parameters
    ----------
    b, directions, te
        As in all of :mod:`dipy_spinverse.acquisition.encodings`.
    period : float
        ms.
    n_periods : int
        On each side.
    separation : float
        From the start of the oscillation on one side to that on the other, ms.
    shape : {"cosine", "sine"}, optional
        Of the gradient; the same on both sides, as played. The cosine's q(t) has no mean, and is
        symmetric in time; the sine's is not.

    References
    ----------
    .. [1] Does, Parsons and Gore, "Oscillating gradient measurements of water diffusion in normal
       and globally ischemic rat brain", Magn. Reson. Med. 49 (2003),
       https://doi.org/10.1002/mrm.10385

    Examples
    --------
    >>> oscillating_gradients([0.4], [[0, 0, 1]], period=10, n_periods=2, separation=25).te
    array([45.])
    """
    b, directions = _weightings(b, directions)
    if shape not in ("cosine", "sine"):
        raise ValueError(f"shape is {shape!r}; give 'cosine' or 'sine'.")
    if int(n_periods) != n_periods or n_periods < 1 or not period > 0:
        raise ValueError(
            f"n_periods is {n_periods!r} and period {period!r} ms; give a whole number of at "
            "least 1, and a positive time."
        )
    angle = 2 * np.pi * np.arange(n_periods * _SAMPLES_PER_PERIOD + 1) / _SAMPLES_PER_PERIOD
    wave = np.cos(angle) if shape == "cosine" else np.sin(angle)
    step = period / _SAMPLES_PER_PERIOD
    oscillation = [_Piece(step, g, h) for g, h in zip(wave[:-1], wave[1:], strict=True)]
    rest = _gap("separation", separation, n_periods * period)
    return _along([*oscillation, _Piece(rest), *_times(oscillation, -1)], b, directions, te)


def b_tensor_encoding(
    b_tensors: ArrayLike, duration: float, *, te: float | None = None
) -> WaveformAcquisition:
    """Encoding with given b-tensors: linear, planar, spherical, or any other.

    The wave vector is B^(1/2) e(t) with e(t) from magic-angle spinning of the q-vector: its
    length is sin(pi t / duration), its angle to the tensor's axis magic, and its azimuth turns
    once, at a rate that goes with the square of the length.

    Parameters
    ----------
    b_tensors : array_like (M, 3, 3)
        ms/um^2, symmetric and without negative eigenvalues.
    duration : float
        ms.
    te
        As in all of :mod:`dipy_spinverse.acquisition.encodings`.

    Raises
    ------
    ValueError
        B-tensors that are not symmetric or have negative eigenvalues.

    References
    ----------
    .. [1] Eriksson, Lasic and Topgaard, "Isotropic diffusion weighting in PGSE NMR by magic-angle
       spinning of the q-vector", J. Magn. Reson. 226 (2013),
       https://doi.org/10.1016/j.jmr.2012.10.015

    Examples
    --------
    >>> spherical = b_tensor_encoding([np.eye(3) / 3], duration=60)
    >>> spherical.b.round(6), spherical.b_anisotropy.round(6) + 0
    (array([1.]), array([0.]))
    """
    tensors = _checked_b_tensors(b_tensors)
    step = _time("duration", duration) / _SAMPLES_PER_PERIOD
    rates = _spinning(duration)
    values, axes = np.linalg.eigh(tensors)
    # The axis of e(t) is that of the eigenvalue farthest from the others.
    alone = values[:, 2] - values[:, 1] >= values[:, 1] - values[:, 0]
    order = np.where(alone[:, None], [0, 1, 2], [1, 2, 0])
    values = np.take_along_axis(values, order, axis=1)
    axes = np.take_along_axis(axes, order[:, None], axis=2)
    vectors = np.sqrt(np.maximum(values, 0))[:, None] * axes
    profiles = [[_Piece(step, g, g) for g in component] for component in rates.T]
    return _played(profiles, np.moveaxis(vectors, 2, 0), te)


def _spinning(duration):
    """de/dt (n, 3) in n equal steps, the integral of e e^T being the unit matrix."""
    t = np.linspace(0, 1, _SAMPLES_PER_PERIOD + 1)
    length, azimuth = np.sin(np.pi * t), 2 * np.pi * t - np.sin(2 * np.pi * t)
    e = np.stack([np.cos(azimuth), np.sin(azimuth), np.full_like(t, np.sqrt(0.5))]) * length
    rates = np.diff(e, axis=1).T / (duration / _SAMPLES_PER_PERIOD)
    held = np.repeat(rates[:, None, None], 2, axis=1)
    unit = Waveforms(np.arange(1), duration * t, held, np.zeros(len(rates), bool))
    values, axes = np.linalg.eigh(unit.b_tensors()[0])
    return rates @ (axes / np.sqrt(values)) @ axes.T


def concatenate(*acquisitions: BaseAcquisition) -> WaveformAcquisition:
    """One acquisition with all measurements of several, of any kind, in a row.

    Examples
    --------
    >>> short = pulsed_gradients([1.0], [[1, 0, 0]], 8, 20)
    >>> len(concatenate(short, double_diffusion([0.5], [[1, 0, 0]], [[0, 1, 0]], 5, 20, 25)))
    2
    """
    starts = np.cumsum([0, *map(len, acquisitions)])
    parts = [
        replace(part, rows=part.rows + start)
        for acquisition, start in zip(acquisitions, starts[:-1], strict=True)
        for part in acquisition.waveforms
    ]
    return WaveformAcquisition(parts, max(a.b0_threshold for a in acquisitions))


def _along(profile, b, directions, te):
    """Acquisition of one profile along directions, as strong as b says."""
    return _played([profile], [np.sqrt(b / _b_of(profile))[:, None] * directions], te)


def _played(profiles, vectors, te):
    """Acquisition of dq/dt = sum_c profile_c(t) vector_c, in the middle of the echo time.

    profiles: C lists of pieces of the same durations; vectors (C, M, 3).
    """
    shapes = np.array([[(piece.start, piece.end) for piece in profile] for profile in profiles])
    rates = np.einsum("cke,cmi->kemi", shapes, np.asarray(vectors))
    lasting = sum(piece.duration for piece in profiles[0] if not piece.stored)
    dead = 0.0 if te is None else (_time("te", te) - lasting) / 2
    if dead < -checks.TE_SLACK_MS:
        raise ValueError(f"te is {te:g} ms, but the encoding takes {lasting:g} ms; give more.")
    off = (dead, np.zeros_like(rates[0]), False)
    on = [(p.duration, rate, p.stored) for p, rate in zip(profiles[0], rates, strict=True)]
    return WaveformAcquisition(
        [Waveforms(np.arange(rates.shape[2]), *concatenate_pieces([off, *on, off]))]
    )


def _b_of(profile):
    """b of a profile of unit amplitude along one axis."""
    return _played([profile], [[[1.0, 0, 0]]], None).b[0]


def _trapezoid(small_delta, ramp):
    flat = _gap("small_delta", small_delta, _time("ramp", ramp))
    return [_Piece(ramp, 0, 1), _Piece(flat, 1, 1), _Piece(ramp, 1, 0)]


def _times(profile, factor):
    return [p._replace(start=factor * p.start, end=factor * p.end) for p in profile]


def _time(name, value):
    if np.ndim(value) or not np.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value!r}; give one time in ms, at least 0.")
    return value


def _gap(name, value, least):
    gap = _time(name, value) - least
    if gap < -1e-9:
        raise ValueError(f"{name} is {value:g} ms; it must be at least {least:g} ms here.")
    return max(gap, 0.0)


def _weightings(b, directions):
    b, directions = checks.gradients(b, directions)
    return b, checks.unit_directions(directions, b, b == 0)


def _checked_b_tensors(b_tensors):
    tensors = checks.numeric("b_tensors", b_tensors)
    if tensors.ndim != 3 or tensors.shape[1:] != (3, 3) or not np.isfinite(tensors).all():
        raise ValueError(f"b_tensors has shape {tensors.shape}; give finite (M, 3, 3), ms/um^2.")
    checks.symmetric_tensors("b_tensors", tensors)
    lowest = np.linalg.eigvalsh(tensors)[:, 0]
    bad = lowest < -1e-6 * np.abs(tensors).max(axis=(1, 2))
    if bad.any():
        m = np.argmax(bad)
        raise ValueError(
            f"b_tensors has the eigenvalue {lowest[m]:.3g} at measurement {m}; none may be "
            "negative."
        )
    return tensors
