"""Tables fit the terminal that they are printed on, and no cell is cut, wherever they are printed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mmap_st.commands import console

WIDTHS = (60, 80, 120, 10_000)


@pytest.fixture
def at_width(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have standard output be a terminal of this width."""

    def set_width(width: int) -> None:
        def made(*, stderr: bool) -> Console:
            stream = sys.stderr if stderr else sys.stdout
            return Console(file=stream, width=width, color_system=None, force_terminal=True, highlight=False)

        monkeypatch.setattr(console, "_console", made)

    return set_width


def fits(text: str, width: int) -> bool:
    """Whether all lines do; a path or a name that is longer than a line stays whole."""
    return all(len(line) <= width or " " not in line.strip() for line in text.splitlines())


def joined(text: str) -> str:
    """Without what tables are drawn with, and with wrapped cells in one piece."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "│┃┏┓┗┛└┘━─┳┻╇┴┡┩"), " ")).split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("columns", [1, 3, 7, 12])
def test_every_cell_of_a_table_is_whole(
    columns: int, width: int, at_width: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    at_width(width)
    heads = [f"column {i}" for i in range(columns)]
    rows = [[f"cell-{row}-{i}-0.1234" for i in range(columns)] for row in range(3)]
    console.show_table("a title of some words that is longer than a narrow table is wide", heads, rows)
    text = capsys.readouterr().out
    assert text.startswith("a title of some words that is longer than a narrow table is wide\n")
    assert fits("\n".join(text.splitlines()[1:]), width)
    for row in rows:
        assert all(cell in text for cell in row)
    assert all(head in text for head in heads[1:])
    assert "…" not in text
    assert ("┃" in text) == (width > 300 or columns <= 3 or (columns == 7 and width > 10_000))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_that_is_a_little_too_wide_goes_without_lines(
    width: int, at_width: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    at_width(width)
    console.show_table("", [f"c{i}" for i in range(6)], [["x" * 11] * 6] * 2)
    text = capsys.readouterr().out
    assert fits(text, width)
    assert text.count("x" * 11) == 12
    assert ("┃" in text) == (width > 84)
    assert (": " in text) == (width < 76)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["A1", "a slide with a rather long name", "s" * 50, "s" * 200])
def test_reasons_are_whole(
    name: str, width: int, at_width: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    at_width(width)
    reason = "the image /somewhere/x.jpg cannot be read, since of all its tiles none is there; copy it again."
    console.show_reasons("failed", {name: reason, "other": "short"})
    text = capsys.readouterr().out
    assert name in text
    assert reason in joined(text)
    if len(name) < width:
        assert fits(text, width)


def test_a_title_with_a_path_is_one_line(at_width: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    at_width(60)
    path = str(Path("/a") / ("long" * 40) / "s.zarr")
    console.show_table(path, ("a", "b"), [("1", "2")])
    assert capsys.readouterr().out.splitlines()[0] == path


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize(
    "words",
    [
        ("cohort", "check", "her2st:{her2st}"),
        ("cohort", "her2st:{her2st}", "--out", "{out}/c.csv"),
        ("cohort", "--readers"),
        ("info", "{store}"),
        ("prototypes", "{store}", "--encoder", "efficientnet-lite0"),
        ("predict", "{run}", "{store}", "--out", "{out}/p"),
        ("encoders",),
        ("download", "--list"),
        ("download", "her2st", "--list"),
        ("doctor",),
    ],
)
def test_what_commands_show_fits(
    words: tuple[str, ...], width: int, at_width: Callable, mmap: Callable, tiny, tmp_path: Path
) -> None:
    at_width(width)
    store = shutil.copytree(tiny.store, tmp_path / "s.zarr")  # prototypes are built into it
    places = {"her2st": tiny.her2st, "store": store, "run": tiny.run, "out": tmp_path}
    done = mmap(*(word.format(**places) for word in words))
    assert done.returncode in (0, 1), done
    tables = [line for line in done.stdout.splitlines() if line[:1] in ("┃", "│", " ")]
    assert fits("\n".join(tables), width)
    assert "…" not in done.stdout
