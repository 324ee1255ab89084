"""Cells of a Xenium section: their centres, and their counts summed over squares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from mmap_st.data.bins import Squares, place_of, squares_of
from mmap_st.data.cohort import LocalSlide
from mmap_st.data.counts import Counts
from mmap_st.data.readers import visium
from mmap_st.data.readers.xenium.bundle import CELLS, cells_of
from mmap_st.data.tables import (
    duplicates,
    find_column,
    number_column,
    read_table,
    reading,
    some,
    text_column,
)
from mmap_st.errors import CountsError, first_line

_ID, _X, _Y = "cell_id", "x_centroid", "y_centroid"


@dataclass(frozen=True)
class Cells:
    """Cells that have both counts and a position.

    Attributes
    ----------
    ids
        Their names, in the order of the matrix.
    squares
        The squares that they are in.
    notes
        How many cells of either table the other does not have.
    """

    ids: tuple[str, ...]
    squares: Squares
    notes: tuple[str, ...]


def cell_squares(matrix: Path, side_um: float) -> Cells:
    """The squares that hold a cell.

    Parameters
    ----------
    matrix
        ``cell_feature_matrix``, as a file or a folder; the cells' table lies beside it.
    side_um
        Side of a square in micrometres.

    Raises
    ------
    CountsError
        If a table is missing or cannot be read, a position is missing, or they have no cell in common.
    """
    path = cells_of(matrix.parent)
    if path is None:
        raise CountsError(
            f"{matrix.parent} has no {CELLS[0]} and no {CELLS[1]}, which say where the cells of {matrix.name}"
            " are; copy one of them from the run."
        )
    table = read_table(path, CountsError)
    columns = {name: column for name in (_ID, _X, _Y) if (column := find_column(table, (name,)))}
    missing = [name for name in (_ID, _X, _Y) if name not in columns]
    if missing:
        raise CountsError(
            f"{path} is missing the columns {', '.join(missing)}; it has {some(table.columns)}."
        )
    if table.schema[columns[_ID]] == pl.Binary:  # in early versions
        with reading(path, "a table of cells", CountsError):
            table = table.with_columns(pl.col(columns[_ID]).cast(pl.String))
    cells = text_column(table, columns[_ID], path, CountsError)
    if duplicates(cells):
        raise CountsError(f"{path} repeats cells: {some(duplicates(cells))}; each cell needs one row.")
    x, y = (number_column(table, columns[axis], path, CountsError).to_numpy() for axis in (_X, _Y))
    xy = np.column_stack([x, y])
    row_of = {name: row for row, name in enumerate(cells)}
    names = visium.read_barcodes(matrix)
    ids = tuple(name for name in names if name in row_of)
    if not ids:
        raise CountsError(
            f"no cell is in both {matrix} (such as {some(names)}) and {path} (such as {some(cells)}); check"
            " that they are of one run."
        )
    placed = xy[[row_of[name] for name in ids]]
    lost = int((~np.isfinite(placed).all(axis=1)).sum())
    if lost:
        raise CountsError(
            f"{path} has {lost:,} cells without a position ({_X} and {_Y} in micrometres); copy it again."
        )
    try:
        squares = squares_of(place_of(placed, side_um), side_um)
    except ValueError as error:
        raise CountsError(f"{path}: {first_line(error)}.") from error
    apart = (
        (len(cells) - len(ids), "cells without counts"),
        (len(names) - len(ids), "cells without a position"),
    )
    return Cells(ids, squares, tuple(f"{what}, left out: {number}" for number, what in apart if number))


def read_cell_counts(slide: LocalSlide, matrix: Path, side_um: float) -> Counts:
    """Counts of the genes, summed over the cells whose centre is in a square.

    Raises
    ------
    CountsError
        As of `cell_squares`, or if the matrix cannot be read.
    """
    cells = cell_squares(matrix, side_um)
    return visium.read_counts(replace(slide, counts=matrix)).joined(cells.ids, cells.squares)
