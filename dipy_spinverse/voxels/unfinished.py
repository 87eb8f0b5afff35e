"""Folders locked for one process, and removal of the remains of killed runs."""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
PREFIX = ".unfinished_"
# A hidden folder has no lock for an instant while it is created and removed. One that has none for
# longer than this is of a run that was killed at that instant. By hand.
_MAX_UNLOCKED_S = 60.0


def visible(folder: Path) -> list[Path]:
    """Files of a folder without the hidden ones of this package."""
    return [path for path in folder.iterdir() if not path.name.startswith((LOCK, PREFIX))]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder until this process ends in any way; BlockingIOError if it is locked."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            f"another run writes to {folder}; wait until it ends, or give another folder",
        ) from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


def remove_remains(folder: Path) -> None:
    """Remove the hidden folders of killed runs, not those of running ones, from a folder."""
    for hidden in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            locked = (hidden / LOCK).exists()
            if locked or time.time() - hidden.stat().st_mtime > _MAX_UNLOCKED_S:
                with alone_in(hidden):
                    shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A hidden folder for files that are moved into `folder` when they are complete.

    It is removed afterwards; those of killed runs are removed before.
    """
    remove_remains(folder)
    hidden = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
    try:
        with alone_in(hidden):
            yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
