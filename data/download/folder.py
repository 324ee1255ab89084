"""The folder of a download: one run at a time writes it, and what it holds is recorded in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mmap_st.errors import RequestError

#: File beside the data with the SHA-256 of all that was fetched, as ``sha256sum --check`` reads it.
SUMS = "SHA256SUMS"

_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two runs would write the same ``.part`` files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder / ".mmap-download.lock"), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RequestError(f"Another download writes to {folder}; wait for its end.") from error
    except OSError as error:
        raise RequestError(
            f"{folder} cannot be written ({error.strerror or error}); choose another folder with --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_sums(folder: Path) -> dict[str, str]:
    """SHA-256 by path, as they were recorded; none where nothing was."""
    try:
        text = (folder / SUMS).read_text("utf-8")
    except FileNotFoundError:
        return {}
    return {match[2]: match[1] for line in text.splitlines() if (match := _SUM.fullmatch(line))}


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Record SHA-256s; a run that is killed leaves the old record or the new one."""
    new = folder / f"{SUMS}.new"
    new.write_text("".join(f"{sums[path]}  {path}\n" for path in sorted(sums)), "utf-8")
    os.replace(new, folder / SUMS)
