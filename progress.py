"""How a long run tells what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listens to an extraction."""

    def begin(self, slides: int, windows: int) -> None:
        """So many slides and windows are to be done."""

    def slide(self, name: str) -> None:
        """Begin this slide."""

    def advance(self, windows: int) -> None:
        """So many more windows are done, or need not be."""

    def figures(self, text: str) -> None:
        """What limits the run just now."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """Listens to nothing."""

    def begin(self, slides: int, windows: int) -> None:
        pass

    def slide(self, name: str) -> None:
        pass

    def advance(self, windows: int) -> None:
        pass

    def figures(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass
