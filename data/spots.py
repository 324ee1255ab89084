"""Spots: measured places on a slide and a pathologist's labels of them, from tables in any plain format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmap_st.errors import LabelsError, MmapError, SlideError, SpotsError, first_line
from mmap_st.files import refuse_special

#: Suffixes of the files that `read_table` understands.
TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".parquet")

#: Columns of x and y, in lower case, whose names can only mean pixels of the full-resolution image.
PIXEL_COLUMNS = (
    ("pixel_x", "pixel_y"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("x_pixel", "y_pixel"),
    ("x_pixels", "y_pixels"),
    ("x_px", "y_px"),
    ("pixel_col", "pixel_row"),
    ("pxl_col", "pxl_row"),
    ("pxl_x", "pxl_y"),
    ("x_fullres", "y_fullres"),
    ("imagecol", "imagerow"),
)


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
            return pl.read_parquet(path, glob=False)
        try:
            return pl.read_csv(
                path, separator=separator_of(path), has_header=header, infer_schema=False, glob=False
            )
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
        path, separator="\x01", has_header=False, n_rows=1, infer_schema=False, quote_char=None, glob=False
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
    refuse_special(path, error)
    try:
        yield
    except MmapError:
        raise
    except (Exception, pl.exceptions.PanicException) as reason:
        raise error(f"{path} cannot be read as {what}: {first_line(reason)}") from reason


@dataclass(frozen=True)
class Spots:
    """Spots of one slide, in the order of its count table.

    Attributes
    ----------
    ids
        (n,) names, as the reader gives them.
    xy
        (n, 2) float64, centres in level-0 pixels, x to the right and y down.
    array
        (n, 2) float64, position on the array that printed them, in units of the pitch; None if unknown.
    pitch_um
        Distance between neighbouring spots in micrometres; None if unknown.
    positions_without_counts, counts_without_position
        Number of rows of each table that the other does not have.
    technology
        What measured them, such as ``Visium``; None if unknown.
    mpp
        Micrometres per pixel that the spots' own files state; None if they do not.
    notes
        What the user should know about how they were read.
    """

    ids: tuple[str, ...]
    xy: NDArray[np.float64]
    array: NDArray[np.float64] | None = None
    pitch_um: float | None = None
    positions_without_counts: int = 0
    counts_without_position: int = 0
    technology: str | None = None
    mpp: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            raise SpotsError("there are no spots; check that the spot table has rows.")
        repeated = duplicates(self.ids)
        if repeated:
            raise SpotsError(f"spot ids are not unique: {some(repeated)}; each spot needs its own id.")
        if self.xy.shape != (len(self.ids), 2):
            raise SpotsError(f"{len(self.ids)} spots have coordinates of shape {self.xy.shape}.")
        bad = ~np.isfinite(self.xy).all(axis=1)
        if bad.any():
            names = [self.ids[i] for i in np.flatnonzero(bad)]
            raise SpotsError(f"spots without a finite position: {some(names)}; correct or remove them.")

    def __len__(self) -> int:
        return len(self.ids)


def duplicates(names: Sequence[str]) -> list[str]:
    """Names that occur more than once, in order of first occurrence."""
    return [name for name, n in Counter(names).items() if n > 1]


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, such as ``"a, b, c and 4 more"``."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


_IDS = ("id", "spot", "spot_id", "barcode")


def read_labels(path: Path) -> dict[str, str]:
    """Labels by spot id.

    The table has a column ``label``, and ``id`` (or ``barcode``); or ``x`` and ``y``, positions on the array,
    which are rounded to the ids ``XxY`` of legacy ST, as in her2st's ``SECTION_labeled_coordinates.tsv``.
    Rows without a label or a position are left out.

    Raises
    ------
    LabelsError
        If it cannot be read, is missing these columns, or gives a spot two labels.
    """
    table = read_table(path, LabelsError)
    column = find_column(table, ("label", "labels"))
    if column is None:
        raise LabelsError(f"{path} has no column label; its columns are {', '.join(table.columns)}.")
    label = table.get_column(column).cast(pl.String).str.strip_chars().fill_null("")
    ids = _spot_ids(table, path)
    found: dict[str, str] = {}
    for spot, name in zip(ids, label, strict=True):
        if not spot or not name:
            continue
        if found.get(spot, name) != name:
            raise LabelsError(f"{path} gives spot {spot} two labels, {found[spot]} and {name}; keep one.")
        found[spot] = name
    return found


def _spot_ids(table: pl.DataFrame, path: Path) -> list[str]:
    """Id of each row's spot; empty where the row has no position."""
    named = find_column(table, _IDS)
    if named is not None:
        return text_column(table, named, path, LabelsError)
    x, y = find_column(table, ("x",)), find_column(table, ("y",))
    if x is None or y is None:
        raise LabelsError(
            f"{path} has neither a column id nor the columns x and y, so its rows cannot be matched to spots."
        )
    places = (number_column(table, column, path, LabelsError).to_list() for column in (x, y))
    return [
        f"{round(a)}x{round(b)}" if isfinite(a) and isfinite(b) else "" for a, b in zip(*places, strict=True)
    ]
