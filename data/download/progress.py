"""How a download tells what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listens to a download."""

    def begin(self, files: int) -> None:
        """So many files are to be fetched."""

    def file(self, name: str) -> None:
        """Begin this file."""

    def moved(self, done: int, total: int) -> None:
        """So many bytes of so many are here, of all files; the total grows where sizes were not known."""


class Silent:
    """Listens to nothing."""

    def begin(self, files: int) -> None:
        pass

    def file(self, name: str) -> None:
        pass

    def moved(self, done: int, total: int) -> None:
        pass
