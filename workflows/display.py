"""What the public functions show: progress in a terminal, a notebook or a log, and warnings each time."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn
from rich.text import Text

from mmap_st.errors import MmapWarning, SlidesLeftOutWarning, UnlikeTrainingWarning, counted, printable

_MOST_SHOWN = 10


def warn_user(text: str, category: type[MmapWarning] = MmapWarning) -> None:
    """Warn, at the line of the user's own code.

    Python shows a warning of the same text and line once only. A cell of a notebook that is run again has the
    same line, so each call here stands for itself.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] == "mmap_st":
        frame = frame.f_back
    warnings.warn_explicit(printable(text, lines=True), category, frame.f_code.co_filename, frame.f_lineno)


def warn_left_out(
    failed: Mapping[str, str], skipped: Mapping[str, str] | Sequence[str], why_skipped: str = ""
) -> None:
    """Warn of slides that were not used, with their reasons.

    Parameters
    ----------
    failed
        Reason of each slide.
    skipped
        Reason of each slide, or names alone.
    why_skipped
        The reason where only names are known.
    """
    if failed:
        warn_user(f"{_count(failed, 'failed')}:\n{_list_reasons(failed)}", SlidesLeftOutWarning)
    if skipped:
        reasons = skipped if isinstance(skipped, Mapping) else dict.fromkeys(skipped, why_skipped)
        warn_user(f"{_count(skipped, 'skipped')}:\n{_list_by_reason(reasons)}", SlidesLeftOutWarning)


def warn_unlike(unlike: Mapping[str, str]) -> None:
    """Warn of slides that were predicted and are unlike those of training, with the reasons."""
    if unlike:
        what = _count(unlike, "unlike anything the head was trained on")
        warn_user(f"{what}:\n{_list_reasons(unlike)}", UnlikeTrainingWarning)


def _count(slides: Mapping[str, str] | Sequence[str], what: str) -> str:
    return f"{counted(len(slides), 'slide')} {what}"


def _list_by_reason(reasons: Mapping[str, str]) -> str:
    """One line per reason, with the names of its slides."""
    slides: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        slides.setdefault(reason, []).append(name)
    return _list_reasons({", ".join(_shortened(names)): reason for reason, names in slides.items()})


def _shortened(names: Sequence[str]) -> list[str]:
    more = len(names) - _MOST_SHOWN
    return [*map(printable, names[:_MOST_SHOWN]), *([f"and {more} more"] if more > 0 else [])]


def _list_reasons(reasons: Mapping[str, str]) -> str:
    lines = [
        f"  {printable(name)}: {printable(reason)}" for name, reason in list(reasons.items())[:_MOST_SHOWN]
    ]
    more = len(reasons) - len(lines)
    return "\n".join([*lines, *([f"  and {more} more"] if more else [])])


#: Seconds between two lines of a log, and between two changes of a notebook's line.
LOG_SECONDS, NOTEBOOK_SECONDS = 60.0, 0.5
_RATE_SECONDS = 30.0
#: How often a log looks at the clock while nothing is reported.
_TICK_SECONDS = 1.0


@dataclass
class State:
    """What a run has done so far.

    Attributes
    ----------
    unit
        What is counted: ``windows``, or ``bytes``.
    kind
        What items are: ``slides``, or ``files``.
    text
        What is being done now.
    item, items
        Number of the item in progress, and of all.
    done, total
        Units done, and in all; no total: not known.
    details
        Figures on the run so far.
    recent
        When units were counted, in seconds of `time.monotonic`, and how many were done then.
    """

    unit: str = "windows"
    kind: str = "slides"
    text: str = ""
    item: int = 0
    items: int = 0
    done: int = 0
    total: int | None = None
    details: str = ""
    recent: deque[tuple[float, int]] = field(default_factory=deque)

    def count(self, amount: int) -> None:
        """Count more units as done."""
        now = time.monotonic()
        while self.recent and now - self.recent[0][0] > _RATE_SECONDS:
            self.recent.popleft()
        self.done += amount
        self.recent.append((now, self.done))

    def rate(self) -> float:
        """Units a second, over the last while."""
        if not self.recent:
            return 0.0
        since, done = self.recent[0]
        seconds = time.monotonic() - since
        return (self.done - done) / seconds if seconds > 0 else 0.0

    def doing(self) -> str:
        """What is being done, and which of how many."""
        return f"{self.text} ({self.item} of {self.items} {self.kind})" if self.items else self.text

    def amounts(self) -> str:
        """Units done, their rate and the time left; empty where nothing is counted."""
        if not self.total:
            return ""
        rate = self.rate()
        if self.unit == "bytes":
            shown = f"{decimal(self.done)} of {decimal(self.total)}"
            speed = f"{decimal(int(rate))}/s"
        else:
            shown, speed = f"{self.done:,} of {self.total:,} {self.unit}", f"{rate:,.0f}/s"
        if rate <= 0:
            return shown
        left = max(0, round((self.total - self.done) / rate))
        minutes, second = divmod(left, 60)
        hours, minute = divmod(minutes, 60)
        clock = f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
        return f"{shown}, {speed}, {clock} left"

    def line(self) -> str:
        """All of it in one line."""
        return "; ".join(part for part in (self.doing(), self.amounts(), self.details) if part)


class View(Protocol):
    """Where progress is shown."""

    def show(self, state: State) -> None:
        """Show how far the run is."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Take away what does not stay."""


class TerminalView:
    """A bar on standard error, gone at the end."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            _Bar(bar_width=28),
            TextColumn("{task.fields[amounts]}", style="cyan", markup=False),
            TextColumn("{task.fields[details]}", style="dim", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, amounts="", details="")
        self._progress.start()

    def show(self, state: State) -> None:
        """Update the bar; it is drawn a few times a second."""
        self._progress.update(
            self._task,
            description=state.doing(),
            completed=state.done,
            total=state.total,
            amounts=state.amounts(),
            details=state.details,
        )

    def note(self, text: str) -> None:
        """Print above the bar."""
        self._progress.console.print(Text(f"note: {text}"), soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()


class _Bar(BarColumn):
    """A bar where the total is known, else nothing: the spinner is enough."""

    def render(self, task: Task) -> Any:
        return super().render(task) if task.total else ""


class NotebookView:
    """One line of a cell's output that changes, gone at the end; it needs no widgets."""

    def __init__(self, display: Callable[..., Any]) -> None:
        self._display = display
        self._handle: Any = None
        self._last = float("-inf")

    def show(self, state: State) -> None:
        """Change the line, at most twice a second."""
        now = time.monotonic()
        if now - self._last < NOTEBOOK_SECONDS or not state.line():
            return
        self._last = now
        content = {"text/plain": state.line()}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def note(self, text: str) -> None:
        """Print below."""
        print(f"note: {text}", file=sys.stderr)

    def close(self) -> None:
        """Empty the line."""
        if self._handle is not None:
            self._handle.update({"text/plain": ""}, raw=True)


class LogView:
    """A line on standard error every minute, also while one thing takes longer than that."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._line = ""
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._clock: threading.Thread | None = None

    def show(self, state: State) -> None:
        """Print a line where the last one is a minute old."""
        self._line = state.line()
        self._print_if_due()
        if self._clock is None:
            self._clock = threading.Thread(target=self._run, name="progress log", daemon=True)
            self._clock.start()

    def _run(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            self._print_if_due()

    def _print_if_due(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last >= LOG_SECONDS and self._line and not self._closed.is_set():
                self._last = now
                print(self._line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print it now."""
        print(f"note: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Print no more."""
        with self._lock:
            self._closed.set()


class SilentView:
    """Shows nothing."""

    def show(self, state: State) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Display:
    """Shows the progress of a run, see `mmap_st.progress`; called with a text, shows that alone.

    Parameters
    ----------
    view
        Where.
    kind, unit
        What items are, and what is counted.
    """

    def __init__(self, view: View, kind: str = "slides", unit: str = "windows") -> None:
        self._view = view
        self._state = State(unit, kind)

    def __call__(self, text: str) -> None:
        """Show what is being done, of a run that counts nothing."""
        self._state = State(self._state.unit, self._state.kind, printable(text))
        self._view.show(self._state)

    def start(self, items: int, total: int | None = None) -> None:
        """Start to count."""
        self._state = State(self._state.unit, self._state.kind, self._state.text, items=items, total=total)
        self._state.count(0)
        self._view.show(self._state)

    def start_item(self, name: str) -> None:
        """Show the next item."""
        self._state.text, self._state.item = printable(name), self._state.item + 1
        self._view.show(self._state)

    def set_total(self, total: int) -> None:
        """Correct the total."""
        self._state.total = total
        self._view.show(self._state)

    def advance(self, amount: int) -> None:
        """Count more as done."""
        self._state.count(amount)
        self._view.show(self._state)

    def show_details(self, text: str) -> None:
        """Show figures on the run so far."""
        self._state.details = printable(text)
        self._view.show(self._state)

    def note(self, text: str) -> None:
        """Show a line that stays."""
        self._view.note(printable(text))


@contextmanager
def show_progress(progress: bool = True, *, kind: str = "slides", unit: str = "windows") -> Iterator[Display]:
    """Show progress where the user looks, until the block ends.

    Parameters
    ----------
    progress
        False: show nothing.
    kind, unit
        What items are, and what is counted: ``windows`` or ``bytes``.
    """
    view = _view() if progress else SilentView()
    try:
        yield Display(view, kind, unit)
    finally:
        view.close()


def _view() -> View:
    display = _notebook_display()
    if display is not None:
        return NotebookView(display)
    console = Console(file=sys.stderr, highlight=False)
    return TerminalView(console) if console.is_terminal else LogView()


def _notebook_display() -> Callable[..., Any] | None:
    """IPython's `display` where this runs in a notebook's kernel, else None."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    if found is None or not hasattr(found, "kernel"):
        return None
    from IPython.display import display  # type: ignore[import-not-found]

    return display  # type: ignore[no-any-return]
