"""Names in messages, and errors of other libraries as one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from mmap_st.errors import MmapError, first_line
from mmap_st.files import refuse_special


def duplicates(names: Sequence[str]) -> list[str]:
    """Names that occur more than once, in order of first occurrence."""
    return [name for name, n in Counter(names).items() if n > 1]


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, such as ``"a, b, c and 4 more"``."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


@contextmanager
def reading(path: Path, what: str, error: type[MmapError]) -> Iterator[None]:
    """Turn whatever error another library raises on a damaged file into one sentence.

    Parameters
    ----------
    path, what
        The file, and what it should be, such as ``a table of counts``.
    error
        What to raise.
    """
    refuse_special(path, error)
    try:
        yield
    except MmapError:
        raise
    except (Exception, pl.exceptions.PanicException) as reason:
        raise error(f"{path} cannot be read as {what}: {first_line(reason)}") from reason
