"""Plain tables of spots and counts in CSV, TSV or Parquet, for data without a public layout.

Below a folder: ``NAME_spots.csv``, ``NAME_counts.csv`` and ``NAME.jpg`` (or another image) for each slide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from scipy import sparse

from mmap_st.data.arrays import array_positions
from mmap_st.data.cohort import CohortSlide, LocalSlide
from mmap_st.data.counts import Counts, make_counts
from mmap_st.data.readers.finding import find_images, in_order_of_counts, without_suffix
from mmap_st.data.spots import PIXEL_COLUMNS, Spots
from mmap_st.data.tables import (
    TABLE_SUFFIXES,
    WideTable,
    duplicates,
    find_column,
    number_column,
    read_columns,
    read_header,
    read_names,
    read_table,
    read_wide,
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


def read_spots(slide: LocalSlide) -> Spots:
    """Spots of a slide, in the order of the count table; without one, in that of the spot table."""
    assert slide.spots is not None
    spots = read_spot_table(slide.spots)
    if slide.counts is None:
        return spots
    return in_order_of_counts(spots, _count_ids(slide.counts), slide.spots, slide.counts)


def read_counts(slide: LocalSlide) -> Counts:
    """Counts: one row a spot and one column a gene; or one row a spot and gene (columns id, gene, count)."""
    assert slide.counts is not None
    path = slide.counts
    kind = slide.values or "counts"
    try:
        table = _long_or_none(path)
        if table is not None:
            return _from_long(table, path, kind)
        wide = _wide(path)
        return make_counts(_named(wide.rows, path), wide.columns, wide.values, kind=kind)
    except CountsError as error:
        message = str(error)
        raise type(error)(message if str(path) in message else f"{path}: {message}") from error


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


def _count_ids(path: Path) -> list[str]:
    """Spot ids of a table of counts, in order of first occurrence; a wide table's values are not read."""
    table = _long_or_none(path)
    if table is not None:
        return list(dict.fromkeys(text_column(table, table.columns[0], path, CountsError)))
    if _is_parquet(path):
        return _named(_wide(path).rows, path)
    return _named(read_names(path, CountsError, lambda header: _choose(header)[0]), path)


def _long_or_none(path: Path) -> pl.DataFrame | None:
    """A table with the columns id, gene and count, the id first; None if it has a column for each gene."""
    names = read_columns(path, CountsError) if _is_parquet(path) else read_header(path, CountsError).header
    identity, genes = _choose(names)
    columns = list(dict.fromkeys(names[i] for i in (identity, *genes)))
    if len(columns) != 3 or not all(find_column(pl.DataFrame(schema=columns), given) for given in _LONG):
        return None
    return read_table(path, CountsError).select(columns)


def _wide(path: Path) -> WideTable:
    if not _is_parquet(path):
        wide = read_wide(path, CountsError, _choose)
        # polars numbers columns of the same name, and tables may be saved again with these.
        there = set(wide.columns)
        names = [base if (base := _DUPLICATE.sub("", name)) in there else name for name in wide.columns]
        return WideTable(wide.rows, names, wide.values)
    table = read_table(path, CountsError)
    identity, places = _choose(table.columns)
    genes = [table.columns[i] for i in places]
    ids = text_column(table, table.columns[identity], path, CountsError)
    if all(table.schema[gene].is_numeric() for gene in genes):
        values = table.select(pl.col(genes).cast(pl.Float32).fill_null(float("nan"))).to_numpy()
    else:
        numbers = [number_column(table, gene, path, CountsError).cast(pl.Float32) for gene in genes]
        values = np.column_stack(numbers) if numbers else np.empty((len(ids), 0), np.float32)
    return WideTable(ids, genes, values)


def _choose(names: Sequence[str]) -> tuple[int, list[int]]:
    """Places of the column of spot ids and of those of genes: no saved index, and no column of spots."""
    lower = [name.strip().lower() for name in names]
    identity = next((lower.index(name) for name in _ID_COLUMNS if name in lower), 0)
    genes = [
        place
        for place, name in enumerate(names)
        if place != identity and not _SAVED_INDEX.fullmatch(name) and name not in _SPOT_COLUMNS
    ]
    return identity, genes


def _named(ids: list[str], path: Path) -> list[str]:
    """Spot ids, if each row has one and none has that of another."""
    if "" in ids:
        raise CountsError(f"{path}, row {ids.index('') + 1} has no spot id; every row needs one.")
    if duplicates(ids):
        raise CountsError(f"{path} repeats spots: {some(duplicates(ids))}; each spot needs one row.")
    return ids


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _from_long(table: pl.DataFrame, path: Path, kind: str) -> Counts:
    gene_column, count_column = (find_column(table, names) or "" for names in _LONG)
    spot = text_column(table, table.columns[0], path, CountsError)
    gene = text_column(table, gene_column, path, CountsError)
    values = number_column(table, count_column, path, CountsError).to_numpy()
    ids, genes = list(dict.fromkeys(spot)), list(dict.fromkeys(gene))
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
