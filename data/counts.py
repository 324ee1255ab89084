"""Counts of transcripts per spot and gene, sparse; and gene names, which may be symbols or Ensembl ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.data.bins import Squares
from mmap_st.data.tables import duplicates, some
from mmap_st.data.values import blocks_of, notes_on_values, what_they_are
from mmap_st.errors import CountsError, NotCountsError, PanelError, counted

# ENSG00000000003.15, ENSMUSG00000064372.1, ENSG00000002586.20_PAR_Y.
_ENSEMBL = re.compile(r"(ENS[A-Z]{0,4}[EGTP]\d{11})(\.\d+)?(_PAR_Y)?")

# 1-Mar and Mar-01: what spreadsheets make of MARCH1 and MARC1, SEPT2, DEC1 and OCT4.
_MONTH = "(feb|mar|apr|sep|oct|nov|dec)"
_DATE = re.compile(rf"\d{{1,2}}-{_MONTH}|{_MONTH}-\d{{1,2}}", re.IGNORECASE)


def canonical_gene(name: str) -> str:
    """The name without surrounding blanks and, if it is an Ensembl id, without its version."""
    name = name.strip()
    match = _ENSEMBL.fullmatch(name)
    return match[1] if match else name


def is_ensembl(name: str) -> bool:
    """Whether a name is an Ensembl id."""
    return _ENSEMBL.fullmatch(name) is not None


def gene_naming(genes: Iterable[str]) -> str:
    """What kind most of the names are: ``Ensembl ids`` or ``symbols``."""
    names = list(genes)
    ensembl = sum(map(is_ensembl, names))
    return "Ensembl ids" if ensembl > len(names) / 2 else "symbols"


def shared_genes(tables: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Genes that every table has, in the order of the first."""
    if not tables:
        return ()
    shared = set(tables[0]).intersection(*tables[1:])
    return tuple(gene for gene in tables[0] if gene in shared)


def union_of_genes(tables: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Genes that any table has, in order of first occurrence."""
    return tuple(dict.fromkeys(gene for table in tables for gene in table))


@dataclass(frozen=True)
class Counts:
    """Counts of one slide.

    Attributes
    ----------
    ids
        (n,) spot ids.
    genes
        (g,) gene names, unique; Ensembl ids without versions.
    matrix
        (n, g) CSR, float32; whole numbers, unless `values` is ``lognorm``.
    merged_genes
        Number of columns that were added to another of the same name.
    gene_ids
        (g,) an Ensembl id of each gene, or ""; None where the table has only the names.
    known
        (n,) rows that the count table has; None means all. The others are empty and were not measured.
    values
        ``counts``, or ``lognorm``: counts that were scaled to a library size and then log1p-transformed.
    notes
        What the user should know about how they were read.
    """

    ids: tuple[str, ...]
    genes: tuple[str, ...]
    matrix: sparse.csr_array
    merged_genes: int = 0
    gene_ids: tuple[str, ...] | None = None
    values: str = "counts"
    known: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

    @property
    def library(self) -> NDArray[np.float64]:
        """(n,) library size of each spot, over all genes."""
        return np.asarray(self.matrix.sum(axis=1), dtype=np.float64).ravel()

    def rows_of(self, ids: Sequence[str]) -> Counts:
        """Counts of `ids`, in that order; an id without counts gets an empty row that is not `measured`."""
        row_of = {name: row for row, name in enumerate(self.ids)}
        rows = np.array([row_of.get(name, -1) for name in ids], dtype=np.int64)
        known = rows >= 0
        pick = _picking(np.flatnonzero(known), rows[known], (len(rows), len(self.ids)))
        return replace(self, ids=tuple(ids), matrix=sparse.csr_array(pick @ self.matrix), known=known)

    def in_order(self, ids: Sequence[str]) -> Counts:
        """As `rows_of`, without a copy where these are the ids; entries of a row may be in another order.

        Evaluations tell their requests apart by the entries in the order of `rows_of`.
        """
        return replace(self, known=self.measured) if self.ids == tuple(ids) else self.rows_of(ids)

    def block(self, rows: slice) -> Counts:
        """Counts of consecutive spots."""
        known = None if self.known is None else self.known[rows]
        return replace(self, ids=self.ids[rows], matrix=sparse.csr_array(self.matrix[rows]), known=known)

    def joined(self, ids: Sequence[str], squares: Squares) -> Counts:
        """Sums over squares: `ids` are the members, of which each lies in the square that it is said to."""
        sums = squares.sums(self.rows_of(ids).matrix).astype(np.float32)
        return replace(self, ids=squares.names, matrix=sparse.csr_array(sums), known=None)

    @property
    def measured(self) -> NDArray[np.bool_]:
        """(n,) rows that the count table has, whether empty or not."""
        return np.ones(len(self.ids), np.bool_) if self.known is None else self.known

    def columns_of(self, genes: Sequence[str]) -> tuple[sparse.csr_array, NDArray[np.bool_]]:
        """Columns (n, len(genes)) in that order, and which of the genes this slide has (others are empty)."""
        column_of = {name: column for column, name in enumerate(self.genes)}
        columns = np.array([column_of.get(name, -1) for name in genes], dtype=np.int64)
        present = columns >= 0
        pick = _picking(columns[present], np.flatnonzero(present), (len(self.genes), len(columns)))
        return sparse.csr_array(self.matrix @ pick), present


def _picking(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> sparse.csr_array:
    """A matrix of 1 at these places.

    Its indices have 32 bits: products would have 64 as it does, which is half of their memory.
    """
    places = (rows.astype(np.int32), columns.astype(np.int32))
    return sparse.csr_array((np.ones(len(rows), np.float32), places), shape=shape)


def make_counts(
    ids: Sequence[str],
    genes: Sequence[str],
    values: sparse.spmatrix | sparse.sparray | NDArray[np.float32],
    *,
    gene_ids: Sequence[str] | None = None,
    kind: str = "counts",
    notes: Sequence[str] = (),
) -> Counts:
    """Check a table of counts and make it sparse; columns of one gene are added up.

    Parameters
    ----------
    ids, genes
        Names of rows and columns.
    values
        (n, g) the table.
    gene_ids
        An Ensembl id for each column, or "".
    kind
        ``counts``: whole numbers only; ``lognorm``: any finite number of zero or more.
    notes
        What the user should know about how they were read.

    Raises
    ------
    CountsError
        If ids repeat, the table is empty, or a value is not of that kind.
    """
    repeated = duplicates(ids)
    if repeated:
        raise CountsError(
            f"spot ids of the counts are not unique: {some(repeated)}; each spot needs one row."
        )
    if not len(ids) or not len(genes):
        raise CountsError(
            f"the count table has {counted(len(ids), 'spot')} and {counted(len(genes), 'gene')}; it needs at"
            " least one of each."
        )
    matrix = sparse.csr_array(values, dtype=np.float32)
    _check_values(matrix, ids, genes, kind)
    canonical = [canonical_gene(gene) for gene in genes]
    names = tuple(dict.fromkeys(canonical))
    notes = (*notes, *_notes_on_names(canonical), *notes_on_values(matrix, kind))
    if len(names) < len(canonical):
        if kind != "counts":
            raise CountsError(
                f"genes are not unique: {some(duplicates(canonical))}; log-normalised values"
                " cannot be added up, so give each gene one column."
            )
        column_of = {name: column for column, name in enumerate(names)}
        merge = sparse.csr_array(
            (np.ones(len(genes), np.float32), (np.arange(len(genes)), [column_of[g] for g in canonical])),
            shape=(len(genes), len(names)),
        )
        matrix = sparse.csr_array(matrix @ merge)
    known: dict[str, str] = {}
    for name, gene_id in zip(canonical, gene_ids or (), strict=bool(gene_ids)):
        known.setdefault(name, canonical_gene(gene_id))
    return Counts(
        tuple(ids),
        names,
        matrix,
        merged_genes=len(genes) - len(names),
        gene_ids=tuple(known[name] for name in names) if known else None,
        values=kind,
        notes=notes,
    )


def _notes_on_names(genes: Sequence[str]) -> tuple[str, ...]:
    """Which columns of one gene are added up, and which names are no longer those of genes."""
    notes = []
    repeated = duplicates(genes)
    if repeated:
        added = counted(len(genes) - len(set(genes)), "column was", "columns were")
        notes.append(f"{added} added to another column of the same gene ({some(repeated)})")
    dates = [gene for gene in dict.fromkeys(genes) if _DATE.fullmatch(gene)]
    if dates:
        notes.append(
            f"{counted(len(dates), 'gene has a date for its name', 'genes have dates for names')}"
            f" ({some(dates)}), as spreadsheets make of MARCH1 or SEPT2: two genes may be one now; take names"
            " from the file that was not opened in one"
        )
    return tuple(notes)


def check_sparse(matrix: Any) -> Any:
    """Return the matrix if its indices are valid: those of a damaged file would reach outside its memory.

    Raises
    ------
    ValueError
        If an index is out of range.
    """
    check = getattr(matrix, "check_format", None)
    if check is not None:
        check(full_check=True)
    return matrix


def _check_values(matrix: sparse.csr_array, ids: Sequence[str], genes: Sequence[str], kind: str) -> None:
    values = matrix.data
    tests: list[tuple[Callable[[NDArray[np.float32]], NDArray[np.bool_]], str]] = [
        (lambda part: ~np.isfinite(part), "are missing or not numbers"),
        (lambda part: part < 0, "are negative"),
    ]
    if kind == "counts":
        tests.append((lambda part: part != np.floor(part), "are not whole numbers"))
    for test, what in tests:
        wrong = np.concatenate([np.zeros(0, np.bool_), *map(test, blocks_of(values))])
        if not wrong.any():
            continue
        entry = int(np.flatnonzero(wrong)[0])
        row = int(np.searchsorted(matrix.indptr, entry, side="right")) - 1
        seen = (
            f"{int(wrong.sum())} counts {what}, the first {values[entry]:g} for spot {ids[row]}, gene"
            f" {genes[int(matrix.indices[entry])]}"
        )
        if np.isfinite(values[entry]):
            raise NotCountsError(f"{seen}; {what_they_are(matrix, kind)}.")
        raise CountsError(f"{seen}; give raw transcript counts.")


_BY_IDS = "Ensembl ids"


def harmonise_genes(tables: Mapping[str, Counts]) -> dict[str, Counts]:
    """Name the genes of all slides in the same way.

    Where some slides have Ensembl ids and others symbols along with ids, all are named by id, and genes
    without an id are left out. Other tables are returned unchanged.

    Raises
    ------
    PanelError
        If one slide has only symbols, and another only ids.
    """
    named = {name: gene_naming(counts.genes) for name, counts in tables.items()}
    if len(set(named.values())) < 2:
        return dict(tables)
    without_ids = [n for n, counts in tables.items() if named[n] != _BY_IDS and counts.gene_ids is None]
    if without_ids:
        by_id = [name for name in tables if named[name] == _BY_IDS]
        raise PanelError(
            f"slides {some(by_id)} name genes by Ensembl id, and {some(without_ids)} by symbol without"
            " any ids; use slides that name genes in the same way."
        )
    return {name: c if named[name] == _BY_IDS else named_by_id(c) for name, c in tables.items()}


def named_by_id(counts: Counts) -> Counts:
    """The counts with genes named by id: columns of one id are added up, genes without one left out."""
    assert counts.gene_ids is not None
    keep = np.array([bool(gene_id) for gene_id in counts.gene_ids])
    ids = [gene_id for gene_id in counts.gene_ids if gene_id]
    renamed = make_counts(counts.ids, ids, counts.matrix[:, np.flatnonzero(keep)], kind=counts.values)
    merged = renamed.merged_genes + counts.merged_genes
    return replace(
        renamed, merged_genes=merged, gene_ids=renamed.genes, known=counts.known, notes=counts.notes
    )
