"""Gradient waveforms from files: text, as written for Siemens and GE scanners, and Pulseq."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.files import read_text
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.waveforms import Waveforms, concatenate_pieces
from dipy_spinverse.units import S

_ROTATION_TOLERANCE = 1e-3  # of R R^T; three digits in a file
_JUMP_MS = 1e-7  # where a gradient jumps, Pulseq gives two knots closer than this


def read_text_waveforms(
    before: str | PathLike, after: str | PathLike, *, b: ArrayLike, duration_before: float,
    duration_after: float, pause: float, rotations: ArrayLike | None = None,
    te: float | None = None,
) -> WaveformAcquisition:  # fmt: skip
    """Read a waveform that is played around a refocusing pulse from two text files.

    Each file has a row of three numbers (x, y, z) per sample, with blanks or commas between them;
    lines of one number (the count of samples) or of words may come first. Such files are written
    for the free-waveform sequences of Siemens and GE scanners by the optimiser NOW [1]_. The
    scanner spreads the samples over the duration, linear in between, and scales them; therefore
    their own scale does not matter.

    Parameters
    ----------
    before, after : path
        The files of both sides of the refocusing pulse, as played. The same file will do twice.
    b : array_like (M,)
        ms/um^2, to which the waveform is scaled.
    duration_before, duration_after, pause : float
        Of the two parts, and of the time between them, ms.
    rotations : array_like (M, 3, 3), optional
        From the frame of the file to that of the gradients, one for each measurement.
    te : float, optional
        Echo time in ms, whose middle is that of the pause. As short as possible where not given.

    Returns
    -------
    WaveformAcquisition

    Raises
    ------
    ValueError
        If a file cannot be understood, rotations are not orthogonal, or the parts do not refocus
        each other.

    References
    ----------
    .. [1] Sjolund et al., "Constrained optimization of gradient waveforms for generalized
       diffusion encoding", J. Magn. Reson. 261 (2015), https://doi.org/10.1016/j.jmr.2015.10.012

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "lobe.txt"
    >>> _ = path.write_text("4\\n0 0 0\\n1 0 0\\n1 0 0\\n0 0 0\\n")
    >>> read_text_waveforms(path, path, b=[1.0], duration_before=9, duration_after=9, pause=8)
    WaveformAcquisition(1 measurement, 0 b0, b <= 1 ms/um^2, up to 26 ms)
    """
    b = np.atleast_1d(checks.numeric("b", b))
    if b.ndim != 1 or not np.isfinite(b).all() or (b < 0).any():
        raise ValueError(f"b is {b!r}; give finite numbers of at least 0 (M,), ms/um^2.")
    parts = [_read_samples(before), -_read_samples(after)]
    durations = duration_before, duration_after
    times = checks.numeric("duration_before, duration_after and pause", (*durations, pause))
    if not ((times[:2] > 0).all() and times[2] >= 0 and times.max() <= checks.LONGEST_MS):
        raise ValueError(
            f"duration_before, duration_after and pause are {duration_before}, {duration_after} "
            f"and {pause} ms; give positive times, and a pause of at least 0, of at most "
            f"{checks.LONGEST_MS:g} ms."
        )
    if te is not None:
        checks.per_measurement("te", te, 1)
    half = (max(2 * max(durations) + pause, te or 0)) / 2
    if te is not None and te < 2 * half - checks.TE_SLACK_MS:
        raise ValueError(
            f"te is {te:g} ms; the longer part and half of the pause take {half:g} ms, so give at "
            f"least {2 * half:g} ms."
        )
    pieces, off = [], np.zeros((2, 1, 3))
    for samples, duration in zip(parts, durations, strict=True):
        ends = np.stack([samples[:-1], samples[1:]], axis=1)
        pieces.append([(duration / len(ends), end[:, None], False) for end in ends])
    first, last = (half - pause / 2 - duration for duration in durations)
    row = [(first, off, False), *pieces[0], (pause, off, False), *pieces[1], (last, off, False)]
    unit = Waveforms(np.arange(1), *concatenate_pieces(row))
    turned = np.einsum("mij,kej->kemi", _checked_rotations(rotations, len(b)), unit.rates[:, :, 0])
    scaled = turned * np.sqrt(b / WaveformAcquisition([unit]).b[0])[:, None]
    return WaveformAcquisition([replace(unit, rows=np.arange(len(b)), rates=scaled)])


def read_pulseq(path: str | PathLike, *, te: float | None = None) -> WaveformAcquisition:
    """Read the gradients of a Pulseq sequence, imaging gradients included.

    Each excitation that is followed by a readout is a measurement. Gradients count from the
    centre of its pulse to the echo, with the sign turned at each refocusing pulse.

    Parameters
    ----------
    path : path
        A ``.seq`` file.
    te : float, optional
        Echo time in ms; where not given, that of the spin echo of the pulses.

    Returns
    -------
    WaveformAcquisition

    Raises
    ------
    ValueError
        If pypulseq is not installed, if no excitation is followed by a readout, if one has no
        refocusing pulse, or if its gradients do not refocus at the echo.

    References
    ----------
    .. [1] Layton et al., "Pulseq: a rapid and hardware-independent pulse sequence prototyping
       framework", Magn. Reson. Med. 77 (2017), https://doi.org/10.1002/mrm.26235
    """
    try:
        from pypulseq import Sequence
    except ImportError as error:
        raise ValueError(
            f"path {path} needs pypulseq; install it with: pip install dipy_spinverse[pulseq]"
        ) from error
    sequence = Sequence()
    read_text("path", path)
    try:
        sequence.read(str(path), detect_rf_use=None)  # from flip angles, in files before 1.5
        gradients, excitations, refocusings, readout, _ = sequence.waveforms_and_times()
    except Exception as error:  # of any kind: the library does not check what it reads
        raise ValueError(f"path {path} is no Pulseq sequence that can be read: {error}") from error
    encodings = _spin_echoes(path, excitations[0], refocusings[0], readout, te)
    parts = []
    for duration in sorted({e[1] for e in encodings}):
        rows = [m for m, e in enumerate(encodings) if e[1] == duration]
        starts = [encodings[m][0] for m in rows]
        turns = [encodings[m][2] for m in rows]
        parts.append(_since_excitation(np.array(rows), starts, duration, turns, gradients))
    return WaveformAcquisition(parts)


def _spin_echoes(path, excitations, refocusings, readout, te):
    """(excitation in s, echo time in ms, refocusings in ms after it) of each measurement."""
    encodings = []
    ends = np.append(excitations, np.inf)[1:]
    for start, stop in zip(excitations, ends, strict=True):
        if not ((readout > start) & (readout < stop)).any():
            continue  # a preparation
        turns = S * (refocusings[(refocusings > start) & (refocusings < stop)] - start)
        if not len(turns):
            raise ValueError(
                f"path {path}: the excitation at {start:g} s has no refocusing pulse before its "
                "readout; only spin echoes are read."
            )
        # The times between the pulses, with alternating signs, must cancel at the echo.
        signs = (-1.0) ** np.arange(len(turns))
        echo = 2 * (signs[::-1] * turns).sum() if te is None else te
        if echo <= turns[-1]:
            raise ValueError(
                f"path {path}: the refocusing pulses after the excitation at {start:g} s make no "
                f"echo after the last of them; give te."
            )
        encodings.append((start, round(echo, 6), turns))
    if not encodings:
        raise ValueError(f"path {path}: no excitation is followed by a readout.")
    return encodings


def _since_excitation(rows, starts, duration, turns, gradients):
    """Waveforms of measurements of the same duration, on all their knots."""
    knots = [np.array([0.0, duration]), *turns]
    for start in starts:
        for times, _ in gradients:
            knots.append(S * (times - start))
    knots = np.unique(np.concatenate(knots).clip(0, duration).round(7))
    rates = np.zeros((len(knots) - 1, 2, len(rows), 3))
    for m, (start, flips) in enumerate(zip(starts, turns, strict=True)):
        sign = (-1.0) ** (knots[:-1, None] >= flips - _JUMP_MS).sum(axis=1)
        for axis, (times, hertz_per_m) in enumerate(gradients):
            if not len(times):
                continue
            for end, t in enumerate((knots[:-1] + _JUMP_MS, knots[1:] - _JUMP_MS)):
                g = np.interp(t / S + start, times, hertz_per_m, left=0, right=0)
                rates[:, end, m, axis] = 2e-9 * np.pi * sign * g
    return Waveforms(rows, knots, rates, np.zeros(len(rates), dtype=bool))


def _read_samples(path):
    rows = []
    for number, line in enumerate(read_text("path", path).splitlines(), start=1):
        words = line.replace(",", " ").split()
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if len(row) == 3:
            rows.append(row)
        elif rows and words:
            raise ValueError(
                f"path {path}, line {number} is {line[:60]!r}; it must hold the 3 numbers x y z."
            )
    if len(rows) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"path {path} must hold at least two rows of 3 finite numbers x y z.")
    return np.array(rows)


def _checked_rotations(rotations, n):
    if rotations is None:
        return np.broadcast_to(np.eye(3), (n, 3, 3))
    rotations = checks.numeric("rotations", rotations)
    if rotations.shape != (n, 3, 3):
        raise ValueError(f"rotations has shape {rotations.shape}; give ({n}, 3, 3).")
    apart = np.abs(rotations @ np.swapaxes(rotations, 1, 2) - np.eye(3)).max(axis=(1, 2))
    bad = ~(apart <= _ROTATION_TOLERANCE)
    if bad.any():
        raise ValueError(f"rotations is not orthogonal at measurement {np.argmax(bad)}.")
    return rotations
