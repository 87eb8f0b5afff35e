"""Progress of a fit in voxels.

The fit of a chunk reports the finished fraction with :func:`report_progress`; :func:`part` and
:func:`stepwise` give steps their fraction of the enclosing step. Each worker writes its number of
voxels to a file, and the bar shows the sum; without a common folder it shows finished chunks. The
bar says where a worker compiles functions, which happens once after installation. :func:`waiting`
names steps without voxels.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

_INTERVAL, _SHORT = 0.5, 2.0  # s, between updates, and of a step that is not named
_COMPILING = "compiling (first run only)"
_Item = TypeVar("_Item")


def _no_listener(share: float) -> None:
    """Without a progress bar."""


_listener: ContextVar[Callable[[float], None]] = ContextVar("_listener", default=_no_listener)


def report_progress(share: float) -> None:
    """Report the finished fraction of the current step, 0 to 1."""
    _listener.get()(share)


@contextmanager
def _with_listener(listener: Callable[[float], None]) -> Iterator[None]:
    previous = _listener.get()
    _listener.set(listener)
    try:
        yield
    finally:
        _listener.set(previous)


@contextmanager
def part(start: float, end: float) -> Iterator[None]:
    """A step from one fraction of the enclosing step to another.

    Examples
    --------
    >>> with _with_listener(print), part(0.5, 1.0):
    ...     report_progress(0.5)
    0.75
    1.0
    """
    outer = _listener.get()
    with _with_listener(lambda share: outer(start + share * (end - start))):
        yield
    outer(end)


def stepwise(items: Collection[_Item]) -> Iterator[_Item]:
    """Items that are steps of equal size."""
    for k, item in enumerate(items):
        with part(k / len(items), (k + 1) / len(items)):
            yield item


@dataclass(frozen=True)
class _Reported:
    """The fit of a chunk that writes the voxels finished by this worker to a file in a folder."""

    function: Callable
    folder: str

    def __call__(self, voxels: Any) -> Any:
        from numba.core.event import install_listener

        path = Path(self.folder) / f"{os.getpid()}-{threading.get_ident()}"
        n_previous = _number_in(path)

        def write(share):
            try:
                path.write_text(f"{n_previous + share * len(voxels):.3f}")
            except OSError:
                _listener.set(_no_listener)  # another machine

        marker = _marker(path.with_suffix(".compiling"))
        with _with_listener(write), install_listener("numba:compile", marker):
            result = self.function(voxels)
            write(1.0)
        return result


def _marker(path):
    """A listener to numba that writes the number of functions being compiled to a file."""
    from numba.core.event import Listener

    class Marker(Listener):
        depth = 0

        def on_start(self, event):
            self._write(1)

        def on_end(self, event):
            self._write(-1)

        def _write(self, change):
            self.depth += change
            with suppress(OSError):
                path.write_text(str(self.depth))

    return Marker()


def _compiles(path):
    """Whether functions are compiled, or were a moment ago: between two of them it is not said."""
    try:
        return _number_in(path) > 0 or time.time() - path.stat().st_mtime < _SHORT
    except OSError:
        return False


@contextmanager
def waiting(step: str, verbose: bool) -> Iterator[None]:
    """Name a step and its seconds on the screen, if it takes more than two and `verbose`."""
    ended = threading.Event()

    def watch():
        if not ended.wait(_SHORT):
            with tqdm(desc=step, bar_format="{desc} ... {elapsed}") as bar:
                while not ended.wait(_INTERVAL):
                    bar.refresh()

    thread = threading.Thread(target=watch, daemon=True)
    if verbose:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if verbose:
            thread.join()


def _number_in(path):
    try:
        return float(path.read_text() or 0)
    except (OSError, ValueError):  # does not exist yet, or is being written
        return 0.0


class Bar:
    """Context with a progress bar of voxels and the remaining time, if `verbose`."""

    def __init__(self, n_voxels: int, verbose: bool):
        self._verbose, self._found, self._finished = verbose, 0, 0
        self._bar = tqdm(total=n_voxels, unit="voxel", disable=not verbose)

    def __enter__(self) -> Bar:
        if self._verbose:
            self._folder = tempfile.TemporaryDirectory()
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._verbose:
            self._ended.set()
            self._thread.join()
            self._folder.cleanup()
            self._bar.set_description_str("", refresh=False)
            self._show(self._found + self._finished)
        self._bar.close()

    def fed_by(self, function: Callable) -> Callable:
        """The fit of a chunk, with a report of its progress if there is a bar."""
        return _Reported(function, self._folder.name) if self._verbose else function

    def found(self, n: int) -> None:
        """Count voxels of the journal."""
        self._found += n

    def finished(self, n: int) -> None:
        """Count voxels of finished chunks."""
        self._finished += n

    def _watch(self):
        on_screen = sys.stderr.isatty()
        while not self._ended.wait(_INTERVAL):
            files = [*Path(self._folder.name).iterdir()]
            compiling = any(_compiles(path) for path in files if path.suffix)
            self._bar.set_description_str(_COMPILING if compiling else "", refresh=False)
            n_computed = sum(_number_in(path) for path in files if not path.suffix)
            n = int(self._found + max(self._finished, n_computed))
            if on_screen or compiling or n > self._bar.n:
                self._show(n)

    def _show(self, n):
        self._bar.n = min(max(n, self._bar.n), self._bar.total)
        self._bar.refresh()
