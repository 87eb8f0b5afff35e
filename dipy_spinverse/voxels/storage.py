"""Files of arrays and a header in JSON: nothing in them is code, nothing in them is run."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np


def write(path: Path | str, header: dict, arrays: dict[str, np.ndarray]) -> None:
    """Store a header and arrays, compressed.

    Parameters
    ----------
    path : path
    header : dict
        Of what JSON holds.
    arrays : dict of ndarray
    """
    stored: dict[str, Any] = {"header": np.array(_text_of(header)), **arrays}
    with open(path, "wb") as file:
        np.savez_compressed(file, **stored)


def as_read(header: dict) -> dict:
    """A header as it is after a file: tuples are lists, NumPy's numbers are Python's."""
    return json.loads(_text_of(header))


def _text_of(header):
    return json.dumps(header, default=np.generic.item)


def read(path: Path | str, kind: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays of :func:`write`.

    Parameters
    ----------
    path : path
    kind : str
        What the header must say under "kind".

    Raises
    ------
    ValueError
        A file of another kind, or a damaged one.
    """
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        header = json.loads(str(arrays.pop("header")))
        found = header["kind"]
    except (BadZipFile, zlib.error, KeyError, TypeError, ValueError, EOFError) as error:
        raise ValueError(
            f"path: {path} is not {kind} ({error}); give a file of save()."
        ) from error
    if found != kind:
        raise ValueError(f"path: {path} holds {found}, not {kind}.")
    return header, arrays
