"""Files of acquisitions: FSL text files, Camino schemes, BIDS sidecars."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dipy_spinverse.acquisition.checks import numeric, raise_where

_LONGEST_TEXT = 10**8  # bytes: 100 for each of a million measurements
_BIDS_FIELDS = {
    "big_delta": ("BigDelta", "LargeDelta", "DiffusionGradientSeparation"),
    "small_delta": ("SmallDelta", "DiffusionGradientDuration"),
    "te": ("EchoTime",),
    "mixing_time": ("MixingTime",),
}


def read_table(bvals, bvecs) -> tuple[np.ndarray, np.ndarray]:
    """b-values (M,) and b-vectors (M, 3), zeros for None, from paths or arrays."""
    stated = np.squeeze(_read_array("bvals", bvals)) if _is_path(bvals) else bvals
    bvals = np.atleast_1d(numeric("bvals", stated))
    bvecs = np.zeros((bvals.size, 3)) if bvecs is None else _read_array("bvecs", bvecs)
    bvecs = numeric("bvecs", bvecs)
    if bvecs.ndim == 2 and bvecs.shape[0] == 3 and bvecs.shape[1] != 3:
        bvecs = bvecs.T
    if bvals.ndim != 1 or bvecs.shape != (bvals.size, 3):
        raise ValueError(
            f"bvals and bvecs have shapes {bvals.shape} and {bvecs.shape}; give the same M "
            "measurements in both, shapes (M,) and (M, 3) or (3, M)."
        )
    return bvals, bvecs


def _read_array(name, value):
    """Numbers of a text or .npy file if `value` is a path; otherwise `value` itself."""
    if not _is_path(value):
        return value
    text = None if str(value).endswith(".npy") else read_text(name, value).replace(",", " ")
    try:
        return np.load(value) if text is None else np.loadtxt(text.splitlines(), ndmin=2)
    except (EOFError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: cannot read {value} ({error}). bvals must be a file of M numbers, bvecs of "
            "3 x M or M x 3 numbers."
        ) from error


def read_json(name: str, path: Path):
    """Parse a JSON file; `name` is the argument in error messages."""
    try:
        return json.loads(read_text(name, path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} {path} is not JSON: {error}.") from error


def read_text(name: str, path) -> str:
    """Text of a file; `name` is the argument in error messages."""
    path = Path(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{name}: {path} is not a file; give a text file.")
    size = path.stat().st_size
    if size > _LONGEST_TEXT:
        raise ValueError(
            f"{name}: {path} has {size} bytes, too many for a text file of measurements; give a "
            "text file, not an image."
        )
    try:
        return path.read_text(encoding="utf-8-sig")  # editors of Windows begin it with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {path} is not a text file ({error}).") from error


def read_numbers(name: str, value):
    """Numbers of a text file if `value` is a path; otherwise `value` itself."""
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
            "with one number per volume (times in seconds)."
        ) from error


def lines_of_numbers(path) -> Iterator[tuple[str, str, list[float]]]:
    """Place in error messages, text and numbers of each line; none of lines with other words."""
    for number, line in enumerate(read_text("path", path).splitlines(), start=1):
        try:
            row = [float(word) for word in line.replace(",", " ").split()]
        except ValueError:
            row = []
        yield f"path {path}, line {number}", line.strip(), row


def read_scheme_rows(path) -> np.ndarray:
    """Rows (M, 7) x y z |G| Delta delta TE of a Camino scheme of version 1."""
    rows = []
    for place, line, row in lines_of_numbers(path):
        if not line or line[0] in "#%":
            continue
        if line.upper().startswith("VERSION"):
            version = line.partition(":")[2].strip()
            if version.upper() not in ("STEJSKALTANNER", "1"):
                raise ValueError(
                    f"path {path} is a scheme of version {version!r}; only STEJSKALTANNER "
                    "(version 1: x y z |G| Delta delta TE) defines the timing of two pulses. "
                    "Convert it, or use Acquisition.from_files with the deltas."
                )
            continue
        if len(row) != 7:
            raise ValueError(
                f"{place} is {line[:60]!r}; it must be the 7 numbers x y z |G| Delta delta TE."
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"path {path} has no measurements; it must have 7 numbers per line.")
    table = np.array(rows)
    gradient, shorter = table[:, 3], table[:, 4:6].min(axis=1)
    raise_where(gradient < 0, f"path {path}: |G|", gradient, "T/m",
                "be >= 0. Invert the direction instead.")  # fmt: skip
    # b would be 0, as of a b0 measurement.
    raise_where((gradient > 0) & ~(shorter > 0), f"path {path}: the shorter of Delta and delta",
                shorter, "s", "be > 0 where |G| > 0.")  # fmt: skip
    return table


def sidecar_times(name: str, path: Path) -> dict[str, np.ndarray]:
    """Times in seconds in a BIDS sidecar; `name` is the argument in error messages."""
    sidecar = read_json(name, path)
    if not isinstance(sidecar, dict):
        raise ValueError(f"{name} {path} must be a JSON object of named fields.")
    times = {}
    for time, fields in _BIDS_FIELDS.items():
        present = [field for field in fields if sidecar.get(field) is not None]
        if present:
            source = f"{time} ({present[0]} in {path.name})"
            times[time] = numeric(source, sidecar[present[0]])
    return times


def read_bids(json_path) -> dict:
    """Arguments of `Acquisition.from_files` from a BIDS sidecar."""
    path = Path(json_path)
    arguments: dict[str, Any] = sidecar_times("json_path", path)
    absent = [name for name in ("big_delta", "small_delta") if name not in arguments]
    if absent:
        looked_for = "; ".join(f"{name}: {' or '.join(_BIDS_FIELDS[name])}" for name in absent)
        raise ValueError(
            f"json_path {path} lacks the timing of the pulses ({looked_for}). Add the first of "
            f"these fields, in seconds, or use Acquisition.from_files(bvals, bvecs, "
            f"big_delta=..., small_delta=...)."
        )
    for name, suffix in (("bvals", ".bval"), ("bvecs", ".bvec")):
        arguments[name] = table = path.with_suffix(suffix)
        if not table.is_file():
            raise ValueError(
                f"json_path {path} has no {table.name} in its folder. Put it there, or use "
                "Acquisition.from_files."
            )
    return arguments


def _is_path(value) -> bool:
    return isinstance(value, (str, os.PathLike))
