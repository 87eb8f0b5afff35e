"""The files an `Acquisition` is read from: FSL text, Camino schemes, BIDS sidecars."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from dipy.io import read_bvals_bvecs

from dipy_spinverse.acquisition.checks import numeric

_LONGEST_TEXT = 10**8  # bytes: a line of numbers for each of a million measurements
_STEJSKALTANNER = ("STEJSKALTANNER", "1")
BIDS_FIELDS = {
    "big_delta": ("BigDelta", "LargeDelta", "DiffusionGradientSeparation"),
    "small_delta": ("SmallDelta", "DiffusionGradientDuration"),
    "te": ("EchoTime",),
    "mixing_time": ("MixingTime",),
}


def read_table(bvals, bvecs) -> tuple[np.ndarray, np.ndarray]:
    """b-values (M,) and b-vectors (M, 3), zeros where None, from paths or arrays."""
    paths = [value if _is_path(value) else None for value in (bvals, bvecs)]
    for name, path in zip(("bvals", "bvecs"), paths, strict=True):
        if path is not None and not str(path).endswith(".npy"):
            read_text(name, path)
    try:
        from_file = read_bvals_bvecs(*paths)
    except FileNotFoundError:
        raise
    except (OSError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(
            f"bvals, bvecs: cannot read {' and '.join(str(path) for path in paths if path)} "
            f"({error}). They must be text files of M numbers and of 3 x M or M x 3 numbers."
        ) from error
    bvals = from_file[0] if _is_path(bvals) else bvals
    bvecs = from_file[1] if _is_path(bvecs) else bvecs
    bvals = np.atleast_1d(numeric("bvals", bvals))
    bvecs = np.zeros((bvals.size, 3)) if bvecs is None else numeric("bvecs", bvecs)
    if bvecs.ndim == 2 and bvecs.shape[0] == 3 and bvecs.shape[1] != 3:
        bvecs = bvecs.T
    if bvals.ndim != 1 or bvecs.shape != (bvals.size, 3):
        raise ValueError(
            f"bvals and bvecs have shapes {bvals.shape} and {bvecs.shape}; they must hold the "
            "same M measurements, shapes (M,) and (M, 3) or (3, M)."
        )
    return bvals, bvecs


def read_json(name: str, path: Path):
    """What a JSON file of some kilobytes holds.

    Parameters
    ----------
    name : str
        Argument of which messages speak.
    path : Path

    Raises
    ------
    ValueError
        No JSON, or more than a sidecar can be: nested too deeply, or too long.
    """
    try:
        return json.loads(read_text(name, path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} {path} is not JSON: {error}.") from error


def read_text(name: str, path) -> str:
    """Text of a small file.

    Raises
    ------
    ValueError
        A file that is too long for a list of measurements, or no text.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > _LONGEST_TEXT:
        raise ValueError(
            f"{name}: {path} has {size} bytes, too many for a text file of measurements; is it "
            "an image?"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {path} is no text file ({error}).") from error


def read_numbers(name: str, value):
    """A number as given, or the numbers of the text file that a path names."""
    if not _is_path(value):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    text = read_text(name, value).replace(",", " ")
    try:
        return np.array(text.split(), dtype=float)
    except ValueError as error:
        raise ValueError(
            f"{name}: {value} is not a text file of numbers ({error}). Give a number, or a file "
            "with one per volume (times in seconds)."
        ) from error


def read_scheme_rows(path) -> np.ndarray:
    """The rows (M, 7) x y z |G| Delta delta TE of a Camino scheme of version 1, as written."""
    rows = []
    for number, line in enumerate(read_text("path", path).splitlines(), start=1):
        line = line.strip()
        if not line or line[0] in "#%":
            continue
        if line.upper().startswith("VERSION"):
            version = line.partition(":")[2].strip()
            if version.upper() not in _STEJSKALTANNER:
                raise ValueError(
                    f"path {path} is a scheme of version {version!r}; only STEJSKALTANNER "
                    "(version 1: x y z |G| Delta delta TE) holds the timing of two pulses. "
                    "Convert it, or use Acquisition.from_files with the deltas."
                )
            continue
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            row = []
        if len(row) != 7:
            raise ValueError(
                f"path {path}, line {number} is {line[:60]!r}; it must hold the 7 numbers "
                "x y z |G| Delta delta TE."
            )
        _check_row(path, number, *row[3:6])
        rows.append(row)
    if not rows:
        raise ValueError(f"path {path} holds no measurements; it must have 7 numbers a line.")
    return np.array(rows)


def read_bids(json_path) -> dict:
    """The arguments of `Acquisition.from_files` that a BIDS sidecar stands for."""
    path = Path(json_path)
    sidecar = read_json("json_path", path)
    if not isinstance(sidecar, dict):
        raise ValueError(f"json_path {path} must hold a JSON object of named fields.")
    arguments = {}
    for name, fields in BIDS_FIELDS.items():
        found = [field for field in fields if sidecar.get(field) is not None]
        if found:
            arguments[name] = numeric(f"{name} ({found[0]} in {path.name})", sidecar[found[0]])
    absent = [name for name in ("big_delta", "small_delta") if name not in arguments]
    if absent:
        looked_for = "; ".join(f"{name}: {' or '.join(BIDS_FIELDS[name])}" for name in absent)
        raise ValueError(
            f"json_path {path} lacks the timing of the pulses ({looked_for}). Add the first-named "
            f"field in seconds, or use Acquisition.from_files(bvals, bvecs, big_delta=..., "
            f"small_delta=...)."
        )
    beside = {}
    for name, suffix in (("bvals", ".bval"), ("bvecs", ".bvec")):
        beside[name] = path.with_suffix(suffix)
        if not beside[name].is_file():
            raise ValueError(
                f"json_path {path} has no {beside[name].name} beside it. Put it there, or "
                "use Acquisition.from_files."
            )
    return arguments | beside


def _is_path(value) -> bool:
    return isinstance(value, (str, os.PathLike))


def _check_row(path, number, gradient, big_delta, small_delta):
    if gradient < 0:
        raise ValueError(
            f"path {path}, line {number}: |G| is {gradient:g} T/m; it must be >= 0. Turn the "
            "direction instead."
        )
    # b would come out as 0, and the row pass for a b0
    if gradient > 0 and not (big_delta > 0 and small_delta > 0):
        raise ValueError(
            f"path {path}, line {number}: Delta and delta are {big_delta:g} and {small_delta:g} s "
            f"with |G| = {gradient:g} T/m; they must be > 0 where a gradient is played."
        )
