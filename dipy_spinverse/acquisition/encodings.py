"""Acquisitions of the usual gradient waveforms, in ms and ms/um^2.

Each function takes one timing; :func:`combined` puts several acquisitions into one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.acquisition.waveforms import Waveforms, joined

_SAMPLES_PER_PERIOD = 256
_TE_SLACK_MS = 5e-3


def pulsed_gradients(
    b: ArrayLike, directions: ArrayLike, small_delta: float, big_delta: float, *,
    ramp: float = 0.0, mixing_time: float = 0.0, te: float | None = None,
) -> WaveformAcquisition:  # fmt: skip
    """Spin or stimulated echo with two trapezoidal pulses.

    Parameters
    ----------
    b : array_like (M,)
        ms/um^2.
    directions : array_like (M, 3)
        Unit vectors.
    small_delta : float
        Duration of a pulse from the start of its ramp up to the start of its ramp down, ms.
    big_delta : float
        Separation of the starts of the pulses, ms.
    ramp : float, optional
        Duration of a ramp, ms.
    mixing_time : float, optional
        Time between the pulses, in its middle, during which the magnetisation is stored and
        decays with T1, ms. The factor 1/2 of a stimulated echo is left to S0.
    te : float, optional
        Echo time without the mixing time, ms; as short as possible where not given.

    Returns
    -------
    WaveformAcquisition

    Raises
    ------
    ValueError
        Where the pulses, ramps and mixing time do not fit, or b and directions are bad.

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
    profile = [*pulse, (apart, 0, 0, False), (mixing_time, 0, 0, True), (apart, 0, 0, False)]
    profile += _times(pulse, -1)
    return _played([profile], [np.sqrt(b / _b_of(profile))[:, None] * directions], te)


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
    small_delta, big_delta, ramp : float
        Of each pair, as in :func:`pulsed_gradients`.
    mixing_time : float
        From the start of the second pulse to the start of the third, ms.
    te : float, optional
        ms.

    Returns
    -------
    WaveformAcquisition

    Raises
    ------
    ValueError
        As :func:`pulsed_gradients`.

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
    pair = [*pulse, (rest, 0, 0, False), *_times(pulse, -1)]
    wait = (between, 0, 0, False)
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
    b : array_like (M,)
        ms/um^2.
    directions : array_like (M, 3)
        Unit vectors.
    period : float
        ms.
    n_periods : int
        On each side.
    separation : float
        From the start of the oscillation on one side to that on the other, ms.
    shape : {"cosine", "sine"}, optional
        Of the gradient; the same on both sides, as played. The cosine's q(t) has no mean, and is
        symmetric in time; the sine's is not.
    te : float, optional
        ms.

    Returns
    -------
    WaveformAcquisition

    Raises
    ------
    ValueError
        As :func:`pulsed_gradients`.

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
    oscillation = [(step, g, h, False) for g, h in zip(wave[:-1], wave[1:], strict=True)]
    rest = _gap("separation", separation, n_periods * period)
    profile = [*oscillation, (rest, 0, 0, False), *_times(oscillation, -1)]
    return _played([profile], [np.sqrt(b / _b_of(profile))[:, None] * directions], te)


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
    te : float, optional
        ms.

    Returns
    -------
    WaveformAcquisition

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
    duration = _time("duration", duration)
    t = np.linspace(0, 1, _SAMPLES_PER_PERIOD + 1)
    length, azimuth = np.sin(np.pi * t), 2 * np.pi * t - np.sin(2 * np.pi * t)
    e = np.stack([np.cos(azimuth), np.sin(azimuth), np.full_like(t, np.sqrt(0.5))]) * length
    rates = np.diff(e, axis=1).T / (duration / _SAMPLES_PER_PERIOD)
    knots = duration * t
    unit = Waveforms(
        np.arange(1), knots, np.repeat(rates[:, None, None], 2, axis=1), np.zeros(len(rates), bool)
    )
    values, axes = np.linalg.eigh(unit.b_tensors()[0])
    rates = rates @ (axes / np.sqrt(values)) @ axes.T  # integral of e e^T is 1
    values, axes = np.linalg.eigh(tensors)
    # The axis of e(t) is that of the eigenvalue farthest from the others.
    alone = values[:, 2] - values[:, 1] >= values[:, 1] - values[:, 0]
    order = np.where(alone[:, None], [0, 1, 2], [1, 2, 0])
    values = np.take_along_axis(values, order, axis=1)
    axes = np.take_along_axis(axes, order[:, None], axis=2)
    vectors = np.sqrt(np.maximum(values, 0))[:, None] * axes
    profiles = [
        [(duration / _SAMPLES_PER_PERIOD, g, g, False) for g in rates[:, k]] for k in range(3)
    ]
    return _played(profiles, np.moveaxis(vectors, 2, 0), te)


def combined(*acquisitions: Acquisition) -> WaveformAcquisition:
    """One acquisition with all measurements of several, of any kind, in a row.

    Examples
    --------
    >>> short = pulsed_gradients([1.0], [[1, 0, 0]], 8, 20)
    >>> len(combined(short, double_diffusion([0.5], [[1, 0, 0]], [[0, 1, 0]], 5, 20, 25)))
    2
    """
    parts, n = [], 0
    for acquisition in acquisitions:
        parts += [
            Waveforms(part.rows + n, part.times, part.rates, part.stored)
            for part in acquisition.waveforms
        ]
        n += len(acquisition)
    threshold = max(acquisition.b0_threshold for acquisition in acquisitions)
    return WaveformAcquisition(parts, threshold)


def _played(profiles, vectors, te):
    """Acquisition of dq/dt = sum_c profile_c(t) vector_c, in the middle of the echo time.

    profiles: C rows of pieces (duration, rate at start, rate at end, stored), of the same
    durations; vectors (C, M, 3).
    """
    durations, stored = [piece[0] for piece in profiles[0]], [piece[3] for piece in profiles[0]]
    shapes = np.array([[piece[1:3] for piece in profile] for profile in profiles])
    rates = np.einsum("cke,cmi->kemi", shapes, np.asarray(vectors))
    lasting = sum(d for d, s in zip(durations, stored, strict=True) if not s)
    dead = 0.0 if te is None else (_time("te", te) - lasting) / 2
    if dead < -_TE_SLACK_MS:
        raise ValueError(f"te is {te:g} ms, but the encoding takes {lasting:g} ms; give more.")
    off = (dead, np.zeros_like(rates[0]), False)
    pieces = [off, *zip(durations, rates, stored, strict=True), off]
    return WaveformAcquisition([Waveforms(np.arange(rates.shape[2]), *joined(pieces))])


def _b_of(profile):
    """b of a profile of unit amplitude along one axis."""
    pieces = [
        (span, np.array([[[g, 0, 0]], [[h, 0, 0]]], dtype=float), s) for span, g, h, s in profile
    ]
    return Waveforms(np.arange(1), *joined(pieces)).b_tensors()[0, 0, 0]


def _trapezoid(small_delta, ramp):
    flat = _gap("small_delta", small_delta, _time("ramp", ramp))
    return [(ramp, 0, 1, False), (flat, 1, 1, False), (ramp, 1, 0, False)]


def _times(profile, factor):
    return [(span, factor * g, factor * h, s) for span, g, h, s in profile]


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
