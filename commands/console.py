"""What the commands show: tables, notes and errors."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from mmap_st.errors import printable
from mmap_st.urls import place_of

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


class _Notes(logging.Handler):
    """Warnings in the form of all other notes of the commands, which have no clock; each is said once."""

    said: ClassVar[set[str]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        # The stream of now: while a bar is shown, rich prints above it what goes to standard error.
        try:
            text = self.format(record)
            if text not in self.said:
                self.said.add(text)
                print(text, file=sys.stderr)
        except (OSError, ValueError):
            self.handleError(record)


class _NoteFormatter(_Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - Python's name
        kind = "note" if record.levelno < logging.ERROR else "error"
        return f"{kind}: {super().formatMessage(record)}"


def set_up_logging(*, verbose: bool) -> None:
    """Warnings to standard error, as notes; with `verbose`, all that happens, as a log with the time."""
    _Notes.said.clear()
    handler: logging.Handler
    if not verbose:
        handler = _Notes()
        handler.setFormatter(_NoteFormatter())
    elif sys.stderr.isatty():
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


def say_now(text: str) -> None:
    """Write a line to stdout for whoever waits for it at the other end of a pipe."""
    say(text)
    sys.stdout.flush()


def say_json(content: object) -> None:
    """JSON on standard output, for programs."""
    print(json.dumps(content, indent=2))


def show_heading(text: str) -> None:
    """A line in bold, never wrapped."""
    _console(stderr=False).print(Text(printable(text), style="bold"), soft_wrap=True)


def size_of(count: int) -> str:
    """A number of bytes in the unit that suits, such as ``"3.4 MB"``."""
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{count:,} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def show_paths(paths: Sequence[Path]) -> None:
    """Paths or URLs, whole, one per line."""
    for path in paths:
        say(str(place_of(path)))


def warn(text: str) -> None:
    """One line on standard error."""
    print(f"note: {printable(text)}", file=sys.stderr)


def fail(text: str) -> None:
    """Say what is wrong, on standard error."""
    print(f"error: {printable(text)}", file=sys.stderr)


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()
) -> None:
    """A table on standard output; the first column is text, as are those of `left`, others are set right.

    Where it is wider than the terminal it goes without lines, then the last of `left` is wrapped, and where
    that is not enough either, each row is a paragraph: no cell is cut.
    """
    justify: list[JustifyMethod] = [
        "left" if index == 0 or index in left else "right" for index in range(len(columns))
    ]
    _show(title, columns, [[_cell(cell) for cell in row] for row in rows], justify, max(left, default=None))


def show_reasons(title: str, reasons: Mapping[str, str], what: str = "slide") -> None:
    """A table of slides, or whatever else `what` is, and why each was not used."""
    if reasons:
        rows = [[_cell(slide), _cell(reason)] for slide, reason in reasons.items()]
        _show(title, (what, "reason"), rows, ("left", "left"), 1)


def show_findings(title: str, findings: Sequence[tuple[str, str, str]]) -> None:
    """What was examined, what was found, and below, what is wrong with it (empty: nothing)."""
    good, bad = Text("ok", style="green"), Text("trouble", style="red")
    rows = [[_cell(what), _cell(found), bad if trouble else good] for what, found, trouble in findings]
    _show(title, ("", "found", ""), rows, ("left", "left", "left"), 1)
    for what, _, trouble in findings:
        if trouble:
            say(f"{what}: {trouble}")


def _cell(text: str) -> Text:
    """A text as it is: rich would take ``[red]`` and ``:dna:`` for more than letters."""
    return Text(printable(text))


#: A column of text that is wrapped keeps at least this width.
_LEAST_WRAPPED = 24


def _show(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Text]],
    justify: Sequence[JustifyMethod],
    wrapped: int | None,
) -> None:
    console, heads = _console(stderr=False), [_cell(column) for column in columns]
    if title:
        console.print(Text(printable(title), style="bold"), soft_wrap=True)
    widths = [max(cell.cell_len for cell in cells) for cells in zip(heads, *rows, strict=True)]
    too_wide = sum(widths) + 3 * len(columns) + 1 - console.width
    plain = sum(widths) + 2 * (len(columns) - 1) <= console.width
    if too_wide > 0 and not plain and (wrapped is None or widths[wrapped] - too_wide < _LEAST_WRAPPED):
        for row in rows:
            _show_paragraph(console, heads, row)
        return
    table = Table()
    if too_wide > 0 and plain:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold underline")
    for index, (head, how) in enumerate(zip(heads, justify, strict=True)):
        folded = too_wide > 0 and not plain and index == wrapped
        # The width is told where it is known, since rich would measure each cell again.
        width = None if folded else widths[index]
        table.add_column(head, justify=how, no_wrap=not folded, overflow="fold", width=width)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _show_paragraph(console: Console, heads: Sequence[Text], row: Sequence[Text]) -> None:
    """A row without a table: its first cell, and below it the others with their names, each in one piece."""
    console.print(Text(row[0].plain, style="bold"), soft_wrap=True)
    named = zip(heads[1:], row[1:], strict=True)
    items = [f"{head}: {cell}" if head.plain else str(cell) for head, cell in named if cell.plain]
    lines: list[str] = []
    for item in items:
        longer = f"{lines[-1]}; {item}" if lines else item
        if lines and cell_len(longer) + 3 <= console.width:
            lines[-1] = longer
        else:
            lines.append(item)
    for number, line in enumerate(lines, start=1):
        text = line if number == len(lines) else f"{line};"
        # Between words: a path or an address stays whole.
        for part in textwrap.wrap(
            text, console.width, initial_indent="  ", subsequent_indent="    ", break_long_words=False,
            break_on_hyphens=False,
        ):  # fmt: skip
            console.print(Text(part), soft_wrap=True)


def width() -> int:
    """Columns of standard output; many where it is not a terminal."""
    return _console(stderr=False).width
