"""What became of each file of a download, and why one cannot be written."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class DownloadReport:
    """What became of each file, by its path below the folder.

    Attributes
    ----------
    fetched, kept
        Files that were fetched, and those that were there and are what they should be.
    replaced
        Files that were there and were not; what was there is now ``NAME.old``.
    failed
        Why a file is not there.
    received
        Bytes of the files that were fetched.
    seconds
        How long it took.
    """

    fetched: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    received: int = 0
    seconds: float = 0.0

    def set_aside(self, out: Path, path: str) -> None:
        """Rename a file that is not what it should be to ``NAME.old``."""
        (out / path).replace(out / f"{path}.old")
        self.replaced.append(path)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether there is no room left, on the disk or in the user's quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_sentence(error: OSError, path: Path) -> str:
    """Why `path` cannot be written, and what to do."""
    if is_disk_full(error):
        return f"the disk of {path.parent} is full; make room and run the same command again."
    return f"{path} cannot be written ({error.strerror or error}); check who may write there."
