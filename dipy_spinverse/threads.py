"""Loops with as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch

_kept: ContextVar[int | None] = ContextVar("_kept", default=None)


def n_threads() -> int:
    """Number of threads of the loops of this package."""
    return _kept.get() or torch.get_num_threads()


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """One thread for torch, whose rounding depends on their number; loops keep theirs."""
    usual, token = torch.get_num_threads(), _kept.set(n_threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
        _kept.reset(token)


def in_threads(function: Callable, *arguments) -> list:
    """Results of a function for each row of arguments, like `map`."""
    with ThreadPoolExecutor(n_threads()) as threads:
        return list(threads.map(function, *arguments))


def in_equal_parts(sweep: Callable, n_tasks: int, *arguments) -> None:
    """Call ``sweep(first, last, *arguments)``, compiled without GIL, for parts of the tasks."""
    n_parts = min(n_threads(), n_tasks)
    if n_parts == 1:
        sweep(0, n_tasks, *arguments)
        return
    bounds = np.linspace(0, n_tasks, n_parts + 1).astype(int).tolist()
    in_threads(lambda k: sweep(bounds[k], bounds[k + 1], *arguments), range(n_parts))
