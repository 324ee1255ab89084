"""What the commands show: tables, progress and errors; and how Ctrl-C and SIGTERM stop a long run."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from mmap_st.errors import StoppedError

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
    """Paths, whole, one a line."""
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
        mark = Text("trouble", style="red") if trouble else Text("well", style="green")
        table.add_row(escape(what), escape(found), mark)
    _console(stderr=False).print(table)
    for what, _, trouble in findings:
        if trouble:
            say(f"{what}: {trouble}")


def width() -> int:
    """Columns of standard output; many where it is no terminal."""
    return _console(stderr=False).width


class _Rate(ProgressColumn):
    """Windows a second, over the last while."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} windows/s" if task.speed else "", style="cyan")


class _ItemProgress:
    """Rich's bar behind `mmap_st.progress.Progress`; silent where standard error is not a terminal."""

    def __init__(self, items: str, *columns: ProgressColumn) -> None:
        console = _console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            TextColumn("{task.fields[details]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(items, total=None, details="")
        self._items = items
        self._count = self._number = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, items: int, total: int | None = None) -> None:
        self._count = items
        self._progress.update(self._task, total=total)

    def start_item(self, name: str) -> None:
        self._number += 1
        text = f"{escape(name)} ({self._number} of {self._count} {self._items})"
        self._progress.update(self._task, description=text)

    def set_total(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def advance(self, amount: int) -> None:
        self._progress.advance(self._task, amount)

    def show_details(self, text: str) -> None:
        self._progress.update(self._task, details=text)

    def note(self, text: str) -> None:
        self._progress.console.print(f"note: {escape(text)}", soft_wrap=True)


class ExtractionProgress(_ItemProgress):
    """Progress of an extraction: slides, windows, rate, time left."""

    def __init__(self) -> None:
        super().__init__("slides", MofNCompleteColumn(), _Rate(), TimeRemainingColumn())


class DownloadProgress(_ItemProgress):
    """Progress of a download: files, bytes, rate, time left."""

    def __init__(self) -> None:
        super().__init__("files", DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())


class Status:
    """One line that tells what is being done; silent where no one watches."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def __call__(self, text: str) -> None:
        self._progress.update(self._task, description=text)


@contextmanager
def status() -> Iterator[Status]:
    """Show a spinner with a line of text while something runs."""
    console = _console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        yield Status(progress)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Exit statuses of a run that was stopped, as shells give them.
STOPPED = tuple(128 + number for number in _SIGNALS)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether the user asked to stop; a second signal stops at once.

    Python raises KeyboardInterrupt wherever the main thread happens to be. Between threads that is inside of
    a lock now and then, which then stays locked, and the program hangs instead of ending.

    Raises
    ------
    SystemExit
        With 128 and the signal's number, where the work ended with a `StoppedError`.
    """
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        asked.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield lambda: bool(asked)
    except StoppedError as error:
        raise SystemExit(128 + (asked or [signal.SIGINT])[0]) from error
    finally:
        restore()
