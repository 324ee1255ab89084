"""Plain tables: CSV, TSV and Parquet, gzipped or not, and one sentence where they cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from mmap_st.errors import MmapError, SlideError, first_line

#: Suffixes of the files that `read_table` understands.
TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".parquet")


def read_table(path: Path, error: type[SlideError], *, header: bool = True) -> pl.DataFrame:
    """Read a table; the columns of a text file are text, see `number_column`.

    Parameters
    ----------
    path
        .parquet; .csv (commas); .tsv (tabs); .txt (whichever its first line has more of); may be gzipped.
    error
        What to raise if it cannot be read.
    header
        Whether the first line names the columns; if not, they are ``column_1`` and so on.
    """
    with reading(path, "a table", error):
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path)
        try:
            return pl.read_csv(path, separator=separator_of(path), has_header=header, infer_schema=False)
        except pl.exceptions.NoDataError as nothing:
            raise error(f"{path} is empty; copy it again.") from nothing


def separator_of(path: Path) -> str:
    """Tab or comma: by the suffix of a text file, else whichever its first line has more of."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".csv"):
        return ","
    if name.endswith(".tsv"):
        return "\t"
    line = pl.read_csv(
        path, separator="\x01", has_header=False, n_rows=1, infer_schema=False, quote_char=None
    )
    text = str(line.item(0, 0))
    return "\t" if text.count("\t") >= text.count(",") else ","


def find_column(table: pl.DataFrame, names: Iterable[str]) -> str | None:
    """The first of `names` (lower case) that is a column, ignoring case."""
    by_lower = {column.strip().lower(): column for column in reversed(table.columns)}
    return next((by_lower[name] for name in names if name in by_lower), None)


def number_column(table: pl.DataFrame, column: str, path: Path, error: type[SlideError]) -> pl.Series:
    """A column as float64; empty cells and NA are NaN.

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
        series = series.set(series.is_in(["", "NA", "NaN", "nan", "null"]), None)
    numbers = series.cast(pl.Float64, strict=False)
    wrong = (numbers.is_null() & series.is_not_null()).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise error(f"{path}, column {column}, row {row + 1}: {series[row]!r} is not a number; correct it.")
    return numbers.fill_null(float("nan"))


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


@contextmanager
def reading(path: Path, what: str, error: type[SlideError]) -> Iterator[None]:
    """Turn whatever error another library raises on a damaged file into one sentence.

    Parameters
    ----------
    path, what
        The file, and what it should be, such as ``a table of counts``.
    error
        What to raise.
    """
    try:
        yield
    except MmapError:
        raise
    except (Exception, pl.exceptions.PanicException) as reason:
        raise error(f"{path} cannot be read as {what}: {first_line(reason)}") from reason
