"""Tables with a column for each gene, or each spot: as one matrix, read line by line.

A table of 20,000 columns has a type to find, a name and a buffer for each where it is read by columns.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.tables.columns import DECIMAL_COMMA, MISSING, THOUSANDS, not_a_number
from mmap_st.data.tables.limits import refuse_large
from mmap_st.data.tables.text import Form, open_text, read_header, rows_of
from mmap_st.data.tables.words import reading
from mmap_st.errors import SlideError, counted

_DECIMAL = re.compile(DECIMAL_COMMA)
_AMBIGUOUS = re.compile(THOUSANDS)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)


@dataclass(frozen=True)
class WideTable:
    """A table of numbers with names for rows and columns.

    Attributes
    ----------
    rows, columns
        (n,) and (g,) names, as the file has them.
    values
        (n, g) float32; missing ones are NaN.
    """

    rows: list[str]
    columns: list[str]
    values: NDArray[np.float32]


def read_wide(
    path: Path, error: type[SlideError], choose: Callable[[Sequence[str]], tuple[int, list[int]]]
) -> WideTable:
    """Read a table of text as a matrix.

    Parameters
    ----------
    path
        The table; its first line names the columns.
    error
        What to raise if it cannot be read.
    choose
        From the names of the columns, which one names the rows, and which ones hold numbers.

    Raises
    ------
    error
        If a cell is not a number, rows have different numbers of cells, or memory is too small.
    """
    form = read_header(path, error)
    names, numbers = choose(form.header)
    columns = [form.header[i] for i in numbers]
    with reading(path, "a table of numbers", error):
        refuse_large(path, path.stat().st_size, "it has", error)
        try:
            rows, values = _fast(path, error, form, names, numbers)
        except ValueError:  # a gap, a word, a decimal comma: cell by cell, to say where
            rows, values = _careful(path, error, form, names, numbers)
    return WideTable(rows, columns, values)


def read_names(path: Path, error: type[SlideError], choose: Callable[[Sequence[str]], int]) -> list[str]:
    """The names of a table's rows, without its values; `choose` finds their column in the first line."""
    form = read_header(path, error)
    column = choose(form.header)
    with reading(path, "a table", error), open_text(path, error) as text:
        next(rows_of(text, form.separator), None)
        if column == 0:
            return [_first_cell(line, form.separator) for line in text if line.strip()]
        cells = csv.reader(text, delimiter=form.separator)
        return [row[column].strip() if column < len(row) else "" for row in cells if any(row)]


def _first_cell(line: str, separator: str) -> str:
    if line.startswith('"'):
        return next(csv.reader([line], delimiter=separator))[0].strip()
    return line.partition(separator)[0].strip()


def _fast(
    path: Path, error: type[SlideError], form: Form, names: int, numbers: list[int]
) -> tuple[list[str], NDArray[np.float32]]:
    """By numpy's parser, which knows plain numbers alone."""
    rows: list[str] = []

    def name(cell: str) -> float:
        rows.append(cell.strip().removeprefix('"').removesuffix('"'))
        return 0.0

    with open_text(path, error) as text:
        next(rows_of(text, form.separator), None)
        values = np.loadtxt(
            _whole_lines(text, form),
            dtype=np.float32,
            delimiter=form.separator,
            comments=None,
            quotechar='"',
            usecols=[names, *numbers],
            converters={names: name},
            ndmin=2,
        )
    if not rows:
        raise ValueError("no rows")
    return rows, values[:, 1:]


def _whole_lines(text: TextIO, form: Form) -> Iterator[str]:
    separators = len(form.header) - 1 + form.extra
    for line in text:
        if not line.strip():
            continue
        if '"' not in line and line.count(form.separator) != separators:
            raise ValueError("a row with more or fewer cells")
        yield line


def _careful(
    path: Path, error: type[SlideError], form: Form, names: int, numbers: list[int]
) -> tuple[list[str], NDArray[np.float32]]:
    """Cell by cell, with gaps and decimal commas; the first cell that is no number is named."""
    rows: list[str] = []
    values: list[NDArray[np.float32]] = []
    cells = _Cells()
    width = len(form.header)
    with open_text(path, error) as text:
        next(rows_of(text, form.separator), None)
        for number, row in enumerate(csv.reader(text, delimiter=form.separator), start=1):
            if not any(row):
                continue
            if len(row) < width or any(row[width:]):
                raise error(
                    f"{path}, row {number} has {counted(len(row), 'cell')}, and the first line names"
                    f" {counted(width, 'column')}; correct it."
                )
            try:
                values.append(np.fromiter((cells.number(row[i]) for i in numbers), np.float32, len(numbers)))
            except ValueError as reason:
                wrong = next(i for i in numbers if cells.is_wrong(row[i]))
                raise error(
                    f"{path}, column {form.header[wrong]}, row {number}: {not_a_number(row[wrong].strip())}"
                ) from reason
            rows.append(row[names].strip())
    if cells.unclear:
        raise error(f"{path}: {not_a_number(cells.unclear)}")
    matrix = np.vstack(values) if values else np.empty((0, len(numbers)), np.float32)
    return rows, matrix


class _Cells:
    """Numbers of cells; a table has few different ones, so that each is read once."""

    def __init__(self) -> None:
        self._known = dict.fromkeys(MISSING, float("nan"))
        self._has_decimal_comma = False
        self._may_be_thousands = ""

    @property
    def unclear(self) -> str:
        """A cell whose comma may be one of thousands, where no other cell shows what commas are."""
        return "" if self._has_decimal_comma else self._may_be_thousands

    def is_wrong(self, cell: str) -> bool:
        try:
            self.number(cell)
        except ValueError:
            return True
        return False

    def number(self, cell: str) -> float:
        found = self._known.get(cell)
        if found is None:
            text = cell.strip()
            found = self._known[cell] = float("nan") if text in MISSING else self._parsed(text)
        return found

    def _parsed(self, text: str) -> float:
        if _NUMBER.fullmatch(text):
            return float(text)
        if _DECIMAL.match(text):
            if _AMBIGUOUS.match(text):
                self._may_be_thousands = self._may_be_thousands or text
            else:
                self._has_decimal_comma = True
            return float(text.replace(",", "."))
        raise ValueError(text)
