"""Work that several threads share: as many as torch uses."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch


def in_threads(function: Callable, *arguments) -> list:
    """Results of a function of each row of arguments."""
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(function, *arguments))


def in_equal_parts(sweep: Callable, n_tasks: int, *arguments) -> None:
    """Call ``sweep(first, last, *arguments)`` for equal parts of the tasks.

    For compiled sweeps, which let go of the interpreter's lock.
    """
    n_threads = min(torch.get_num_threads(), n_tasks)
    if n_threads == 1:
        sweep(0, n_tasks, *arguments)
        return
    bounds = np.linspace(0, n_tasks, n_threads + 1).astype(int).tolist()
    in_threads(lambda k: sweep(bounds[k], bounds[k + 1], *arguments), range(n_threads))
