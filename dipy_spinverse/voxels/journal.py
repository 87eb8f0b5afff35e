"""Finished chunks of a fit on disk, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.unfinished import PREFIX, alone_in, visible

_ABOUT = "journal.json"
_DIFFERS = {
    "version": "was written by version {old} of dipy_spinverse, this is {new}",
    "model": "is of a {old}, this is a {new}",
    "settings": "is of a model or a fit with other settings",
    "data": "is of other data, or of another mask",
}


@dataclass(frozen=True, eq=False)
class Journal:
    """A folder with a file of HDF5 for each chunk, whose name holds its checksum.

    A file appears under its name when it is complete; one that is damaged counts for nothing.

    Attributes
    ----------
    folder : Path
    files : dict of Path
        Of the chunks that are there, by their numbers.
    """

    folder: Path
    files: Mapping[int, Path]

    def find(self, k: int, rows: np.ndarray) -> dict[str, np.ndarray] | None:
        """Values of the voxels of a chunk; None where it is not there, or damaged."""
        if k not in self.files:
            return None
        try:
            content = self.files[k].read_bytes()
            if _name(k, content) != self.files[k].name:
                return None
            with h5py.File(BytesIO(content), "r") as file:
                values = {name: value[()] for name, value in file.items()}
        except OSError:
            return None
        same = np.array_equal(values.pop("rows", None), rows)
        return values if same else None

    def keep(self, k: int, rows: np.ndarray, values: Mapping[str, Any]) -> None:
        """Write the values of a chunk.

        Raises
        ------
        OSError
            Where they cannot be written; what was written before stays.
        """
        memory = BytesIO()
        with h5py.File(memory, "w") as file:
            for name, value in ({"rows": rows} | dict(values)).items():
                file.create_dataset(name, data=np.asarray(value))
        content = memory.getvalue()
        try:
            storage.whole(self.folder / _name(k, content), lambda file: file.write(content))
        except OSError as error:
            raise _unwritable(self.folder, error) from error


@contextmanager
def open_journal(folder: str | Path, identity: Mapping[str, str]) -> Iterator[Journal]:
    """The journal of a fit, new or begun before, kept from other runs.

    Parameters
    ----------
    folder : path
    identity : mapping of str
        "version", "model", and checksums of "settings" and "data".

    Raises
    ------
    ValueError
        A folder with other files, or the journal of another fit.
    OSError
        A folder that cannot be written to, or that another run writes to.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if visible(folder):
                _read(folder)
            stack.enter_context(alone_in(folder))
            journal = _opened(folder, identity)
        except BlockingIOError as error:
            raise OSError(error.errno, f"journal: {error.strerror}") from None
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield journal


def _opened(folder, identity):
    """A journal in a folder of one's own, without what a killed run left unfinished."""
    about = _read(folder) if visible(folder) else dict(identity)
    for name, text in _DIFFERS.items():
        if about[name] != identity[name]:
            said = text.format(old=about[name], new=identity[name])
            raise ValueError(
                f"journal: {folder} {said}. Start the same fit again, or give another folder for "
                "this one."
            )
    for left_over in folder.glob(f"{PREFIX}*"):
        left_over.unlink()
    content = json.dumps(about, indent=2).encode()
    # Also where it is there: a folder that cannot be written to is found out now.
    storage.whole(folder / _ABOUT, lambda file: file.write(content))
    files = {int(path.name[:8]): path for path in sorted(folder.glob("[0-9]*-*.h5"))}
    return Journal(folder, files)


def _read(folder):
    try:
        about = json.loads((folder / _ABOUT).read_text())
        if _DIFFERS.keys() <= about.keys():
            return about
        reason = "it says not enough"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error)
    raise ValueError(
        f"journal: {folder} holds files, but no {_ABOUT} of a fit ({reason}); give an empty "
        "folder, or one that there is not yet."
    )


def _name(k, content):
    return f"{k:08d}-{blake2b(content, digest_size=8).hexdigest()}.h5"


def _unwritable(folder, error):
    return OSError(
        error.errno,
        f"journal: cannot write to {folder} ({error}). What is finished stays there; make room, "
        "or give a folder that can be written to, and start again",
    )
