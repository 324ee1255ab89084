"""Spots: measured places on a slide and a pathologist's labels of them, from tables in any plain format."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmap_st.data.tables import (
    TABLE_SUFFIXES,
    duplicates,
    find_column,
    number_column,
    read_table,
    reading,
    some,
    text_column,
)
from mmap_st.errors import LabelsError, SpotsError, counted

__all__ = [
    "PIXEL_COLUMNS",
    "TABLE_SUFFIXES",
    "Spots",
    "duplicates",
    "find_column",
    "number_column",
    "read_labels",
    "read_table",
    "reading",
    "some",
    "text_column",
]

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
            raise SpotsError(
                f"{counted(len(self.ids), 'spot has', 'spots have')} coordinates of shape {self.xy.shape}."
            )
        bad = ~np.isfinite(self.xy).all(axis=1)
        if bad.any():
            names = [self.ids[i] for i in np.flatnonzero(bad)]
            raise SpotsError(f"spots without a finite position: {some(names)}; correct or remove them.")

    def __len__(self) -> int:
        return len(self.ids)


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
