"""Reading a packed head, in which nothing is trusted.

Only files of known names and sizes are read, as they were stored, into a private folder, and only if they are
what the manifest says.
"""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mmap_st.errors import HeadError, WriteError, counted, first_line
from mmap_st.files import ZIP_ERRORS, cannot_be_written
from mmap_st.head.runs import GENES, HEAD_JSON, METRICS, WEIGHTS
from mmap_st.head.scoring import from_json, read_json
from mmap_st.head.sharing.card_files import CARD_JSON, README

MANIFEST = "manifest.json"
PACK_FORMAT, PACK_VERSION = "mmap-head", 1
_MIB = 1 << 20
#: What an archive may hold, and how many bytes each file may have; None: as many as the archive.
MOST_BYTES: Mapping[str, int | None] = {
    MANIFEST: _MIB,
    README: 4 * _MIB,
    CARD_JSON: 64 * _MIB,
    GENES: 256 * _MIB,
    HEAD_JSON: 64 * _MIB,
    WEIGHTS: None,
    METRICS: 64 * _MIB,
}
_MAY_BE_MISSING = (GENES,)
# The record that ends an archive, without a comment, as all that we write have it.
_END, _END_BYTES, _MOST_DIRECTORY = b"PK\x05\x06", 22, 64 << 10


@dataclass(frozen=True)
class PackedFile:
    """What the manifest says of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json: what an archive is, and what each of its files must be."""

    format: str = PACK_FORMAT
    format_version: int = PACK_VERSION
    package_version: str = ""
    files: Mapping[str, PackedFile] = field(default_factory=dict)


def copy_bytes(source: IO[bytes], target: IO[bytes], most: int | None = None) -> PackedFile:
    """Copy at most `most` bytes; says what was copied."""
    digest, count = hashlib.sha256(), 0
    while block := source.read(_MIB):
        count += len(block)
        if most is not None and count > most:
            break
        digest.update(block)
        target.write(block)
    return PackedFile(digest.hexdigest(), count)


def is_packed(path: Path) -> bool:
    """Whether a file is a zip archive with our manifest; it may still be damaged."""
    try:
        with path.open("rb") as file:
            _check_end(file)
            with zipfile.ZipFile(file) as archive:
                return {MANIFEST, WEIGHTS} <= set(archive.namelist())
    except (OSError, *ZIP_ERRORS):
        return False


def unpack(path: Path, folder: Path) -> None:
    """Write the files of a packed head into an empty folder, by their known names alone.

    Raises
    ------
    HeadError
        If it is not as it was packed.
    """
    try:
        with path.open("rb") as file:
            _check_end(file)
            with zipfile.ZipFile(file) as archive:
                _unpack_checked(archive, path, folder)
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror or first_line(error)})") from error
    except ZIP_ERRORS as error:
        raise _refused(path, f"is damaged, or not a packed head ({first_line(error)})") from error


def _refused(path: Path, what: str) -> HeadError:
    return HeadError(f"{path} {what}; get it again, or make it again with `mmap pack RUN FILE`.")


def _check_end(file: IO[bytes]) -> None:
    """Refuse an archive by its last bytes, before its directory is read: it may list millions of files."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - _END_BYTES, 0))
    end = file.read()
    file.seek(0)
    if not end.startswith(_END) or len(end) != _END_BYTES:
        raise ValueError("it does not end as such a file does")
    count, directory = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if count > len(MOST_BYTES) or directory > _MOST_DIRECTORY:
        raise ValueError(f"it lists {counted(count, 'file')}")


def _unpack_checked(archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
    entries = archive.infolist()
    for entry in entries:
        if wrong := _what_is_wrong(entry):
            raise _refused(path, f"holds {entry.filename[:80]!r}, which {wrong}: it is not as it was packed")
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise _refused(path, "holds two files of one name: it is not as it was packed")
    if not entries or min(entry.header_offset for entry in entries):
        raise _refused(path, "does not begin as a packed head does")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _refused(path, "holds files that are larger than itself: it is not as it was packed")
    by_name = {entry.filename: entry for entry in entries}
    if MANIFEST not in by_name:
        raise _refused(path, f"is not a packed head: {MANIFEST} is missing")
    _extract(archive, by_name[MANIFEST], folder)
    files = _manifest(path, folder)
    missing = set(MOST_BYTES) - {MANIFEST, *_MAY_BE_MISSING} - files.keys()
    if missing or files.keys() != by_name.keys() - {MANIFEST}:
        different = sorted(missing | (files.keys() ^ (by_name.keys() - {MANIFEST})))
        raise _refused(path, f"does not hold what its manifest names ({', '.join(different)[:200]})")
    for name, expected in files.items():
        if _extract(archive, by_name[name], folder) != expected:
            raise _refused(path, f"is damaged: {name} is not the one that was packed")


def _what_is_wrong(entry: zipfile.ZipInfo) -> str | None:
    """Why a file of an archive cannot be one that was packed."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.filename not in MOST_BYTES or entry.orig_filename != entry.filename:
        return "is no file of a packed head"
    if entry.is_dir() or kind not in (0, stat.S_IFREG):
        return "is a link or a folder"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return "is compressed"
    most = MOST_BYTES[entry.filename]
    if most is not None and entry.file_size > most:
        return f"has {entry.file_size:,} bytes"
    return None


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> PackedFile:
    """Copy one file of a known name into the private folder; says what it is."""
    with archive.open(entry) as source:
        try:
            with (folder / entry.filename).open("xb") as target:
                return copy_bytes(source, target, entry.file_size)
        except OSError as error:
            raise no_room(error) from error


def no_room(error: OSError) -> WriteError:
    """What to say of a temporary folder that cannot be written."""
    return WriteError(f"the temporary folder {cannot_be_written(error, 'set TMPDIR to another folder')}")


def _manifest(path: Path, folder: Path) -> Mapping[str, PackedFile]:
    try:
        content = read_json(folder / MANIFEST)
    except HeadError as error:
        raise _refused(path, f"is damaged: {MANIFEST} is not understood") from error
    if content.get("format") != PACK_FORMAT:
        raise _refused(path, f"is not a packed head: {MANIFEST} is of another format")
    if content.get("format_version") != PACK_VERSION:
        version = str(content.get("format_version"))[:20]
        raise HeadError(
            f"{path} is packed in format version {version}; this program reads version {PACK_VERSION}:"
            " install a newer one."
        )
    try:
        return from_json(Manifest, content).files
    except TypeError as error:
        raise _refused(path, f"is damaged: {MANIFEST} is not understood ({first_line(error)})") from error
