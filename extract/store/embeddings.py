"""Embeddings and tokens of one slide at several magnifications, read in blocks: none need fit in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.store.magnification import Magnification

#: Size of a block of rows as float32. Slides of some thousand spots are one block.
BLOCK_BYTES = 128 << 20

Rows = NDArray[np.int64]
#: What rows can be chosen by: a slice, indices in any order, or a mask.
RowIndex = slice | Rows | NDArray[np.bool_]


class Embeddings(Protocol):
    """(n, M, d) float32 rows, finest magnification first: an array, or what reads as one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """n, M and d."""
        ...

    def __getitem__(self, rows: RowIndex, /) -> NDArray[np.float32]:
        """(k, M, d) float32; rows of windows that could not be read are NaN."""
        ...


class StoredRows(ABC):
    """Rows that stay in a store and are read on demand.

    Parameters
    ----------
    magnifications
        Finest first.
    rows
        (n,) which rows of the store, in any order; None: all.
    """

    def __init__(self, magnifications: Sequence[Magnification], rows: Rows | None = None) -> None:
        self._magnifications = tuple(magnifications)
        total = len(magnifications[0].valid()) if rows is None else 0
        self._rows = np.arange(total) if rows is None else rows

    @property
    def shape(self) -> tuple[int, ...]:
        """n, M and the shape of what one magnification has of a spot."""
        return len(self._rows), len(self._magnifications), *self._shape_of(self._magnifications[0])

    def __getitem__(self, rows: RowIndex, /) -> NDArray[np.float32]:
        """(k, M, ...) float32, indexed as NumPy indexes an array: any order, repeated, negative, a mask."""
        wanted = self._rows[rows]
        _, _, *inner = shape = self.shape
        found = np.empty((len(wanted), *shape[1:]), np.float32)
        # Read in ascending order, so that each chunk of the store is read once however rows are scattered.
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]
        for run in _runs(ascending, _rows_of_a_block(shape)):
            part = ascending[run]
            first, last = int(part[0]), int(part[-1]) + 1
            for m, magnification in enumerate(self._magnifications):
                read = self._read(magnification, slice(first, last)).reshape(-1, *inner)
                found[order[run], m] = read[part - first]
        return found

    def subset(self, rows: Rows) -> Self:
        """The same with these rows only; nothing is read."""
        return type(self)(self._magnifications, self._rows[rows])

    def at(self, magnification: int) -> Self:
        """The same at one magnification only, by its number from 0 on; nothing is read."""
        return type(self)([self._magnifications[magnification]], self._rows)

    @staticmethod
    @abstractmethod
    def _shape_of(magnification: Magnification) -> tuple[int, ...]:
        """Of what it has of a spot."""

    @staticmethod
    @abstractmethod
    def _read(magnification: Magnification, rows: slice) -> NDArray[np.float32]:
        """What it has of consecutive rows of the store."""


class StoredEmbeddings(StoredRows):
    """Embeddings (n, M, d) in a store."""

    @staticmethod
    def _shape_of(magnification: Magnification) -> tuple[int, ...]:
        return (magnification.width,)

    @staticmethod
    def _read(magnification: Magnification, rows: slice) -> NDArray[np.float32]:
        return magnification.embedding_rows(rows)


class StoredTokens(StoredRows):
    """Grids of tokens (n, M, g * g, t) in a store, each row by row; all magnifications have some."""

    @staticmethod
    def _shape_of(magnification: Magnification) -> tuple[int, ...]:
        return magnification.tokens**2, magnification.token_width

    @staticmethod
    def _read(magnification: Magnification, rows: slice) -> NDArray[np.float32]:
        return magnification.token_rows(rows)


def row_blocks(embedding: Embeddings, rows: Rows, size: int = BLOCK_BYTES) -> Iterator[tuple[slice, Rows]]:
    """Cut `rows` into blocks of about `size` bytes: where each lies among them, and its rows."""
    step = _rows_of_a_block(embedding.shape, size)
    for start in range(0, len(rows), step):
        yield slice(start, start + step), rows[start : start + step]


def _rows_of_a_block(shape: tuple[int, ...], size: int = BLOCK_BYTES) -> int:
    return max(1, size // (4 * int(np.prod(shape[1:]))))


def _runs(wanted: Rows, most: int) -> Iterator[slice]:
    """Cut ascending rows so that no part spans more than `most` rows of the store."""
    start = 0
    while start < len(wanted):
        stop = int(np.searchsorted(wanted, wanted[start] + most))
        yield slice(start, stop)
        start = stop
