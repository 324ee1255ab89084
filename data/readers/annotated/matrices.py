"""Counts of a table: the first of its matrices that holds whole numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.data.counts import Counts, check_sparse, make_counts
from mmap_st.data.readers.annotated.parts import GeneMatrix, SpotTable
from mmap_st.data.readers.annotated.sections import section_of
from mmap_st.data.values import first_that_is_no_count
from mmap_st.errors import CountsError, NotCountsError, counted


def counts_of(table: SpotTable, kind: str, where: str | None = None) -> Counts:
    """Counts of the genes, for the spots of one section on tissue, in the table's order.

    Parameters
    ----------
    table
        What was read.
    kind
        ``counts``: the first of X, its count layers and raw that holds whole numbers; ``lognorm``: X
        unchanged.
    where
        Of several sections the one to use, such as ``batch=A``.

    Raises
    ------
    CountsError
        If none holds counts; or if X does, where log-normalised values are expected.
    """
    rows = section_of(table, where).rows
    try:
        if kind == "lognorm":
            return _lognorm(table, rows)
        passed_over: list[str] = []
        for matrix in table.matrices:
            values = _values(matrix, table, rows)
            wrong = first_that_is_no_count(values)
            if wrong is None:
                counts = _made(matrix, table, rows, values, "counts")
                if not passed_over:
                    return counts
                note = f"counts are read from {matrix.name}: {'; '.join(passed_over)}"
                return replace(counts, notes=(*counts.notes, note))
            passed_over.append(f"{matrix.name} holds values such as {wrong:g}")
    except CountsError as error:
        raise type(error)(f"{table.source}: {error}") from error
    raise NotCountsError(
        f"{table.source} holds no counts, which are whole numbers of zero or more:"
        f" {', '.join(passed_over) or 'it has no matrix'}; targets are the logarithm of counts per 10,000, so"
        " put raw counts into X, layers['counts'] or raw, or give --values lognorm if log-normalised values"
        " are what you have."
    )


def _lognorm(table: SpotTable, rows: NDArray[np.bool_]) -> Counts:
    if not table.matrices:
        raise CountsError("there is no X.")
    matrix = table.matrices[0]
    values = _values(matrix, table, rows)
    if first_that_is_no_count(values) is None:
        raise CountsError("X holds whole numbers: these are counts; leave out --values lognorm.")
    return _made(matrix, table, rows, values, "lognorm")


def _made(
    matrix: GeneMatrix, table: SpotTable, rows: NDArray[np.bool_], values: sparse.csr_array, kind: str
) -> Counts:
    features = matrix.features
    ids = [str(name) for name in table.obs.index[rows]]
    notes = (features.note,) if features.note else ()
    return make_counts(ids, features.genes, values, gene_ids=features.gene_ids, kind=kind, notes=notes)


def _values(matrix: GeneMatrix, table: SpotTable, rows: NDArray[np.bool_]) -> sparse.csr_array:
    """(spots, genes) of the chosen rows and of the columns that are genes."""
    loaded = matrix.load()
    if loaded is None:
        raise CountsError(f"{matrix.name} is empty.")
    columns = matrix.features.columns
    values = sparse.csr_array(
        check_sparse(loaded) if sparse.issparse(loaded) else np.asarray(loaded), dtype=np.float32
    )
    if values.shape != (len(rows), len(columns)):
        raise CountsError(
            f"{matrix.name} has the shape {values.shape} for {counted(len(rows), 'spot')} and"
            f" {counted(len(columns), 'feature')}."
        )
    if not rows.all():
        values = values[np.flatnonzero(rows)]
    return values if columns.all() else sparse.csr_array(values[:, np.flatnonzero(columns)])
