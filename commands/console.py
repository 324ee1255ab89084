"""What the commands show: tables, notes and errors."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, JustifyMethod
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from mmap_st.errors import printable

# Wide enough that no row of a table is broken: paths and reasons stay whole.
_WIDTH_OF_A_LOG = 10_000


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_LOG
    return Console(file=stream, width=width, highlight=False)


class _Formatter(logging.Formatter):
    """Log messages as one line each, names in them escaped; a traceback below keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - Python's name
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


def set_up_logging(*, verbose: bool) -> None:
    """Warnings (with `verbose`, all that happens) to standard error."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=_console(stderr=True), show_path=False, rich_tracebacks=False)
        handler.setFormatter(_Formatter("%(message)s", "%H:%M:%S"))
    else:  # rich would fill lines up to the width of a table
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("mmap_st").setLevel(logging.INFO if verbose else logging.WARNING)


def say(text: str) -> None:
    """One line on standard output, never wrapped."""
    print(printable(text))


def say_json(content: object) -> None:
    """JSON on standard output, for programs."""
    print(json.dumps(content, indent=2))


def show_paths(paths: Sequence[Path]) -> None:
    """Paths, whole, one per line."""
    for path in paths:
        say(str(path))


def warn(text: str) -> None:
    """One line on standard error."""
    print(f"note: {printable(text)}", file=sys.stderr)


def fail(text: str) -> None:
    """Say what is wrong, on standard error."""
    print(f"error: {printable(text)}", file=sys.stderr)


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()
) -> None:
    """A table on standard output; the first column is text, as are those of `left`, others are set right."""
    table = _table(title)
    for index, column in enumerate(columns):
        justify: JustifyMethod = "left" if index == 0 or index in left else "right"
        table.add_column(_cell(column), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    _console(stderr=False).print(table)


def show_reasons(title: str, reasons: Mapping[str, str], what: str = "slide") -> None:
    """A table of slides, or whatever else `what` is, and why each was not used."""
    if not reasons:
        return
    table = _table(title)
    table.add_column(_cell(what), no_wrap=True)
    table.add_column("reason", overflow="fold")
    for slide, reason in reasons.items():
        table.add_row(_cell(slide), _cell(reason))
    _console(stderr=False).print(table)


def show_findings(title: str, findings: Sequence[tuple[str, str, str]]) -> None:
    """What was examined, what was found, and below, what is wrong with it (empty: nothing)."""
    table = _table(title)
    for column in ("", "found", ""):
        table.add_column(column, overflow="fold")
    for what, found, trouble in findings:
        mark = Text("trouble", style="red") if trouble else Text("ok", style="green")
        table.add_row(_cell(what), _cell(found), mark)
    _console(stderr=False).print(table)
    for what, _, trouble in findings:
        if trouble:
            say(f"{what}: {trouble}")


def _table(title: str) -> Table:
    return Table(title=Text(printable(title), style="bold") if title else None, title_justify="left")


def _cell(text: str) -> Text:
    """A text as it is: rich would take ``[red]`` and ``:dna:`` for more than letters."""
    return Text(printable(text))


def width() -> int:
    """Columns of standard output; many where it is not a terminal."""
    return _console(stderr=False).width
