"""Targets: what a head is trained to predict, sparse, with what is undefined told apart from what is 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

#: Entries of a dense block of columns, unless told otherwise: 32 MiB as float64.
BLOCK_ENTRIES = 1 << 22

Index = slice | NDArray[np.int64] | NDArray[np.bool_]
ALL = slice(None)


@dataclass(frozen=True)
class Targets:
    """Targets of one slide on a panel of G genes.

    Attributes
    ----------
    values
        (n, G) CSR, float32; what is not stored is 0, or undefined. Nothing is stored where undefined.
    defined
        (n,) spots that have a target: under most normalisations, those whose library is not empty.
    present
        (G,) genes that the slide has.
    """

    values: sparse.csr_array
    defined: NDArray[np.bool_]
    present: NDArray[np.bool_]

    @classmethod
    def of_dense(cls, values: NDArray[np.float32]) -> Targets:
        """From (n, G) values in which whole rows and whole columns may be NaN.

        Raises
        ------
        ValueError
            If a single entry is NaN: a gene is measured on all spots of a slide or on none.
        """
        finite = np.isfinite(values)
        defined, present = (np.asarray(finite.any(axis=axis)) for axis in (1, 0))
        if not (finite == np.outer(defined, present)).all():
            raise ValueError("targets may lack whole spots and whole genes, not single entries")
        return cls(sparse.csr_array(np.where(finite, values, 0), dtype=np.float32), defined, present)

    def __len__(self) -> int:
        return len(self.defined)

    @property
    def genes(self) -> int:
        """Length G of the panel."""
        return len(self.present)

    @property
    def measured(self) -> NDArray[np.bool_]:
        """(n,) spots with at least one defined target."""
        return self.defined & self.present.any()

    def rows(self, keep: Index) -> Targets:
        """The targets of these spots."""
        return replace(self, values=sparse.csr_array(self.values[_numbers(keep)]), defined=self.defined[keep])

    def dense(self, rows: Index = ALL, columns: Index = ALL) -> NDArray[np.float32]:
        """(k, g) float32 block, NaN where undefined."""
        part = self.values[_numbers(rows)]
        if not _is_all(columns):
            part = part[:, _numbers(columns)]
        values: NDArray[np.float32] = part.toarray()
        values[~self.defined[rows]] = np.nan
        values[:, ~self.present[columns]] = np.nan
        return values

    def column_blocks(self, width: int) -> Iterator[NDArray[np.float32]]:
        """(n, width) float32 blocks of all spots, from the first gene on; NaN where undefined."""
        by_column = sparse.csc_array(self.values)
        for start in range(0, self.genes, width):
            values = by_column[:, start : start + width].toarray()
            values[~self.defined] = np.nan
            values[:, ~self.present[start : start + width]] = np.nan
            yield values

    def total(self, use: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(G,) float64 sum over the spots `use` that are defined."""
        weight = (use & self.defined).astype(np.float64)
        total: NDArray[np.float64] = self.values.T.astype(np.float64) @ weight
        return total


def pooled_moments(parts: Sequence[Targets]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(G,) mean and variance of each gene over the defined spots of all parts; 0 for a gene without any."""
    count = sum(part.present * float(part.defined.sum()) for part in parts)
    total = sum(part.total(part.defined) for part in parts)
    mean = np.asarray(total / np.maximum(count, 1))
    squares = np.zeros(len(mean))
    for part in parts:
        values = part.values.tocoo()
        stored = np.bincount(values.col, minlength=len(mean))
        apart = (values.data - mean[values.col]) ** 2
        squares += np.bincount(values.col, apart, minlength=len(mean))
        squares += (part.present * float(part.defined.sum()) - stored) * mean**2
    return mean, squares / np.maximum(count, 1)


def _is_all(index: Index) -> bool:
    return isinstance(index, slice) and index == ALL


def _numbers(index: Index) -> slice | NDArray[np.int64]:
    if isinstance(index, slice):
        return index
    return np.flatnonzero(index) if index.dtype == np.bool_ else np.asarray(index, np.int64)
