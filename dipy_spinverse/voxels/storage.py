"""Files of arrays with a header in JSON, which are read without executing code."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

import numpy as np

from dipy_spinverse.voxels.memory import check_memory
from dipy_spinverse.voxels.unfinished import staging

# Exceptions that damaged archives, arrays and headers cause.
_DAMAGED = (
    BadZipFile, zlib.error, struct.error, KeyError, TypeError, ValueError, EOFError, OSError,
    RuntimeError, SyntaxError, AttributeError, OverflowError,
)  # fmt: skip


def write(path: Path | str, header: dict, arrays: Mapping[str, np.ndarray]) -> None:
    """Store a header (of JSON types) and arrays, compressed, with a checksum of both."""
    header = header | {"checksum": digest(header, arrays)}
    stored: dict[str, Any] = {"header": np.array(_text_of(header)), **arrays}
    write_whole(path, lambda file: np.savez_compressed(file, **stored))


def write_whole(path: Path | str, fill: Callable[[BinaryIO], Any]) -> None:
    """Write a file by a function of the open file; it appears when it is complete, or never."""
    path = Path(path)
    with staging(path.parent) as hidden:
        with open(hidden / path.name, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden / path.name, path)


def digest(header: Any, arrays: Mapping[str, Any]) -> str:
    """Checksum of JSON types and named arrays, the same in every process."""
    total = blake2b(_text_of(header).encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        total.update(f"{name} {array.dtype.newbyteorder('=').str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).data.cast("B")
                     if array.size else b"")  # fmt: skip
    return total.hexdigest()


def as_read(header: dict) -> dict:
    """A header as it is read from a file: with lists for tuples, and numbers of Python."""
    return json.loads(_text_of(header))


def _text_of(header):
    return json.dumps(header, default=np.generic.item, sort_keys=True)


def read(path: Path | str, kind: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays of :func:`write`; ValueError if damaged or of another "kind"."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}.")
    try:
        with ZipFile(path) as archive:
            check_memory(str(path), sum(member.file_size for member in archive.infolist()))
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        header = json.loads(str(arrays.pop("header")))
        stored_kind, checksum = header["kind"], header.pop("checksum", None)
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"path: {path} is not {kind} ({reason}); give a file of save()."
        ) from error
    if stored_kind != kind:
        raise ValueError(f"path: {path} holds {stored_kind}, not {kind}.")
    if checksum != digest(header, arrays):
        raise ValueError(
            f"path: {path} is not as save() wrote it: its checksum is wrong. It was changed or "
            "damaged, or is of a version before there were checksums; fit and save again."
        )
    return header, arrays
