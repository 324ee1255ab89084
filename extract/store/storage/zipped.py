"""A store that is packed into one file: a zip archive of its files as they are, as Zarr's ZipStore has them.

It is read in place. Zarr's own class reads one file at a time behind a lock; here each reader opens the
archive for itself. It may come from anybody: one that lists what no store has, or compresses it, is refused.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Never

from zarr.abc.store import (
    ByteRequest,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from mmap_st.errors import DamagedSlideError, StoreError, counted, first_line
from mmap_st.extract.store.storage.read_only import ReadOnlyStore, bounds_of
from mmap_st.files import ZIP_ERRORS, is_archive

ROOT = "zarr.json"
#: Files of the largest archive that is read, or written: their names are kept in memory.
MOST_FILES = 1_000_000
_MOST_DIRECTORY = 256 << 20
#: What stands before each file, up to its name; and what ends an archive, without a comment.
_HEADER, _HEADER_MARK = struct.Struct("<4s5H3I2H"), b"PK\x03\x04"
_END_BYTES, _END_MARK = 22, b"PK\x05\x06"
_LOCATOR_BYTES, _LOCATOR_MARK = 20, b"PK\x06\x07"
_END64_MARK = b"PK\x06\x06"
_IN_LARGE_END = 0xFFFFFFFF
_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One file of an archive: where its header is, how many bytes it has, and their check sum."""

    header: int
    size: int
    crc: int


@dataclass(frozen=True)
class _Archive:
    """What an archive lists, and which file it was: one that is replaced meanwhile is not read on."""

    stamp: _Stamp
    files: dict[str, _Entry]
    #: Names of files and folders in each folder; "" is the whole archive.
    members: dict[str, list[str]]
    #: Where a file's bytes begin, for those that were read.
    starts: dict[str, int] = field(default_factory=dict)


def is_packed_store(path: Path) -> bool:
    """Whether a file is a zip archive that holds a store; it may still be damaged."""
    if not is_archive(path):
        return False
    try:
        with path.open("rb") as file:
            # As they are packed, so that a part of one is known for what it is too.
            head = file.read(_HEADER.size + len(ROOT))
            if head[_HEADER.size :] == ROOT.encode() and _HEADER.unpack(head[: _HEADER.size])[9] == len(ROOT):
                return True
            return ROOT in _names_in(file)
    except (OSError, *ZIP_ERRORS):
        return False


def is_zipped_folder(path: Path) -> bool:
    """Whether a file is a zip archive of a folder with a store, as programs that zip folders make it."""
    if not is_archive(path):
        return False
    try:
        with path.open("rb") as file:
            return any(name.endswith(f"/{ROOT}") for name in _names_in(file)) and not is_packed_store(path)
    except (OSError, *ZIP_ERRORS):
        return False


def _names_in(file: BinaryIO) -> list[str]:
    _check_end(file)
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def packed_error(path: Path) -> StoreError:
    """The error for what would write to a packed store."""
    return StoreError(
        f"{path} is a packed store, which cannot be written to; unpack it with `mmap merge {path} --out"
        " FOLDER`, and name that folder."
    )


class StoreZip(ReadOnlyStore):
    """Reads what is in a packed store, by any number of threads and processes; see `StoreFolder`.

    Attributes
    ----------
    root
        The file.
    checked
        Arrays whose digests were compared since it was opened.

    Raises
    ------
    StoreError
        If the file is no archive of a store, or lists what no store has.
    """

    #: How the sentence on something damaged ends.
    advice = "; get the file again, or pack its store again with `mmap pack STORE FILE`."

    def __init__(self, root: Path) -> None:
        super().__init__(read_only=True)
        self.root = root
        self.checked: set[str] = set()
        self._archive = _archive_at(root, _stamp(root.stat()))

    def __reduce__(self) -> tuple[type[StoreZip], tuple[Path]]:
        return type(self), (self.root,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreZip) and self.root == other.root

    def __str__(self) -> str:
        return f"zip://{self.root.as_posix()}"

    def check(self, key: str) -> None:
        """Nothing in an archive leads out of it: links were refused when it was opened."""

    def bytes_of(self, key: str, last: int | None = None) -> bytes | None:
        """A file, or its last bytes; None where there is none.

        Raises
        ------
        StoreError
            If its bytes are not those that were packed, or the archive was replaced.
        OSError
            If it cannot be read.
        """
        return self._read(key, None if last is None else SuffixByteRequest(last))

    def folders_in(self, key: str) -> list[str]:
        """Names of the folders in a folder."""
        inside = self._archive.members.get(key, ())
        return [name for name in inside if f"{key}/{name}".lstrip("/") in self._archive.members]

    def _read(self, key: str, part: ByteRequest | None) -> bytes | None:
        entry = self._archive.files.get(key)
        if entry is None:
            return None
        start, stop = bounds_of(part, entry.size)
        with self.root.open("rb", buffering=0) as file:
            if _stamp(os.fstat(file.fileno())) != self._archive.stamp:
                raise StoreError(f"{self.root} was replaced while this ran; run the same command again.")
            begin = self._archive.starts.get(key)
            if begin is None:
                begin = self._archive.starts[key] = self._start(file, key, entry)
            file.seek(begin + start)
            data = _all_of(file, stop - start)
        whole = stop - start == entry.size
        if len(data) != stop - start or (whole and zlib.crc32(data) != entry.crc):
            raise self._damaged(key)
        return data

    def _start(self, file: BinaryIO, key: str, entry: _Entry) -> int:
        """Where a file begins: behind a header of its own, which must be of this file too."""
        file.seek(entry.header)
        head = _all_of(file, _HEADER.size)
        if len(head) == _HEADER.size:
            mark, _, flags, method, *_, name_bytes, more_bytes = _HEADER.unpack(head)
            name = _all_of(file, name_bytes)
            if (mark, flags & 1, method) == (_HEADER_MARK, 0, zipfile.ZIP_STORED) and name == key.encode():
                return entry.header + _HEADER.size + int(name_bytes) + int(more_bytes)
        raise self._damaged(key)

    def _damaged(self, key: str) -> DamagedSlideError:
        return DamagedSlideError(
            f"{self.root}/{key} is damaged (its bytes are not those that were packed)", self.advice
        )

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        data = self._read(key, byte_range)
        return None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def exists(self, key: str) -> bool:
        return key in self._archive.files

    def refusal(self) -> StoreError:
        return packed_error(self.root)

    async def list(self) -> AsyncIterator[str]:
        for key in self._archive.files:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._archive.files:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in self._archive.members.get(prefix.strip("/"), ()):
            yield name


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _all_of(file: BinaryIO, size: int) -> bytes:
    """Bytes of a file from here; fewer only where it ends: one call to the system gives at most 2 GiB."""
    found = file.read(size)
    while len(found) < size and (more := file.read(size - len(found))):
        found += more
    return found


@lru_cache(maxsize=4)
def _archive_at(path: Path, stamp: _Stamp) -> _Archive:
    """What an archive lists, read once while the file is the same: some open it for each slide."""
    try:
        with path.open("rb") as file:
            _check_end(file)
            with zipfile.ZipFile(file) as archive:
                entries, end = archive.infolist(), archive.start_dir
    except ZIP_ERRORS as error:
        _refuse(path, f"is damaged, or not a zip archive ({first_line(error)})")
    # Some programs list folders too.
    entries = [entry for entry in entries if not (entry.is_dir() and entry.file_size == 0)]
    files: dict[str, _Entry] = {}
    for entry in entries:
        if wrong := _what_is_wrong(entry):
            _refuse(path, f"holds {entry.filename[:80]!r}, which {wrong}")
        if entry.filename in files:
            _refuse(path, f"holds {entry.filename[:80]!r} twice")
        files[entry.filename] = _Entry(entry.header_offset, entry.file_size, entry.CRC)
    if ROOT not in files:
        inner = next((name for name in files if name.endswith(f"/{ROOT}") and name.count("/") == 1), None)
        where = f"; the folder {inner.rpartition('/')[0][:80]} in it may be one" if inner else ""
        raise StoreError(
            f"{path} is a zip archive, and not a packed store{where}; pack one with `mmap pack STORE FILE`."
        )
    _check_order(path, files, end)
    members: dict[str, dict[str, None]] = {"": {}}
    for name in files:
        for folder, inner in _steps(name):
            if folder in files:
                _refuse(path, f"holds {folder[:80]!r} both as a file and as a folder")
            members.setdefault(folder, {})[inner] = None
    return _Archive(stamp, files, {folder: sorted(inner) for folder, inner in members.items()})


def _steps(name: str) -> Iterator[tuple[str, str]]:
    """Every folder on the way to a file, with what in it leads on."""
    folder = ""
    for part in name.split("/"):
        yield folder, part
        folder = f"{folder}/{part}".lstrip("/")


def _check_order(path: Path, files: dict[str, _Entry], end: int) -> None:
    """Refuse files that share bytes: a small archive could list many large ones."""
    last = "", 0
    for name, entry in sorted(files.items(), key=lambda item: item[1].header):
        if entry.header < last[1]:
            _refuse(path, f"holds {name[:80]!r} within the bytes of {last[0][:80]!r}")
        last = name, entry.header + _HEADER.size + len(name.encode()) + entry.size
    if last[1] > end:
        _refuse(path, f"does not hold all bytes of {last[0][:80]!r}")


def _what_is_wrong(entry: zipfile.ZipInfo) -> str | None:
    """Why a file of an archive cannot be one of a packed store."""
    parts = entry.filename.split("/")
    if entry.orig_filename != entry.filename or {"", ".", ".."} & set(parts) or "\\" in entry.filename:
        return "leads out of it"
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or a device"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return "is compressed"
    return None


def _check_end(file: BinaryIO) -> None:
    """Refuse an archive by its last bytes, before its directory is read: it may list any number of files."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _END_BYTES - _LOCATOR_BYTES, 0))
    tail = file.read()
    end, locator = tail[-_END_BYTES:], tail[:-_END_BYTES]
    if not end.startswith(_END_MARK):
        raise ValueError("it does not end as such a file does")
    directory = int.from_bytes(end[12:16], "little")
    if locator.startswith(_LOCATOR_MARK):
        file.seek(int.from_bytes(locator[8:16], "little"))
        large = file.read(56)
        if not large.startswith(_END64_MARK):
            raise ValueError("it does not end as such a file does")
        directory = int.from_bytes(large[40:48], "little")
    elif directory == _IN_LARGE_END:
        raise ValueError("it does not end as such a file does")
    file.seek(0)
    if directory > _MOST_DIRECTORY:
        raise ValueError(f"it lists more than {counted(MOST_FILES, 'file')}")


def _refuse(path: Path, what: str) -> Never:
    raise StoreError(f"{path} {what}; get it again, or make it again with `mmap pack STORE FILE`.")
