"""Acquisitions of common gradient waveforms, in ms and ms/um^2.

Each function takes one timing; :func:`concatenate` joins acquisitions of several. In all of them

- `b` (M,) are b-values, ms/um^2, one for each row of
- `directions` (M, 3), unit vectors;
- `te` is the echo time, ms, without storage of the magnetisation; default: as short as possible;
- invalid or inconsistent values of b, directions or times raise a ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.waveforms import Waveforms, concatenate_pieces

# Of sines, linear in between: off by at most (2 pi / 256)^2 / 8 = 8e-5 of the amplitude.
_SAMPLES_PER_PERIOD = 256


class Piece(NamedTuple):
    """Piece of a profile: duration in ms, gradient at its start and end, storage."""

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
    small_delta : float
        Duration of a pulse from the start of its ramp up to the start of its ramp down, ms.
    big_delta : float
        Separation of the starts of the pulses, ms.
    ramp : float, optional
        Duration of a ramp, ms.
    mixing_time : float, optional
        Storage of the magnetisation, centred between the pulses, ms. The factor 1/2 of a
        stimulated echo belongs to S0.

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
    gap = _gap("big_delta", big_delta, small_delta + ramp)
    delay = (gap - _time("mixing_time", mixing_time)) / 2
    if delay < 0:
        raise ValueError(
            f"mixing_time is {mixing_time:g} ms, but the pulses are only {gap:g} ms apart; give "
            "less."
        )
    pause = [Piece(delay), Piece(mixing_time, stored=True), Piece(delay)]
    return _along([*pulse, *pause, *_times(pulse, -1)], b, directions, te)


def double_diffusion(
    b: ArrayLike, directions_1: ArrayLike, directions_2: ArrayLike, small_delta: float,
    big_delta: float, mixing_time: float, *, ramp: float = 0.0, te: float | None = None,
) -> WaveformAcquisition:  # fmt: skip
    """Double diffusion encoding: two pulse pairs, one after the other.

    Parameters
    ----------
    b : array_like (M,)
        Of each of the two pairs, ms/um^2; the b of the measurement is twice as large.
    directions_1, directions_2 : array_like (M, 3)
        Unit vectors of the gradients of the two pairs.
    small_delta, big_delta, ramp
        Of each pair, as in :func:`pulsed_gradients`.
    mixing_time : float
        From the start of the second pulse to the start of the third, ms.

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
    b, directions_1 = _weightings(b, directions_1)
    _, directions_2 = _weightings(b, directions_2)
    pulse = _trapezoid(small_delta, ramp)
    delay = Piece(_gap("big_delta", big_delta, small_delta + ramp))
    mixing = Piece(_gap("mixing_time", mixing_time, small_delta + ramp))
    pair = [*pulse, delay, *_times(pulse, -1)]
    q = np.sqrt(b / _b_of(pair))[:, None]
    profiles = [[*pair, mixing, *_times(pair, 0)], [*_times(pair, 0), mixing, *pair]]
    return superposed(profiles, [q * directions_1, q * directions_2], te)


def oscillating_gradients(
    b: ArrayLike, directions: ArrayLike, period: float, n_periods: int, separation: float, *,
    shape: str = "cosine", te: float | None = None,
) -> WaveformAcquisition:  # fmt: skip
    """Oscillating gradients on both sides of a refocusing pulse.

    Parameters
    ----------
    period : float
        ms.
    n_periods : int
        On each side.
    separation : float
        From the start of one oscillation to the start of the other, ms.
    shape : {"cosine", "sine"}, optional
        Of the gradient before the effect of refocusing, equal on both sides. The cosine's q(t)
        has zero mean and is symmetric in time; the sine's is neither.

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
    oscillation = [Piece(step, g, h) for g, h in zip(wave[:-1], wave[1:], strict=True)]
    delay = Piece(_gap("separation", separation, n_periods * period))
    return _along([*oscillation, delay, *_times(oscillation, -1)], b, directions, te)


def b_tensor_encoding(
    b_tensors: ArrayLike, duration: float, *, te: float | None = None
) -> WaveformAcquisition:
    """Encoding with given b-tensors: linear, planar, spherical, or any other.

    The wave vector is B^(1/2) e(t), e(t) being that of magic-angle spinning of the q-vector: of
    length sin(pi t / duration), at the magic angle to the tensor's axis, with an azimuth that
    completes one turn at a rate proportional to the squared length.

    Parameters
    ----------
    b_tensors : array_like (M, 3, 3)
        ms/um^2, symmetric and positive semidefinite.
    duration : float
        ms.

    Raises
    ------
    ValueError
        B-tensors that are not symmetric and positive semidefinite.

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
    tensors = checks.b_tensors("b_tensors", b_tensors)
    step = _time("duration", duration) / _SAMPLES_PER_PERIOD
    rates = _magic_angle_spinning(duration)
    values, axes = np.linalg.eigh(tensors)
    # The axis of e(t) is that of the eigenvalue farthest from the others, the largest if linear.
    linear = values[:, 2] - values[:, 1] >= values[:, 1] - values[:, 0]
    order = np.where(linear[:, None], [0, 1, 2], [1, 2, 0])
    values = np.take_along_axis(values, order, axis=1)
    axes = np.take_along_axis(axes, order[:, None], axis=2)
    vectors = np.sqrt(np.maximum(values, 0))[:, None] * axes
    profiles = [[Piece(step, g, g) for g in component] for component in rates.T]
    return superposed(profiles, np.moveaxis(vectors, 2, 0), te)


def _magic_angle_spinning(duration):
    """de/dt (n, 3) in n equal steps; the integral of e e^T is the identity."""
    t = np.linspace(0, 1, _SAMPLES_PER_PERIOD + 1)
    length, azimuth = np.sin(np.pi * t), 2 * np.pi * t - np.sin(2 * np.pi * t)
    e = np.stack([np.cos(azimuth), np.sin(azimuth), np.full_like(t, np.sqrt(0.5))]) * length
    rates = np.diff(e, axis=1).T / (duration / _SAMPLES_PER_PERIOD)
    constant = np.repeat(rates[:, None, None], 2, axis=1)
    waveform = Waveforms(np.arange(1), duration * t, constant, np.zeros(len(rates), bool))
    values, axes = np.linalg.eigh(waveform.b_tensors()[0])
    return rates @ (axes / np.sqrt(values)) @ axes.T


def concatenate(*acquisitions: BaseAcquisition) -> WaveformAcquisition:
    """One acquisition with the measurements of several, of any class, in order.

    Examples
    --------
    >>> short = pulsed_gradients([1.0], [[1, 0, 0]], 8, 20)
    >>> len(concatenate(short, double_diffusion([0.5], [[1, 0, 0]], [[0, 1, 0]], 5, 20, 25)))
    2
    """
    offsets = np.cumsum([0, *map(len, acquisitions)])
    waveforms = [
        replace(group, rows=group.rows + offset)
        for acquisition, offset in zip(acquisitions, offsets[:-1], strict=True)
        for group in acquisition.waveforms
    ]
    threshold = max(acquisition.b0_threshold for acquisition in acquisitions)
    n_averages = np.concatenate([acquisition.n_averages for acquisition in acquisitions])
    return WaveformAcquisition(waveforms, threshold, n_averages)


def _along(profile, b, directions, te):
    """Acquisition of one profile along directions, scaled to b."""
    return superposed([profile], [np.sqrt(b / _b_of(profile))[:, None] * directions], te)


def superposed(
    profiles: Sequence[Sequence[Piece]], vectors: ArrayLike, te: float | None
) -> WaveformAcquisition:
    """Acquisition of dq/dt = sum_c profile_c(t) vector_c, centred in the echo time.

    profiles: C lists of pieces of the same durations; vectors (C, M, 3).
    """
    shapes = np.array([[(piece.start, piece.end) for piece in profile] for profile in profiles])
    rates = np.einsum("cke,cmi->kemi", shapes, np.asarray(vectors))
    shortest = sum(piece.duration for piece in profiles[0] if not piece.stored)
    dead_time = 0.0 if te is None else (_time("te", te) - shortest) / 2
    if dead_time < -checks.TE_SLACK_MS:
        raise ValueError(f"te is {te:g} ms, but the encoding takes {shortest:g} ms; give more.")
    off = (dead_time, np.zeros_like(rates[0]), False)
    on = [(p.duration, rate, p.stored) for p, rate in zip(profiles[0], rates, strict=True)]
    return WaveformAcquisition(
        [Waveforms(np.arange(rates.shape[2]), *concatenate_pieces([off, *on, off]))]
    )


def _b_of(profile):
    """b of a profile along one axis."""
    return superposed([profile], [[[1.0, 0, 0]]], None).b[0]


def _trapezoid(small_delta, ramp):
    flat = _gap("small_delta", small_delta, _time("ramp", ramp))
    return [Piece(ramp, 0, 1), Piece(flat, 1, 1), Piece(ramp, 1, 0)]


def _times(profile, factor):
    return [p._replace(start=factor * p.start, end=factor * p.end) for p in profile]


def _time(name, value):
    if np.ndim(value) or not 0 <= value <= checks.LONGEST_MS:
        raise ValueError(
            f"{name} is {value!r}; give one time in ms, from 0 to {checks.LONGEST_MS:g}."
        )
    return value


def _gap(name, value, occupied):
    gap = _time(name, value) - occupied
    if gap < -1e-9:
        raise ValueError(f"{name} is {value:g} ms; it must be at least {occupied:g} ms here.")
    return max(gap, 0.0)


def _weightings(b, directions):
    b, directions = checks.gradients(b, directions)
    return b, checks.unit_directions(directions, b, b == 0)
