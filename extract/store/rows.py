"""One magnification while it is written: rows go to its journal, chunks that are whole to the store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import ImageError
from mmap_st.extract.store.journal import Journal
from mmap_st.extract.store.writer import MagnificationWriter
from mmap_st.extract.windows import mpp_key

_LOG = logging.getLogger(__name__)
_LARGEST_INVALID_SHARE = 0.05


class MagnificationRows:
    """Collects the rows of one magnification, in any order.

    Parameters
    ----------
    mpp
        Micrometres per pixel of the windows, for messages.
    writer
        Of the store; the caller holds the slide's lock.
    journal
        Of the same magnification.
    check_lock
        Raises if the lock is lost; asked before a chunk is written.
    in_bounds, tissue
        (n,) share of every window that lies inside the slide, and that shows tissue.
    skipped
        (n,) windows that are not to be embedded.
    """

    def __init__(
        self,
        mpp: float,
        writer: MagnificationWriter,
        journal: Journal,
        check_lock: Callable[[], None],
        in_bounds: NDArray[np.float32],
        tissue: NDArray[np.float32],
        skipped: NDArray[np.bool_],
    ) -> None:
        self.mpp = mpp
        self._writer, self._journal, self._check_lock = writer, journal, check_lock
        self._in_bounds, self._tissue, self._skipped = in_bounds, tissue, skipped
        self._pending = set(writer.pending())
        self._here = journal.done | skipped
        for index in range(writer.n_chunks):
            if index not in self._pending:
                self._here[_slice(writer.rows(index))] = True
        self.invalid = 0
        for index in sorted(self._pending):
            # Of a process that ended between the last row of a chunk and the chunk.
            self._commit_if_whole(index)
        self.invalid = self._invalid_so_far()

    @property
    def missing(self) -> NDArray[np.int64]:
        """Rows that are still to be embedded."""
        return np.flatnonzero(~self._here)

    @property
    def skipped(self) -> int:
        """Number of windows that are not embedded since they show too little tissue."""
        return int(self._skipped.sum())

    def add(self, rows: NDArray[np.int64], embedding: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Save finished rows (k,), and write the chunks that they complete.

        Raises
        ------
        ImageError
            If too many windows cannot be read: those are tried again by the next run, the others are saved.
        StoreError
            If they cannot be written.
        """
        self._journal.append(rows, embedding, valid)
        self._here[rows] = True
        self.invalid += int((~valid).sum())
        wanted = len(self._here) - self.skipped
        if self.invalid > _LARGEST_INVALID_SHARE * wanted:
            self._writer.reopen()
            raise ImageError(
                f"{self.invalid} of {wanted} windows at {mpp_key(self.mpp)} um/px cannot be read"
                f"{'' if self._here.all() else ', and more may follow'}; copy the image again."
            )
        for index in sorted({int(row) // self._writer.chunk_rows for row in rows}):
            self._commit_if_whole(index)

    def finish(self, record: dict[str, Any]) -> None:
        """Publish; `record` is stored with the rows."""
        # All chunks are in the store; a kill in between leaves nothing but the mark to be set.
        self._journal.delete()
        self._writer.finish(record)

    def close(self) -> None:
        """Close the journal's file."""
        self._journal.close()

    def _commit_if_whole(self, index: int) -> None:
        rows = _slice(self._writer.rows(index))
        if index not in self._pending or not self._here[rows].all():
            return
        embedding, valid = self._journal.read(range(rows.start, rows.stop))
        self._check_lock()
        self._writer.write_chunk(index, embedding, valid, self._in_bounds[rows], self._tissue[rows])
        self._pending.discard(index)

    def _invalid_so_far(self) -> int:
        """Unreadable windows in chunks of an earlier run; those in its journals are tried again."""
        invalid = 0
        for index in range(self._writer.n_chunks):
            rows = self._writer.rows(index)
            part = _slice(rows)
            if index not in self._pending:
                invalid += int((~self._writer.valid(part) & ~self._skipped[part]).sum())
        return invalid


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)
