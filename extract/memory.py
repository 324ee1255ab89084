"""Keep freed memory for the next batch."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_KEPT = 1 << 25  # bytes; the most that every glibc takes for M_MMAP_THRESHOLD


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed, for the whole process.

    By default glibc hands the activations of each batch back to the system and asks for them again, and the
    system clears every page anew: on a CPU a third of the time of an extraction (benchmarks/README.md).

    Returns
    -------
    False where the C library is not glibc: nothing is changed there.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    kept = library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
    # Set together: either of them alone ends the automatic choice of the other.
    return bool(kept and library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
