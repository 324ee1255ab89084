"""Finished rows of a magnification, kept on disk before their chunk of the store is whole.

Spots are read in an order that suits the slide, so the rows of a chunk are finished one here, one there. Each
batch is appended to a file beside the store; whatever ends the process, no finished batch is lost.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.store import store_errors

_MAGIC = "mmap-journal 1"
_HEADER_BYTES = 128
#: Records read at a time when a journal is opened again.
_SCANNED_AT_A_TIME = 4096


class Journal:
    """An append-only file of rows, each with a check sum; what a killed process left torn is cut off.

    Rows that could not be read are not taken over from an earlier process: a share may be back.

    Parameters
    ----------
    path
        The file; its folder is made.
    recipe_sha256
        Of what the rows are made by: a journal of another recipe is begun anew.
    n
        Rows of the whole magnification.
    width
        Length of an embedding.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """

    def __init__(self, path: Path, recipe_sha256: str, n: int, width: int) -> None:
        self._path = path
        self._record = np.dtype(
            [("row", "<i8"), ("valid", "<i4"), ("embedding", "<f4", (width,)), ("crc", "<u4")]
        )
        self._place = np.full(n, -1, np.int64)
        header = f"{_MAGIC} {recipe_sha256} {n} {width}".encode().ljust(_HEADER_BYTES, b"\n")
        with store_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what is written has left the process, and a kill cannot take it back.
            self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
            if self._file.read(_HEADER_BYTES) == header:
                self._count = self._scan()
            else:
                self._file.seek(0)
                self._write(header)
                self._count = 0
            self._file.truncate(self._end())

    @property
    def done(self) -> NDArray[np.bool_]:
        """(n,) which rows are here."""
        return self._place >= 0

    def append(
        self, rows: NDArray[np.int64], embedding: NDArray[np.float32], valid: NDArray[np.bool_]
    ) -> None:
        """Keep rows (k,) with their embeddings (k, d); valid (k,) is False where a window could not be read.

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
        self._place[rows] = np.arange(self._count, self._count + len(rows))
        self._count += len(rows)

    def read(self, rows: range) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Embeddings (k, d) and validity (k,) of rows; those that are not here are not valid."""
        places = self._place[rows.start : rows.stop]
        records = np.zeros(len(rows), self._record)
        with store_errors(self._path):
            for i in np.flatnonzero(places >= 0):
                self._file.seek(_HEADER_BYTES + int(places[i]) * self._record.itemsize)
                records[i] = np.frombuffer(self._file.read(self._record.itemsize), self._record)[0]
        return np.array(records["embedding"]), records["valid"] > 0

    def clear(self) -> None:
        """Forget all rows."""
        self._place[:] = -1
        self._count = 0
        with store_errors(self._path):
            self._file.truncate(self._end())

    def close(self) -> None:
        """Close the file; what is in it stays."""
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

    def _end(self) -> int:
        return _HEADER_BYTES + self._count * self._record.itemsize

    def _write(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += self._file.write(memoryview(data)[written:]) or 0

    def _scan(self) -> int:
        """Find the rows of a journal that is there; return how many records are whole."""
        count = 0
        size = self._record.itemsize
        while True:
            data = self._file.read(_SCANNED_AT_A_TIME * size)
            records = np.frombuffer(data[: len(data) // size * size], self._record)
            good = (records["crc"] == _check_sums(records)) & (records["row"] < len(self._place))
            whole = len(records) if good.all() else int(np.argmin(good))
            places = np.arange(count, count + whole)
            self._place[records["row"][:whole]] = np.where(records["valid"][:whole] > 0, places, -1)
            count += whole
            if whole < _SCANNED_AT_A_TIME:
                return count


def journal_path(store: Path, *names: str) -> Path:
    """Where the journal of a slide's magnification lies: beside the store, which holds nothing but Zarr."""
    store = store.resolve()
    return store.with_name(store.name + ".journals").joinpath(*names[:-1], names[-1] + os.extsep + "rows")


def _check_sums(records: NDArray[np.void]) -> NDArray[np.uint32]:
    """(k,) CRC-32 of all of a record but its own check sum."""
    return np.array([zlib.crc32(record.tobytes()[:-4]) for record in records], np.uint32)
