"""Folders that one run alone writes to, for as long as it lives, and what killed runs leave."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
PREFIX = ".unfinished_"


def visible(folder: Path) -> list[Path]:
    """What is in a folder but for what this package hides there."""
    return [path for path in folder.iterdir() if not path.name.startswith((LOCK, PREFIX))]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; the system opens it again however this process ends.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    BlockingIOError
        Another run is in it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            f"another run writes to {folder}; wait for its end, or give another folder",
        ) from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A hidden folder for files that go into another when they are complete.

    It is removed afterwards, as are before those of runs that were killed.

    Parameters
    ----------
    folder : Path
        Where they go.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp())
    >>> with staging(folder) as hidden:
    ...     _ = (hidden / "map.txt").write_text("complete")
    ...     _ = (hidden / "map.txt").replace(folder / "map.txt")
    >>> [path.name for path in folder.iterdir()]
    ['map.txt']
    """
    for left_over in folder.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), alone_in(left_over.parent):
            shutil.rmtree(left_over.parent, ignore_errors=True)
    hidden = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
    try:
        with alone_in(hidden):
            yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
