"""Finished chunks of a fit on disk, from which an interrupted fit resumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.unfinished import alone_in, remove_remains

_KIND = "a chunk of a fit"


@dataclass(frozen=True, eq=False)
class Journal:
    """A folder with one file per finished chunk, named by a digest of all that determines it.

    So chunks of other data or settings are never used, and several fits can share a folder. A
    damaged file counts as missing. `identity` is the digest of all that determines the fit.
    """

    folder: Path
    identity: str

    def find(self, rows: np.ndarray) -> dict[str, np.ndarray] | None:
        """Values of the chunk of these voxels; None if there is no intact file."""
        try:
            return storage.read(self._path(rows), _KIND)[1]
        except (OSError, ValueError):
            return None

    def keep(self, rows: np.ndarray, values: Mapping[str, Any]) -> None:
        """Write the values of the chunk of these voxels; OSError if that is impossible."""
        arrays = {name: np.asarray(value) for name, value in values.items()}
        try:
            storage.write(self._path(rows), {"kind": _KIND}, arrays)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def _path(self, rows):
        return self.folder / f"{storage.digest(self.identity, {'rows': rows})}.npz"


@contextmanager
def open_journal(folder: str | Path, identity: str) -> Iterator[Journal]:
    """The journal of a fit in a folder that is locked against other processes.

    OSError if the folder cannot be written to, or another process writes to it.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone_in(folder))
            remove_remains(folder)
        except BlockingIOError as error:
            raise OSError(error.errno, f"journal: {error.strerror}") from None
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield Journal(folder, identity)


def _unwritable(folder, error):
    return OSError(
        error.errno,
        f"journal: cannot write to {folder} ({error}). Finished voxels are kept there; free disk "
        "space or give a writable folder, and start the same fit again",
    )
