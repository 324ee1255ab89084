"""Progress, where a user looks for it: a terminal, a notebook, a log."""

import io
import sys
import types
from pathlib import Path
from time import sleep

import pytest
from rich.console import Console

import mmap_st as mm
from mmap_st.workflows import display
from mmap_st.workflows.display import Display, LogView, NotebookView, State, TerminalView, show_progress


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(display, "time", made)
    return made


def work(shown: Display, clock: Clock, seconds: float) -> None:
    """Two slides of 600 windows, ten a second."""
    shown("reading the cohort")
    shown.start(2, 1200)
    for name in ("A1", "B1"):
        shown.start_item(name)
        shown.show_details("device busy 90%")
        for _ in range(60):
            clock.now += seconds
            shown.advance(10)


def test_a_log_has_a_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display(LogView())
    work(shown, clock, 2.0)
    shown.note("a window cannot be read")
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.splitlines() == [
        "A1 (1 of 2 slides); 300 of 1,200 windows, 5/s, 3:00 left; device busy 90%",
        "A1 (1 of 2 slides); 600 of 1,200 windows, 5/s, 2:00 left; device busy 90%",
        "B1 (2 of 2 slides); 900 of 1,200 windows, 5/s, 1:00 left; device busy 90%",
        "B1 (2 of 2 slides); 1,200 of 1,200 windows, 5/s, 0:00 left; device busy 90%",
        "note: a window cannot be read",
    ]


def test_a_log_has_a_line_a_minute_while_one_thing_takes_long(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as k-means of a large slide, or a fit in another process: nothing is reported meanwhile."""
    monkeypatch.setattr(display, "_TICK_SECONDS", 0.001)
    with show_progress() as shown:
        shown("prototypes of A1")
        for _ in range(3):
            clock.now += 59.0
            sleep(0.05)
            clock.now += 1.0
            sleep(0.05)
        printed = capsys.readouterr().err
    assert printed.splitlines() == ["prototypes of A1"] * 3
    clock.now += 600.0
    sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_a_short_run_logs_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(Display(LogView()), clock, 0.1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_that_goes(clock: Clock) -> None:
    stream = io.StringIO()
    view = TerminalView(Console(file=stream, force_terminal=True, width=160, highlight=False))
    work(Display(view), clock, 0.1)
    view.note("[a note]")
    view.close()
    text = stream.getvalue()
    assert "B1 (2 of 2 slides)" in text
    assert "1,200 of 1,200 windows" in text
    assert "note: [a note]" in text
    assert "\x1b[2K" in text  # what was drawn is cleared


def test_a_notebook_has_one_line_that_goes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            assert raw
            shown.append(content["text/plain"])

    def show(content: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        shown.append(content["text/plain"])
        return Handle()

    view = NotebookView(show)
    work(Display(view), clock, 0.1)
    view.close()
    assert shown[0] == "reading the cohort"
    assert len(shown) < 30  # of 126 changes in 12 seconds
    assert "windows" in shown[-2]
    assert shown[-1] == ""


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_notebook_is_known_by_its_kernel(monkeypatch: pytest.MonkeyPatch, in_kernel: bool) -> None:
    shell = types.SimpleNamespace(**({"kernel": object()} if in_kernel else {}))
    package, part = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython = lambda: shell
    part.display = print
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", part)
    with show_progress() as shown:
        assert isinstance(shown._view, NotebookView if in_kernel else LogView)


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(False) as shown:
        shown("working")
        shown.start(1, 10)
        shown.advance(10)
        shown.note("something")
    assert capsys.readouterr() == ("", "")


def test_bytes_are_shown_as_bytes(clock: Clock) -> None:
    state = State("bytes", "files", "a.tif", 1, 2, total=5_000_000)
    state.count(0)
    clock.now += 1.0
    state.count(1_000_000)
    assert state.line() == "a.tif (1 of 2 files); 1.0 MB of 5.0 MB, 1.0 MB/s, 0:04 left"
    state.total = 5_000_000_000
    assert "1:23:19 left" in state.line()


def test_an_extraction_says_what_it_prepares(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first window: building an encoder and looking at many slides takes minutes."""
    monkeypatch.setattr(display, "LOG_SECONDS", -1.0)
    mm.embed(f"her2st:{tiny.her2st}", tiny.store, encoder="efficientnet-lite0", mpp=1.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "preparing efficientnet-lite0"
    assert "preparing efficientnet-lite0; looking at B1" in lines
