"""Notes look alike, whoever makes them: a command, a warning of a library, or one of the package's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from mmap_st.commands import console

_OURS = logging.getLogger("mmap_st.extract.store")


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """The logging of a command, without pytest's own handlers."""
    package = logging.getLogger("mmap_st")
    level = package.level

    def begin(verbose: bool) -> None:
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        console.set_up_logging(verbose=verbose)

    yield begin
    package.setLevel(level)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", ["mmap_st.extract.store", "mmap_st.head", "PIL"])
def test_a_warning_is_a_note(
    name: str,
    terminal: bool,
    capsys: pytest.CaptureFixture[str],
    set_up: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    set_up(False)
    logging.getLogger(name).warning("%s has no check sums", "s.zarr")
    console.warn("s.zarr has no check sums")
    assert capsys.readouterr().err.splitlines() == ["note: s.zarr has no check sums"] * 2


def test_an_error_is_one_and_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], set_up: Callable[[bool], None]
) -> None:
    set_up(False)
    _OURS.error("a defect", exc_info=ValueError("why"))
    assert capsys.readouterr().err.splitlines() == ["error: a defect", "ValueError: why"]


def test_what_happens_is_a_log_with_verbose(
    capsys: pytest.CaptureFixture[str], set_up: Callable[[bool], None]
) -> None:
    set_up(True)
    _OURS.info("looking")
    _OURS.warning("no check sums")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["INFO looking", "WARNING no check sums"]


def test_names_in_notes_are_no_commands_to_a_terminal(
    capsys: pytest.CaptureFixture[str], set_up: Callable[[bool], None]
) -> None:
    set_up(False)
    _OURS.warning("slide %s is damaged", "\x1b[31m\nA")
    assert capsys.readouterr().err == "note: slide \\x1b[31m\\nA is damaged\n"


def test_the_same_note_is_said_once_by_each_command(
    capsys: pytest.CaptureFixture[str], set_up: Callable[[bool], None]
) -> None:
    for _ in range(2):
        set_up(False)
        for slide in ("A1", "A1", "B1"):
            _OURS.warning("slide %s is damaged", slide)
        assert capsys.readouterr().err.splitlines() == [
            "note: slide A1 is damaged",
            "note: slide B1 is damaged",
        ]
