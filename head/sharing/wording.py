"""The parts of a card as plain text, and how names and numbers stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmap_st.errors import counted, printable
from mmap_st.head.scoring import Interval

# Of lists of names, and of rows of tables: card.json has them all.
_MOST_NAMES, _MOST_ROWS = 20, 30
_MOST_LETTERS = 80


@dataclass(frozen=True)
class CardTable:
    """A table: its heading, its columns and its rows; the first column is text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A part of a card.

    Attributes
    ----------
    title
        Its heading.
    lines
        Sentences.
    tables
        Tables that follow them.
    commands
        Commands that follow these, to be copied as they are.
    """

    title: str
    lines: tuple[str, ...] = ()
    tables: tuple[CardTable, ...] = ()
    commands: tuple[str, ...] = ()


def short(name: str) -> str:
    """A name in one line, its middle left out where it is long."""
    shown = printable(name)
    half = _MOST_LETTERS // 2
    return shown if len(shown) <= _MOST_LETTERS else f"{shown[:half]}...{shown[-half:]}"


def names_of(names: Sequence[str], what: str) -> str:
    """``"3 slides (A1, B1, C1)"``."""
    shown = ", ".join(short(name) for name in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{counted(len(names), what)} ({shown}{more})"


def short_sentence(text: str) -> str:
    """A sentence of ours with a name of somebody's in it, in one line."""
    shown = printable(text)
    return shown if len(shown) <= 4 * _MOST_LETTERS else f"{shown[: 4 * _MOST_LETTERS]}..."


def some_rows(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Rows of a table; of many the first, and how many more there are."""
    more = len(rows) - _MOST_ROWS
    if more <= 0:
        return tuple(rows)
    return (*rows[:_MOST_ROWS], (f"... and {more} more in card.json", *[""] * (len(rows[0]) - 1)))


def number(value: float) -> str:
    """A score with four decimals."""
    return "undefined" if value != value else f"{value:.4f}"


def ends_of(interval: Interval | None) -> str:
    """An interval; empty where there is none."""
    return "" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
