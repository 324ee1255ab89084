"""Finished rows of a magnification, kept on disk before their chunk of the store is whole.

Spots are read in an order that suits the slide, so the rows of a chunk are finished one here, one there. Each
batch is appended to a file next to the store: whatever ends the process, no finished batch is lost. Where
the machine itself stops, as in a power cut, the batches of the last second may be. Chunks that are whole go
to the store.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
import zlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import ImageError, StoreError, counted, printable
from mmap_st.extract.store.reader import store_errors
from mmap_st.extract.store.storage import check_plain, drafts_in
from mmap_st.extract.store.writing.writer import MagnificationWriter
from mmap_st.extract.windows import mpp_key

_LOG = logging.getLogger(__name__)
_MAGIC = "mmap-journal 1"
_HEADER_BYTES = 128
#: Records read at a time when a journal is opened again.
_SCANNED_AT_A_TIME = 4096
_ATTEMPTS = 20
#: Records between two that are wanted, up to which they are read along.
_LARGEST_GAP = 16
#: zlib gives up Python's lock for longer pieces than this.
_SUMMED_AT_A_TIME = 5 << 10
#: Rows written in the last seconds, this many, may be lost where the power fails.
_SYNC_S = 1.0


class Journal:
    """An append-only file of rows, each with a check sum; what a killed process left torn is cut off.

    Rows that could not be read are not taken over from an earlier process: a share may be back.
    On reading, the number and check sum of each row are verified once more.

    Parameters
    ----------
    path
        The file; its folder is made.
    recipe_sha256
        Of what the rows are made by: a journal of another recipe is discarded.
    n
        Rows of the whole magnification.
    width
        Length of an embedding.
    clock
        Seconds, from any start.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        recipe_sha256: str,
        n: int,
        width: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._clock = path, clock
        self._record = _record_type(width)
        self._place = np.full(n, -1, np.int64)
        header = f"{_MAGIC} {recipe_sha256} {n} {width}".encode().ljust(_HEADER_BYTES, b"\n")
        self._count = 0
        with store_errors(path):
            # Always a new file: a writer that lost its lock and does not know yet writes to the old one.
            draft = path.with_suffix(f".{uuid.uuid4().hex}.partial")
            self._file = _open_new(draft)
            self._write(header)
            if path.exists():
                with path.open("rb") as before:
                    if before.read(_HEADER_BYTES) == header:
                        self._take_over(before)
            for leftover in drafts_in(path.parent):
                if leftover.name.startswith(f"{path.stem}.") and leftover != draft:
                    leftover.unlink(missing_ok=True)
            # What was safe on disk before must be so again before the old file goes.
            self._sync()
            draft.replace(path)

    @property
    def done(self) -> NDArray[np.bool_]:
        """(n,) which rows are here."""
        return self._place >= 0

    def append(
        self, rows: NDArray[np.int64], embedding: NDArray[np.float32], valid: NDArray[np.bool_]
    ) -> None:
        """Append rows (k,) with their embeddings (k, d); valid (k,) is False for unreadable windows.

        Raises
        ------
        StoreError
            If they cannot be written; then none of them counts.
        """
        records = np.zeros(len(rows), self._record)
        records["row"], records["valid"], records["embedding"] = rows, valid, embedding
        records["crc"] = _check_sums(records)
        with store_errors(self._path):
            try:
                self._file.seek(self._end())
                self._write(records.tobytes())
            except OSError:
                self._file.truncate(self._end())
                raise
            self._synced = False
            if self._clock() - self._synced_at >= _SYNC_S:
                self._sync()
        self._place[rows] = np.arange(self._count, self._count + len(rows))
        self._count += len(rows)

    def read(self, rows: range) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Embeddings (k, d) and validity (k,) of rows; those that are not here are not valid."""
        places = self._place[rows.start : rows.stop]
        records = np.zeros(len(rows), self._record)
        here = np.flatnonzero(places >= 0)
        here = here[np.argsort(places[here])]
        with store_errors(self._path):
            # Neighbours in the file are read at once: each call to the system gives up Python's lock, which
            # threads that read windows keep for a while.
            gaps = np.flatnonzero(np.diff(places[here]) > _LARGEST_GAP) + 1
            for part in np.split(here, gaps) if len(here) else ():
                first, last = int(places[part[0]]), int(places[part[-1]])
                self._file.seek(_HEADER_BYTES + first * self._record.itemsize)
                size = (last - first + 1) * self._record.itemsize
                data = self._file.read(size).ljust(size, b"\0")
                records[part] = np.frombuffer(data, self._record)[places[part] - first]
        found = records[here]
        if (found["row"] != rows.start + here).any() or (found["crc"] != _check_sums(found)).any():
            raise StoreError(f"{self._path} was changed by another program; run the same command again.")
        return np.array(records["embedding"]), records["valid"] > 0

    def clear(self) -> None:
        """Forget all rows."""
        self._place[:] = -1
        self._count = 0
        with store_errors(self._path):
            self._file.truncate(self._end())

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if not self._file.closed and not self._synced:
            try:
                self._sync()
            except OSError as error:  # the rows are written, and the slide's own failure is what counts
                _LOG.warning("%s cannot be synced (%s)", printable(str(self._path)), error)
        self._file.close()

    def delete(self) -> None:
        """Remove the file, and the folders that hold nothing else."""
        self._file.close()
        with store_errors(self._path):
            self._path.unlink(missing_ok=True)
            for folder in (self._path.parent, self._path.parent.parent, self._path.parent.parent.parent):
                try:
                    folder.rmdir()
                except OSError:
                    break  # it holds others' journals

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced, self._synced_at = True, self._clock()

    def _end(self) -> int:
        return _HEADER_BYTES + self._count * self._record.itemsize

    def _write(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += self._file.write(memoryview(data)[written:]) or 0

    def _take_over(self, before: BinaryIO) -> None:
        """Copy the whole records of readable rows, up to the first that is torn."""
        size = self._record.itemsize
        while True:
            data = before.read(_SCANNED_AT_A_TIME * size)
            records = np.frombuffer(data[: len(data) // size * size], self._record)
            good = (records["crc"] == _check_sums(records)) & (records["row"] < len(self._place))
            whole = len(records) if good.all() else int(np.argmin(good))
            records = records[:whole]
            kept = records[records["valid"] > 0]
            self._write(kept.tobytes())
            self._place[kept["row"]] = np.arange(self._count, self._count + len(kept))
            self._count += len(kept)
            if whole < _SCANNED_AT_A_TIME:
                return


def _open_new(path: Path) -> FileIO:
    """Open a file for reading and writing; another slide that ends may remove empty folders meanwhile."""
    for attempt in range(_ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what is written has left the process, and a kill cannot take it back.
            return path.open("w+b", buffering=0)
        except (FileNotFoundError, FileExistsError):
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


def rows_in_journal(path: Path) -> int:
    """How many rows a journal holds, by its size alone; 0 where there is none."""
    try:
        with path.open("rb") as file:
            words = file.read(_HEADER_BYTES).decode("ascii", "replace").split()
            size = os.fstat(file.fileno()).st_size
        return max(0, size - _HEADER_BYTES) // _record_type(int(words[-1])).itemsize
    except (OSError, ValueError, IndexError):
        return 0


def _record_type(width: int) -> np.dtype[np.void]:
    """What a journal has of each row."""
    return np.dtype([("row", "<i8"), ("valid", "<i4"), ("embedding", "<f4", (width,)), ("crc", "<u4")])


def journals_folder(path: Path) -> Path:
    """Where the journals of a store are: next to it, which holds nothing but Zarr."""
    path = path.resolve()
    return path.with_name(path.name + ".journals")


def journal_path(store: Path, *names: str) -> Path:
    """Path of a magnification's journal: next to the store, which holds nothing but Zarr.

    Raises
    ------
    StoreError
        If a part of it is a link, or neither a file nor a folder.
    """
    root, parts = journals_folder(store), (*names[:-1], names[-1] + os.extsep + "rows")
    check_plain(root, "/".join(parts))
    return root.joinpath(*parts)


def _check_sums(records: NDArray[np.void]) -> NDArray[np.uint32]:
    """(k,) CRC-32 of all of a record but its own check sum."""
    size = records.dtype.itemsize
    data, sums = memoryview(records.tobytes()), np.empty(len(records), np.uint32)
    for number in range(len(records)):
        end, total = (number + 1) * size - 4, 0
        for start in range(number * size, end, _SUMMED_AT_A_TIME):
            total = zlib.crc32(data[start : min(start + _SUMMED_AT_A_TIME, end)], total)
        sums[number] = total
    return sums


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
                f"{self.invalid} of {counted(wanted, 'window')} at {mpp_key(self.mpp)} um/px cannot be"
                f" read{'' if self._here.all() else ', and more may follow'}; copy the image again."
            )
        for index in np.unique(rows // self._writer.chunk_rows).tolist():
            self._commit_if_whole(index)

    def finish(self, record: dict[str, object]) -> None:
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
