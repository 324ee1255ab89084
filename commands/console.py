"""What the commands show: tables, notes and errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from rich.text import Text

# Wide enough that no row of a table is broken: paths and reasons stay whole.
_WIDTH_OF_A_LOG = 10_000


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_LOG
    return Console(file=stream, width=width, highlight=False)


def set_up_logging(*, verbose: bool) -> None:
    """Warnings (with `verbose`, all that happens) to standard error."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=_console(stderr=True), show_path=False, rich_tracebacks=False)
    else:  # rich would fill lines up to the width of a table
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", datefmt="%H:%M:%S", handlers=[handler])
    logging.getLogger("mmap_st").setLevel(logging.INFO if verbose else logging.WARNING)


def say(text: str) -> None:
    """One line on standard output, never wrapped."""
    print(text)


def show_paths(paths: Sequence[Path]) -> None:
    """Paths, whole, one per line."""
    for path in paths:
        print(path)


def warn(text: str) -> None:
    """One line on standard error."""
    print(f"note: {text}", file=sys.stderr)


def fail(text: str) -> None:
    """Say what is wrong, on standard error."""
    print(f"error: {text}", file=sys.stderr)


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()
) -> None:
    """A table on standard output; the first column is text, as are those of `left`, others are set right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or index in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    _console(stderr=False).print(table)


def show_reasons(title: str, reasons: Mapping[str, str], what: str = "slide") -> None:
    """A table of slides, or whatever else `what` is, and why each was not used."""
    if not reasons:
        return
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(what, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for slide, reason in reasons.items():
        table.add_row(escape(slide), escape(reason))
    _console(stderr=False).print(table)


def show_findings(title: str, findings: Sequence[tuple[str, str, str]]) -> None:
    """What was examined, what was found, and below, what is wrong with it (empty: nothing)."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("", "found", ""):
        table.add_column(column, overflow="fold")
    for what, found, trouble in findings:
        mark = Text("trouble", style="red") if trouble else Text("ok", style="green")
        table.add_row(escape(what), escape(found), mark)
    _console(stderr=False).print(table)
    for what, _, trouble in findings:
        if trouble:
            say(f"{what}: {trouble}")


def width() -> int:
    """Columns of standard output; many where it is not a terminal."""
    return _console(stderr=False).width
