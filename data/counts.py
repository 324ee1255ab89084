"""Counts: transcripts per spot and gene, sparse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.data.spots import duplicates, some
from mmap_st.errors import CountsError


@dataclass(frozen=True)
class Counts:
    """Counts of one slide.

    Attributes
    ----------
    ids
        (n,) spot ids.
    genes
        (g,) gene names, unique.
    matrix
        (n, g) CSR, float32 whole numbers.
    merged_genes
        How many columns were added to another of the same name.
    """

    ids: tuple[str, ...]
    genes: tuple[str, ...]
    matrix: sparse.csr_array
    merged_genes: int = 0

    @property
    def library(self) -> NDArray[np.float64]:
        """(n,) library size of each spot, over all genes."""
        return np.asarray(self.matrix.sum(axis=1), dtype=np.float64).ravel()

    def rows_of(self, ids: Sequence[str]) -> Counts:
        """Counts of `ids`, in that order; an id without counts gets an empty row (library size 0)."""
        row_of = {name: row for row, name in enumerate(self.ids)}
        rows = np.array([row_of.get(name, -1) for name in ids], dtype=np.int64)
        known = rows >= 0
        pick = sparse.csr_array(
            (np.ones(known.sum(), np.float32), (np.flatnonzero(known), rows[known])),
            shape=(len(rows), len(self.ids)),
        )
        return Counts(tuple(ids), self.genes, sparse.csr_array(pick @ self.matrix), self.merged_genes)

    def columns_of(self, genes: Sequence[str]) -> tuple[sparse.csr_array, NDArray[np.bool_]]:
        """Columns (n, len(genes)) in that order, and which of the genes this slide has (others are empty)."""
        column_of = {name: column for column, name in enumerate(self.genes)}
        columns = np.array([column_of.get(name, -1) for name in genes], dtype=np.int64)
        present = columns >= 0
        pick = sparse.csr_array(
            (np.ones(present.sum(), np.float32), (columns[present], np.flatnonzero(present))),
            shape=(len(self.genes), len(columns)),
        )
        return sparse.csr_array(self.matrix @ pick), present


def make_counts(
    ids: Sequence[str], genes: Sequence[str], values: sparse.spmatrix | NDArray[np.float32]
) -> Counts:
    """Check a table of counts and make it sparse; columns of one name are added up.

    Raises
    ------
    CountsError
        If ids repeat, the table is empty, or a value is not a whole number of zero or more.
    """
    repeated = duplicates(ids)
    if repeated:
        raise CountsError(
            f"spot ids of the counts are not unique: {some(repeated)}; each spot needs one row."
        )
    if not len(ids) or not len(genes):
        raise CountsError(
            f"the count table has {len(ids)} spots and {len(genes)} genes; it needs some of both."
        )
    matrix = sparse.csr_array(values, dtype=np.float32)
    _check_values(matrix, ids, genes)
    names = tuple(dict.fromkeys(genes))
    if len(names) < len(genes):
        column_of = {name: column for column, name in enumerate(names)}
        merge = sparse.csr_array(
            (np.ones(len(genes), np.float32), (np.arange(len(genes)), [column_of[g] for g in genes])),
            shape=(len(genes), len(names)),
        )
        matrix = sparse.csr_array(matrix @ merge)
    return Counts(tuple(ids), names, matrix, merged_genes=len(genes) - len(names))


def _check_values(matrix: sparse.csr_array, ids: Sequence[str], genes: Sequence[str]) -> None:
    values = matrix.data
    for wrong, what in (
        (~np.isfinite(values), "are missing or not numbers"),
        (values < 0, "are negative"),
        (values != np.floor(values), "are not whole numbers"),
    ):
        if wrong.any():
            entry = int(np.flatnonzero(wrong)[0])
            row = int(np.searchsorted(matrix.indptr, entry, side="right")) - 1
            raise CountsError(
                f"{int(wrong.sum())} counts {what}, the first {values[entry]:g} for spot {ids[row]}, gene"
                f" {genes[int(matrix.indices[entry])]}; give raw transcript counts."
            )
