"""How much memory there is, and a clear word where it does not suffice."""

from __future__ import annotations

import os
from pathlib import Path

_SHARE = 0.5  # of what is free, by default
_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that this process can still take: of the machine, or of its share in a batch job."""
    free = [_of_machine()]
    try:
        most, used = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        free.append(int(most) - int(used))
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


def allowed(max_memory: float | None = None) -> float:
    """Bytes that may be used: as given, or half of what is free."""
    return _SHARE * free_memory() if max_memory is None else max_memory


def check_memory(what: str, n_bytes: float, max_memory: float | None = None) -> None:
    """Refuse what does not fit into memory, before anything is computed.

    Parameters
    ----------
    what : str
        Of which the message speaks.
    n_bytes : float
    max_memory : float, optional
        Bytes; half of what is free where not given.

    Raises
    ------
    MemoryError
    """
    most = allowed(max_memory)
    if n_bytes > most:
        raise MemoryError(
            f"{what} takes {n_bytes / _GIB:.3g} GiB, max_memory is {most / _GIB:.3g} GiB (half of "
            "what is free where it is not given). Fit fewer voxels at a time: give a mask of a "
            "part of the image, or a machine with more memory."
        )
