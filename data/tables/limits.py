"""How large a table may be: what a file claims or expands to is compared with memory before it is taken."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mmap_st.errors import MmapError

_LEAST = 1 << 28
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def largest_table() -> int:
    """Bytes of text that one table may have: a quarter of the free memory, and at least 256 MiB."""
    return max(_LEAST, _free_bytes() // 4)


def refuse_large(path: Path, size: int, what: str, error: type[MmapError], *, arrays: bool = False) -> None:
    """Refuse a file that claims or becomes more than memory can hold.

    Parameters
    ----------
    path, size
        The file, and the bytes that it would take.
    what
        How it is that large, such as ``its matrix takes``.
    error
        What to raise.
    arrays
        Arrays, which take what they say, may have half of the free memory; text becomes more than it is, and
        may have a quarter.

    Raises
    ------
    error
        Saying so, with the limit.
    """
    most, share = largest_table(), "a quarter"
    if arrays:
        most, share = 2 * most, "half"
    if size > most:
        raise error(
            f"{path}: {what} {size / 1e9:,.1f} GB, and may have {most / 1e9:,.1f} GB, {share} of the free"
            " memory; check the file, or use a machine with more memory."
        )


def _free_bytes() -> int:
    """Memory that this process can still take; where that cannot be told, what the machine has."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
    with suppress(OSError, ValueError, StopIteration):
        line = next(one for one in _MEMINFO.read_text().splitlines() if one.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):  # a container may have less than its machine
        most, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, max(0, most - used))
    return free
