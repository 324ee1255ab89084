"""How large a table may be: what a file claims or expands to is compared with memory before it is taken."""

from __future__ import annotations

from pathlib import Path

from mmap_st.errors import MmapError
from mmap_st.memory import free_memory

_LEAST = 1 << 28


def largest_table() -> int:
    """Bytes of text that one table may have: a quarter of the free memory, and at least 256 MiB."""
    return max(_LEAST, free_memory() // 4)


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
