"""How a long run reports its progress, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

#: Takes one line about what is being done now.
ProgressCallback: TypeAlias = Callable[[str], None]


class Progress(Protocol):
    """Listener to a long run over items: slides of an extraction, files of a download."""

    def start(self, items: int, total: int | None = None) -> None:
        """Start a run over `items` items, of `total` windows (or bytes) in all; None: not known yet."""

    def start_item(self, name: str) -> None:
        """Start the slide or the file of this name."""

    def set_total(self, total: int) -> None:
        """Correct the total number of windows or bytes."""

    def advance(self, amount: int) -> None:
        """Count this many more windows or bytes as done; a negative amount takes some back."""

    def show_details(self, text: str) -> None:
        """Show figures on the run so far, in place of the previous ones."""

    def note(self, text: str) -> None:
        """Show a line that the user should read."""


class Silent:
    """A listener that shows nothing."""

    def start(self, items: int, total: int | None = None) -> None:
        pass

    def start_item(self, name: str) -> None:
        pass

    def set_total(self, total: int) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def show_details(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass
