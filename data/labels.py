"""A pathologist's labels of spots."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import polars as pl

from mmap_st.data.tables import find_column, number_column, read_table, text_column
from mmap_st.errors import LabelsError

_IDS = ("id", "spot", "spot_id", "barcode")


def read_labels(path: Path) -> dict[str, str]:
    """Labels by spot id.

    The table has a column ``label``, and ``id`` (or ``barcode``); or ``x`` and ``y``, places on the array,
    which are rounded to the ids ``XxY`` of legacy ST, as her2st's ``SECTION_labeled_coordinates.tsv`` has
    them. Rows without a label or a place are left out.

    Raises
    ------
    LabelsError
        If it cannot be read, lacks these columns, or names a spot twice.
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
    """Id of each row's spot; empty where the row has no place."""
    named = find_column(table, _IDS)
    if named is not None:
        return text_column(table, named, path, LabelsError)
    x, y = find_column(table, ("x",)), find_column(table, ("y",))
    if x is None or y is None:
        raise LabelsError(f"{path} has neither a column id nor the columns x and y: its rows name no spots.")
    places = (number_column(table, column, path, LabelsError).to_list() for column in (x, y))
    return [
        f"{round(a)}x{round(b)}" if isfinite(a) and isfinite(b) else "" for a, b in zip(*places, strict=True)
    ]
