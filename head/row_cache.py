"""Embeddings of the slides of a fit, read from the store once where memory allows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.store import RowIndex, StoredRows

#: Bytes of embeddings that a fit holds, at most: some 80,000 spots at 3 magnifications of 1,024 numbers.
MAX_BYTES = 1 << 30

Rows = NDArray[np.int64]


class RowCache:
    """Holds what slides read, the first of them first, until its bytes are used up.

    Parameters
    ----------
    max_bytes
        Largest size of all arrays that it holds.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._left = max_bytes

    def of(self, stored: StoredRows) -> CachedRows:
        """Return rows of a store that are held once they are read; nothing is read yet."""
        count = stored.shape[1]
        return CachedRows(_Slide(stored, self, [None] * count), tuple(range(count)), None)

    def reserve(self, size: int) -> bool:
        """Whether `size` more bytes may be held; they are then counted."""
        if size > self._left:
            return False
        self._left -= size
        return True


@dataclass
class _Slide:
    """All rows of one slide, by magnification: (n, ...) float32 where they are held, else None."""

    stored: StoredRows
    cache: RowCache
    held: list[NDArray[np.float32] | None]
    tried: set[int] = field(default_factory=set)

    def at(self, magnification: int) -> NDArray[np.float32] | None:
        """Every row at one magnification, read now if it is not held and may be; None: there is no room."""
        if magnification not in self.tried:
            self.tried.add(magnification)
            n, _, *inner = self.stored.shape
            if self.cache.reserve(4 * n * int(np.prod(inner))):
                self.held[magnification] = self.stored.at(magnification)[:][:, 0]
        return self.held[magnification]


@dataclass(frozen=True)
class CachedRows:
    """Rows of a slide that reads as `StoredRows` do; what has no room in the cache is read anew each time.

    Attributes
    ----------
    slide
        All of its rows, shared by its subsets.
    magnifications
        Which of them, by number.
    rows
        (n,) int64, which rows; None: all.
    """

    slide: _Slide
    magnifications: tuple[int, ...]
    rows: Rows | None

    @property
    def shape(self) -> tuple[int, ...]:
        """n, M and the shape of what one magnification has of a spot."""
        n, _, *inner = self.slide.stored.shape
        return n if self.rows is None else len(self.rows), len(self.magnifications), *inner

    def __getitem__(self, rows: RowIndex, /) -> NDArray[np.float32]:
        every = np.arange(self.slide.stored.shape[0]) if self.rows is None else self.rows
        wanted = every[rows]
        found = np.empty((len(wanted), *self.shape[1:]), np.float32)
        for number, magnification in enumerate(self.magnifications):
            held = self.slide.at(magnification)
            if held is None:
                found[:, number] = self.slide.stored.at(magnification)[wanted][:, 0]
            else:
                np.take(held, wanted, axis=0, out=found[:, number])
        return found

    def subset(self, rows: Rows) -> CachedRows:
        """Return these rows only; nothing is read."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def at(self, magnification: int) -> CachedRows:
        """Return one magnification only, by its number from 0; nothing is read."""
        return replace(self, magnifications=(self.magnifications[magnification],))
