"""How much memory there is for what is to be read: asked before anything is allocated."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60


def free_memory(meminfo: Path | None = None) -> int:
    """Bytes that this process can still take, of its machine and of its container.

    Parameters
    ----------
    meminfo
        A file to ask instead of the system: then nothing else is asked, and there is no limit where it says
        none.
    """
    if meminfo is not None:
        return _available(meminfo, _NO_LIMIT)
    free = _available(_MEMINFO, _of_machine())
    with suppress(OSError, ValueError):  # a container may have less than its machine
        most, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, max(0, most - used))
    return free


def _available(meminfo: Path, otherwise: int) -> int:
    with suppress(OSError, ValueError, StopIteration):
        line = next(one for one in meminfo.read_text().splitlines() if one.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return otherwise


def _of_machine() -> int:
    """All that the machine has, where the system does not say what is free."""
    if not hasattr(os, "sysconf"):
        return 8 << 30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
