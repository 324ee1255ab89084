"""Folders of 10x: ``matrix.mtx`` in Matrix Market format, features and barcodes, each zipped or not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from scipy import sparse

from mmap_st.data.counts import Counts, make_counts
from mmap_st.data.readers.annotated import features_of
from mmap_st.data.tables import open_bytes, read_table, reading, refuse_large
from mmap_st.errors import CountsError, counted

if TYPE_CHECKING:
    from pandas import DataFrame

_MATRIX, _FEATURES, _BARCODES = ("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",)
_ENTRY_BYTES = 24  # row, column and value of an entry while it is read
_COPY_BYTES = 1 << 20


def read_mtx_barcodes(folder: Path) -> list[str]:
    """Names of the spots; the values are not read.

    Raises
    ------
    CountsError
        If the file is missing or cannot be read.
    """
    table = read_table(_file(folder, _BARCODES), CountsError, header=False)
    return [str(name) for name in table.to_series(0)]


def read_mtx(folder: Path, kind: str) -> Counts:
    """Counts of the genes of a folder.

    Raises
    ------
    CountsError
        If a file is missing, cannot be read, claims more than memory holds, or does not fit the others.
    """
    var = read_mtx_features(folder)
    barcodes = read_mtx_barcodes(folder)
    path = _file(folder, _MATRIX)
    features = features_of(var)
    matrix = _matrix(path, (len(var), len(barcodes)))
    return make_counts(
        barcodes,
        features.genes,
        matrix[features.columns.nonzero()[0]].T,
        gene_ids=features.gene_ids,
        kind=kind,
        notes=(features.note,) if features.note else (),
    )


def read_mtx_features(folder: Path) -> DataFrame:
    """The features by name, with ``gene_ids`` and ``feature_types`` where the file has these.

    Raises
    ------
    CountsError
        If the file is missing or cannot be read.
    """
    import pandas as pd

    names = read_table(_file(folder, _FEATURES), CountsError, header=False)
    ids = names.to_series(0).fill_null("").to_list()
    symbols = names.to_series(min(1, names.width - 1)).fill_null("").to_list()
    var = pd.DataFrame(
        {"gene_ids": ids}, index=[name or gene for name, gene in zip(symbols, ids, strict=True)]
    )
    if names.width > 2:
        var["feature_types"] = names.to_series(2).fill_null("").to_list()
    return var


def _matrix(path: Path, shape: tuple[int, int]) -> Any:
    """The values (features, spots), if the file's first line claims that many."""
    from scipy.io import mmread

    with reading(path, "a matrix of Space Ranger", CountsError):
        with open_bytes(path, CountsError) as file:
            rows, columns, entries = _claimed(file)
        if (rows, columns) != shape:
            raise CountsError(
                f"{path} is a matrix of {rows} x {columns}, and the files beside it name"
                f" {counted(shape[0], 'feature')} and {counted(shape[1], 'barcode')}; use the three files of"
                " one sample."
            )
        refuse_large(path, entries * _ENTRY_BYTES, "its values have", CountsError, arrays=True)
        with open_bytes(path, CountsError) as file:
            # In memory: scipy's parser ends the program where a stream raises an error.
            text = io.BytesIO(file.read())
        return sparse.csr_array(mmread(text))


def _claimed(file: BinaryIO) -> tuple[int, int, int]:
    """Rows, columns and entries, of the first line that is no comment."""
    for line in file:
        if line.strip() and not line.startswith(b"%"):
            rows, columns, entries = (int(word) for word in line.split())
            return rows, columns, entries
    raise ValueError("it has no line with its size")


def _file(folder: Path, names: tuple[str, ...]) -> Path:
    """A file of the folder, zipped or not; if there are both they are the same."""
    for name in names:
        both = [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()]
        if len(both) == 2 and not _same(*both):
            raise CountsError(f"{folder} holds {name} and {name}.gz, and they differ; keep one.")
        if both:
            return both[0]
    raise CountsError(f"{folder} has no {names[0]}.gz and no {names[0]}; copy the whole folder.")


def _same(one: Path, other: Path) -> bool:
    with open_bytes(one, CountsError) as first, open_bytes(other, CountsError) as second:
        while True:
            piece = first.read(_COPY_BYTES)
            if piece != second.read(_COPY_BYTES):
                return False
            if not piece:
                return True
