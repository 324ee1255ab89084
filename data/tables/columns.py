"""Columns of a table: found by name, and read as numbers or names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from mmap_st.errors import SlideError

#: What stands for a missing number.
MISSING = ("", "NA", "NaN", "nan", "null")
#: Numbers with a decimal comma; those that may as well have a comma between thousands.
DECIMAL_COMMA = r"^[+-]?\d*,\d+([eE][+-]?\d+)?$"
THOUSANDS = r"^[+-]?[1-9]\d{0,2}(,\d{3})+$"


def find_column(table: pl.DataFrame, names: Iterable[str]) -> str | None:
    """The first of `names` (lower case) that is a column, ignoring case."""
    by_lower = {column.strip().lower(): column for column in reversed(table.columns)}
    return next((by_lower[name] for name in names if name in by_lower), None)


def number_column(table: pl.DataFrame, column: str, path: Path, error: type[SlideError]) -> pl.Series:
    """A column as float64; empty cells and NA are NaN, and decimal commas are read as such.

    Raises
    ------
    SlideError
        Of the given type, naming the first cell that is not a number.
    """
    series = table.get_column(column)
    if not (series.dtype.is_numeric() or series.dtype in (pl.String, pl.Null)):
        raise error(f"{path}, column {column} is of type {series.dtype}; it should hold numbers.")
    if series.dtype == pl.String:
        series = series.str.strip_chars()
        series = series.set(series.is_in(list(MISSING)), None)
    numbers = series.cast(pl.Float64, strict=False)
    wrong = (numbers.is_null() & series.is_not_null()).arg_true()
    if len(wrong):
        commas = series.gather(wrong)
        if commas.str.contains(DECIMAL_COMMA).all() and not commas.str.contains(THOUSANDS).all():
            return series.str.replace(",", ".", literal=True).cast(pl.Float64).fill_null(float("nan"))
        row = int(wrong[0])
        raise error(f"{path}, column {column}, row {row + 1}: {not_a_number(series[row])}")
    return numbers.fill_null(float("nan"))


def not_a_number(cell: str) -> str:
    """What is wrong with a cell, and what to do."""
    if re.match(THOUSANDS, cell):
        return f"{cell!r} has a comma that may be decimal or one of thousands; write 1234.5 for numbers."
    return f"{cell!r} is not a number; correct it."


def text_column(table: pl.DataFrame, column: str, path: Path, error: type[SlideError]) -> list[str]:
    """A column of names as text; empty cells are refused."""
    series = table.get_column(column)
    if series.dtype in (pl.List, pl.Struct, pl.Object, pl.Binary):
        raise error(f"{path}, column {column} is of type {series.dtype}; it should hold names.")
    texts = series.cast(pl.String).str.strip_chars()
    empty = (texts.is_null() | (texts == "")).arg_true()
    if len(empty):
        raise error(f"{path}, column {column}, row {int(empty[0]) + 1} is empty; every row needs a name.")
    return texts.to_list()
