"""Tables of a few columns, whose cells are text until someone asks for numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import polars as pl

from mmap_st.data.tables.limits import refuse_large
from mmap_st.data.tables.text import Form, is_packed, is_utf_16, open_bytes, open_text, read_header
from mmap_st.data.tables.words import reading
from mmap_st.errors import MmapError, counted

#: Suffixes of the files that `read_table` understands.
TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".parquet")
_CELL_BYTES = 8


def read_table(
    path: Path, error: type[MmapError], *, header: bool = True, once: Collection[str] | None = None
) -> pl.DataFrame:
    """Read a table; the columns of a text file are text, see `number_column`.

    Parameters
    ----------
    path
        .parquet; or text with commas, semicolons or tabs between cells, in UTF-8 or UTF-16, gzipped or not.
    error
        What to raise if it cannot be read.
    header
        Whether the first line names the columns; if not, they are ``column_1`` and so on. If the names are
        one fewer than the cells of a row, the first column has row names, as R writes them, and is named "".
    once
        Names that only one column may have; None: all.

    Raises
    ------
    error
        If it is no table, is larger than memory allows, or has two different columns of one name.
    """
    if path.suffix.lower() != ".parquet":
        return read_cells(path, error, header=header, once=once)
    with reading(path, "a table", error):
        # Pages of equal values are packed to nothing: what counts is the number of rows.
        frame = pl.scan_parquet(path, glob=False)
        rows = int(frame.select(pl.len()).collect().item())
        size = rows * len(frame.collect_schema()) * _CELL_BYTES
        refuse_large(path, size, "its columns have", error, arrays=True)
        return pl.read_parquet(path, glob=False)


def read_columns(path: Path, error: type[MmapError]) -> list[str]:
    """The names of the columns of a Parquet file; nothing else of it is read."""
    with reading(path, "a table", error):
        return pl.scan_parquet(path, glob=False).collect_schema().names()


def read_cells(
    path: Path, error: type[MmapError], *, header: bool = True, once: Collection[str] | None = None
) -> pl.DataFrame:
    """Read a table of text, whatever its suffix; see `read_table`."""
    form = read_header(path, error)
    with reading(path, "a table", error):
        table = _parse(path, form, error, header)
        if table.width:  # lines with nothing in them, as spreadsheets leave them
            table = table.filter(~pl.all_horizontal(pl.all().is_null()))
        if not header:
            return table
        names = form.header if once is None else [name if name in once else "" for name in form.header]
        return _one_of_each(table, names, path, error)


def _parse(path: Path, form: Form, error: type[MmapError], header: bool) -> pl.DataFrame:
    named = header and not form.short and form.extra == 0
    try:
        table = pl.read_csv(
            _source(path, error),
            separator=form.separator,
            has_header=named,
            skip_rows=int(header and not named),
            schema=None if named or not header else _texts(len(form.header) + form.extra),
            infer_schema=False,
            glob=False,
        )
    except pl.exceptions.NoDataError:
        return pl.DataFrame(schema=dict.fromkeys(form.header, pl.String))
    except pl.exceptions.ComputeError as reason:
        if any(words in str(reason) for words in ("could not parse", "malformed")):
            # All cells are taken as text, so that nothing but quotes can be wrong with one.
            raise error(
                f"{path} has a cell whose quotes do not match: one that is not closed, or text beside a"
                " closing"
                " one; correct it."
            ) from reason
        if "more fields" not in str(reason):
            raise
        raise error(
            f"{path} has rows with more cells than the {counted(len(form.header), 'column')} of its first"
            " line; correct them, or put cells that hold a separator into quotes."
        ) from reason
    if named or not header:
        return table
    extra = table.columns[len(form.header) :]
    if any((table[column].fill_null("") != "").any() for column in extra):
        raise error(
            f"{path} has rows with more cells than the {counted(len(form.header), 'column')} of its first"
            " line."
        )
    table = table.drop(extra)
    # A row that is short of a cell has no value at its end: then the others do not have row names either.
    last = table.to_series(-1)
    if form.short and last.null_count():
        short = int(last.is_null().arg_true()[0]) + 1
        raise error(
            f"{path}: rows have one cell more than the first line names, as with row names, but row {short}"
            " has fewer; give every row the same number of cells."
        )
    return table.rename(dict(zip(table.columns, _distinct(form.header), strict=True)))


def _texts(width: int) -> dict[str, pl.DataType]:
    return {f"column_{i}": pl.String() for i in range(1, width + 1)}


def _source(path: Path, error: type[MmapError]) -> Path | bytes:
    """What polars reads: a plain file as it is, others unpacked within the limit and as UTF-8."""
    refuse_large(path, path.stat().st_size, "it has", error)
    if is_utf_16(path, error):
        with open_text(path, error) as text:
            return text.read().encode()
    with open_bytes(path, error) as file:
        return file.read() if is_packed(file) else path


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number where they repeat, as polars gives them."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        found.append(f"{name}_duplicated_{seen[name] - 1}" if seen[name] else name)
        seen[name] += 1
    return found


def _one_of_each(
    table: pl.DataFrame, header: Sequence[str], path: Path, error: type[MmapError]
) -> pl.DataFrame:
    """The table without copies of columns; two columns of one name that differ are refused."""
    columns = dict(zip(table.columns, header, strict=False))
    first: dict[str, str] = {}
    copies = []
    for column, name in columns.items():
        if name in first and name:
            if not table[column].equals(table[first[name]]):
                raise error(f"{path} has two columns {name}, and they differ; keep one, or rename one.")
            copies.append(column)
        first.setdefault(name, column)
    return table.drop(copies)
