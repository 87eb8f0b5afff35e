"""Gradient waveforms from files: text files for Siemens and GE scanners, and Pulseq."""

from __future__ import annotations

from itertools import pairwise
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.encodings import Piece, superposed
from dipy_spinverse.acquisition.files import lines_of_numbers, read_text
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.waveforms import Waveforms
from dipy_spinverse.units import S

_ROTATION_TOLERANCE = 1e-3  # of R R^T; rotations are written with three digits or more
_JUMP_MS = 1e-7  # pypulseq represents a step of the gradient by two knots closer than this


def read_text_waveforms(
    before: str | PathLike, after: str | PathLike, *, b: ArrayLike, duration_before: float,
    duration_after: float, pause: float, rotations: ArrayLike | None = None,
    te: float | None = None,
) -> WaveformAcquisition:  # fmt: skip
    """Read the two parts of a waveform around a refocusing pulse from two text files.

    Each file has a row of three numbers (x, y, z) per sample, separated by blanks or commas, after
    optional lines of one number (the count of samples) or of words. The optimiser NOW [1]_ writes
    such files for the free-waveform sequences of Siemens and GE scanners. As on the scanner, the
    samples are spread over the duration, linear in between, and scaled to b.

    Parameters
    ----------
    before, after : path
        Gradients before and after the refocusing pulse, without its sign change; may be the same
        file.
    b : array_like (M,)
        ms/um^2.
    duration_before, duration_after, pause : float
        Durations of the two parts and of the time between them, ms.
    rotations : array_like (M, 3, 3), optional
        From the frame of the file to that of the gradients, for each measurement.
    te : float, optional
        Echo time in ms, centred on the pause. Default: as short as possible.

    Raises
    ------
    ValueError
        A file that cannot be parsed, rotations that are not orthogonal, or parts that do not
        refocus.

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
    lobes = [_read_samples(before), -_read_samples(after)]
    durations = duration_before, duration_after
    times = checks.numeric("duration_before, duration_after and pause", (*durations, pause))
    if not ((times[:2] > 0).all() and times[2] >= 0 and times.max() <= checks.LONGEST_MS):
        raise ValueError(
            f"duration_before, duration_after and pause are {duration_before}, {duration_after} "
            f"and {pause} ms; give positive durations and a pause of at least 0, all of at most "
            f"{checks.LONGEST_MS:g} ms."
        )
    before_pause, after_pause = (
        [
            [Piece(duration / (len(lobe) - 1), start, end) for start, end in pairwise(component)]
            for component in lobe.T
        ]
        for lobe, duration in zip(lobes, durations, strict=True)
    )
    # The echo time is centred on the pause.
    first_wait, last_wait = (Piece(max(durations) - duration) for duration in durations)
    profiles = [
        [first_wait, *lobe_before, Piece(pause), *lobe_after, last_wait]
        for lobe_before, lobe_after in zip(before_pause, after_pause, strict=True)
    ]
    scale = np.sqrt(b / superposed(profiles, np.eye(3)[:, None], None).b[0])
    axes = np.moveaxis(_checked_rotations(rotations, len(b)), 2, 0)
    return superposed(profiles, scale[:, None] * axes, te)


def read_pulseq(path: str | PathLike, *, te: float | None = None) -> WaveformAcquisition:
    """Read the gradients of a Pulseq sequence, imaging gradients included.

    Each excitation followed by a readout is a measurement, from the centre of the pulse to the
    echo. Refocusing pulses invert the sign of the effective gradient.

    Parameters
    ----------
    path : path
        A ``.seq`` file.
    te : float, optional
        Echo time in ms. Default: of the spin echo of the refocusing pulses.

    Raises
    ------
    ValueError
        pypulseq is not installed; no excitation with a readout; an excitation without a
        refocusing pulse; gradients that are not refocused at the echo.

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
        sequence.read(str(path), detect_rf_use=None)  # files before 1.5 state no use
        gradients, excitations, refocusings, readout, _ = sequence.waveforms_and_times()
    except Exception as error:  # the library does not validate files
        raise ValueError(f"path {path} cannot be read as a Pulseq sequence: {error}") from error
    encodings = _spin_echoes(path, excitations[0], refocusings[0], readout, te)
    durations = np.array([duration for _, duration, _ in encodings])
    groups = [np.flatnonzero(durations == duration) for duration in np.unique(durations)]
    return WaveformAcquisition(
        [_effective_gradients(m, [encodings[k] for k in m], gradients) for m in groups]
    )


def _spin_echoes(path, excitations, refocusings, readout, te):
    """(excitation in s, echo time in ms, refocusings in ms after it) of each measurement."""
    encodings = []
    for start, stop in pairwise([*excitations, np.inf]):
        if not ((readout > start) & (readout < stop)).any():
            continue  # a preparation
        refocusing = S * (refocusings[(refocusings > start) & (refocusings < stop)] - start)
        if not len(refocusing):
            raise ValueError(
                f"path {path}: the excitation at {start:g} s has no refocusing pulse before its "
                "readout; only spin echoes are supported."
            )
        # Intervals between the pulses, with alternating signs, cancel at the echo.
        signs = (-1.0) ** np.arange(len(refocusing))
        echo = 2 * (signs[::-1] * refocusing).sum() if te is None else te
        if echo <= refocusing[-1]:
            raise ValueError(
                f"path {path}: the refocusing pulses after the excitation at {start:g} s make no "
                f"echo after the last of them; give te."
            )
        encodings.append((start, round(echo, 6), refocusing))
    if not encodings:
        raise ValueError(f"path {path}: no excitation is followed by a readout.")
    return encodings


def _effective_gradients(rows, encodings, gradients):
    """Waveforms of measurements of the same duration, on the union of their knots."""
    duration = encodings[0][1]
    knots = [np.array([0.0, duration])]
    for start, _, refocusing in encodings:
        knots += [refocusing, *(S * (times - start) for times, _ in gradients)]
    knots = np.unique(np.concatenate(knots).clip(0, duration).round(7))
    rates = np.zeros((len(knots) - 1, 2, len(rows), 3))
    for m, (start, _, pulses) in enumerate(encodings):
        sign = (-1.0) ** (knots[:-1, None] >= pulses - _JUMP_MS).sum(axis=1)
        for axis, (times, hertz_per_m) in enumerate(gradients):
            if not len(times):
                continue
            for side, t in enumerate((knots[:-1] + _JUMP_MS, knots[1:] - _JUMP_MS)):
                g = np.interp(t / S + start, times, hertz_per_m, left=0, right=0)
                rates[:, side, m, axis] = 2e-9 * np.pi * sign * g
    return Waveforms(rows, knots, rates, np.zeros(len(rates), dtype=bool))


def _read_samples(path):
    rows = []
    for place, line, row in lines_of_numbers(path):
        if len(row) == 3:
            rows.append(row)
        elif rows and line.strip(" ,"):
            raise ValueError(f"{place} is {line[:60]!r}; it must be the 3 numbers x y z.")
    if len(rows) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"path {path} must have at least two rows of 3 finite numbers x y z.")
    return np.array(rows)


def _checked_rotations(rotations, n):
    if rotations is None:
        return np.broadcast_to(np.eye(3), (n, 3, 3))
    rotations = checks.numeric("rotations", rotations)
    if rotations.shape != (n, 3, 3):
        raise ValueError(f"rotations has shape {rotations.shape}; give ({n}, 3, 3).")
    deviation = np.abs(rotations @ np.swapaxes(rotations, 1, 2) - np.eye(3)).max(axis=(1, 2))
    checks.raise_where(~(deviation <= _ROTATION_TOLERANCE), "rotations: the largest |R R^T - 1|",
                       deviation, "", "be 0. Correct it.")  # fmt: skip
    return rotations
