"""Free memory, and an error message if it is not sufficient."""

from __future__ import annotations

import os
from pathlib import Path

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that this process can still allocate, on the machine or within a batch job."""
    free = [_of_machine()]
    try:
        limit, usage = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        free.append(int(limit) - int(usage))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        pass
    return max(min(free), 0)


def _of_machine():
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 4 * _GIB


def check_memory(subject: str, n_bytes: float, max_memory: float | None = None) -> None:
    """MemoryError if n_bytes are more than `max_memory`, by default half of the free memory."""
    limit = free_memory() / 2 if max_memory is None else max_memory
    if n_bytes > limit:
        raise MemoryError(
            f"{subject} takes {n_bytes / _GIB:.3g} GiB, max_memory is {limit / _GIB:.3g} GiB (by "
            "default half of the free memory). Fit fewer voxels at a time: give a mask of a "
            "part of the image, or a machine with more memory."
        )
