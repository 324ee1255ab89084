"""Plain tables of spots and counts in CSV, TSV or Parquet, for data without a public layout.

Below a folder: ``NAME_spots.csv``, ``NAME_counts.csv`` and ``NAME.jpg`` (or another image) for each slide.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
from scipy import sparse

from mmap_st.data.arrays import array_positions
from mmap_st.data.cohort import CohortSlide
from mmap_st.data.counts import Counts, make_counts
from mmap_st.data.readers.finding import find_images, in_order_of_counts, without_suffix
from mmap_st.data.spots import (
    PIXEL_COLUMNS,
    TABLE_SUFFIXES,
    Spots,
    duplicates,
    find_column,
    number_column,
    read_table,
    some,
    text_column,
)
from mmap_st.errors import CohortError, CountsError, SpotsError

_ID_COLUMNS = ("id", "spot", "spot_id", "barcode", "", "__index_level_0__")
# Names that can only mean pixels come first: next to them, x and y are positions on the array.
_XY = (*PIXEL_COLUMNS[:-1], ("x", "y"), PIXEL_COLUMNS[-1])
_ARRAY_XY = ("array_x", "array_y")
_ROW_COLUMN = ("array_row", "array_col")
# What tables of counts may have in addition to genes: a saved index, and columns of spot tables.
_SAVED_INDEX = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
_SPOT_COLUMNS = frozenset(name for pair in (*_XY, _ARRAY_XY, _ROW_COLUMN) for name in pair) | {
    "in_tissue",
    "selected",
    "new_x",
    "new_y",
}
_DUPLICATE = re.compile(r"_duplicated_\d+$")
_LONG = (("gene",), ("count", "counts", "umi", "value"))


def find_slides(folder: Path) -> tuple[CohortSlide, ...]:
    """Slides of a folder of tables: every ``NAME_spots`` with its ``NAME_counts`` and its image.

    Raises
    ------
    CohortError
        If it is not a folder, or holds no table of spots.
    """
    if not folder.is_dir():
        raise CohortError(f"{folder} is not a folder; table: needs the folder that holds NAME_spots.csv.")
    spots, counts = _tables(folder, "_spots"), _tables(folder, "_counts")
    images = find_images(folder)
    if not spots:
        raise CohortError(f"{folder} has no table NAME_spots ({', '.join(TABLE_SUFFIXES)}).")
    return tuple(
        CohortSlide(name, image=images.get(name), spots=path, counts=counts.get(name), reader="table")
        for name, path in sorted(spots.items())
    )


def read_spots(slide: CohortSlide) -> Spots:
    """Spots of a slide, in the order of the count table; without one, in that of the spot table."""
    assert slide.spots is not None
    spots = read_spot_table(slide.spots)
    if slide.counts is None:
        return spots
    ids, _ = _count_ids(slide.counts)
    return in_order_of_counts(spots, ids, slide.spots, slide.counts)


def read_counts(slide: CohortSlide) -> Counts:
    """Counts: one row a spot and one column a gene; or one row a spot and gene (columns id, gene, count)."""
    assert slide.counts is not None
    path = slide.counts
    ids, table = _count_ids(path)
    kind = slide.values or "counts"
    try:
        if _is_long(table):
            return _from_long(table, ids, path, kind)
        genes = table.columns[1:]
        values = [number_column(table, gene, path, CountsError).cast(pl.Float32) for gene in genes]
        matrix = np.column_stack(values) if values else np.empty((len(ids), 0), np.float32)
        # polars numbers columns of the same name: they belong to one gene.
        names = [_DUPLICATE.sub("", gene) for gene in genes]
        return make_counts(ids, names, matrix, kind=kind)
    except CountsError as error:
        message = str(error)
        raise CountsError(message if str(path) in message else f"{path}: {message}") from error


def read_spot_table(path: Path) -> Spots:
    """Spots of one table: ids, x and y in pixels and, if the table has them, positions on the array.

    Raises
    ------
    SpotsError
        If the table cannot be read, or a column is missing.
    """
    table = read_table(path, SpotsError)
    identity = find_column(table, _ID_COLUMNS) or (table.columns[0] if table.columns else None)
    pairs = (_both(table, pair) for pair in _XY)
    x, y = next((pair for pair in pairs if pair is not None), (None, None))
    if identity is None or x is None or y is None or identity in (x, y):
        raise SpotsError(
            f"{path} needs the columns id, x and y (pixels); it has {', '.join(table.columns) or 'none'}."
        )
    ids = text_column(table, identity, path, SpotsError)
    xy = np.column_stack([number_column(table, column, path, SpotsError) for column in (x, y)])
    place = _both(table, _ARRAY_XY) or _both(table, _ROW_COLUMN)
    array = None
    if place is not None:
        array = np.column_stack([number_column(table, column, path, SpotsError) for column in place])
        if not np.isfinite(array).all():
            array = None
        elif _both(table, _ARRAY_XY) is None:
            array = array_positions(array)
    try:
        return Spots(tuple(ids), xy, array)
    except SpotsError as error:
        raise SpotsError(f"{path}: {error}") from error


def _both(table: pl.DataFrame, names: tuple[str, str]) -> tuple[str, str] | None:
    """The columns of two names; None where one is missing."""
    one, other = (find_column(table, (name,)) for name in names)
    return None if one is None or other is None else (one, other)


def _tables(folder: Path, ending: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = without_suffix(path, TABLE_SUFFIXES)
        if name is not None and name.endswith(ending) and name != ending:
            found.setdefault(name.removesuffix(ending), path)
    return found


def _count_ids(path: Path) -> tuple[list[str], pl.DataFrame]:
    """Spot ids in order of first occurrence, and the table with the ids first."""
    table = read_table(path, CountsError)
    if not table.columns:
        raise CountsError(f"{path} has no columns; it needs a column of spot ids and one for each gene.")
    identity = find_column(table, _ID_COLUMNS) or table.columns[0]
    genes = [c for c in table.columns if not _SAVED_INDEX.fullmatch(c) and c not in _SPOT_COLUMNS]
    table = table.select(identity, *(gene for gene in genes if gene != identity))
    ids = text_column(table, identity, path, CountsError)
    if _is_long(table):
        return list(dict.fromkeys(ids)), table
    if duplicates(ids):
        raise CountsError(f"{path} repeats spots: {some(duplicates(ids))}; each spot needs one row.")
    return ids, table


def _is_long(table: pl.DataFrame) -> bool:
    return len(table.columns) == 3 and all(find_column(table, names) for names in _LONG)


def _from_long(table: pl.DataFrame, ids: list[str], path: Path, kind: str) -> Counts:
    gene_column, count_column = (find_column(table, names) or "" for names in _LONG)
    spot = text_column(table, table.columns[0], path, CountsError)
    gene = text_column(table, gene_column, path, CountsError)
    values = number_column(table, count_column, path, CountsError).to_numpy()
    genes = list(dict.fromkeys(gene))
    row_of = {name: row for row, name in enumerate(ids)}
    column_of = {name: column for column, name in enumerate(genes)}
    rows = np.fromiter((row_of[name] for name in spot), np.int64, len(spot))
    columns = np.fromiter((column_of[name] for name in gene), np.int64, len(gene))
    if len(np.unique(rows * len(genes) + columns)) < len(rows):
        raise CountsError(
            f"{path} lists a gene of a spot more than once; each pair of spot and gene needs one row."
        )
    matrix = sparse.csr_array((values.astype(np.float32), (rows, columns)), shape=(len(ids), len(genes)))
    return make_counts(ids, genes, matrix, kind=kind)
