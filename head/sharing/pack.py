"""A trained head as one file: a zip archive of a run without its predictions, each file with its sha256.

Nothing that an archive names is trusted: only files of known names and sizes are read, as they were stored,
into a private folder, and only if they are what the manifest says. Files are not compressed, so that the same
run gives the same bytes everywhere, and none can become larger than the archive.
"""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import mmap_st
from mmap_st.errors import HeadError, RequestError, WriteError, counted, first_line, printable
from mmap_st.files import (
    cannot_be_written,
    check_file_out,
    refuse_special,
    replacing,
    sha256_of_file,
    writing,
)
from mmap_st.head.registry import HEADS
from mmap_st.head.runs import (
    GENES,
    HEAD_JSON,
    METRICS,
    WEIGHTS,
    read_card,
    read_head,
    read_metrics,
    restore_run,
)
from mmap_st.head.scoring import from_json, json_text, read_json
from mmap_st.head.sharing.card_files import CARD_JSON, README
from mmap_st.head.sharing.composing import card_files, card_of_run

MANIFEST = "manifest.json"
PACK_FORMAT, PACK_VERSION = "mmap-head", 1
_MIB = 1 << 20
#: What an archive may hold, and how many bytes each file may have; None: as many as the archive.
_MOST_BYTES: Mapping[str, int | None] = {
    MANIFEST: _MIB,
    README: 4 * _MIB,
    CARD_JSON: 64 * _MIB,
    GENES: 256 * _MIB,
    HEAD_JSON: 64 * _MIB,
    WEIGHTS: None,
    METRICS: 64 * _MIB,
}
_MAY_BE_MISSING = (GENES,)
_DATE = (1980, 1, 1, 0, 0, 0)
# The record that ends an archive, without a comment, as all that we write have it.
_END, _END_BYTES, _MOST_DIRECTORY = b"PK\x05\x06", 22, 64 << 10
#: What zipfile raises on what is no archive, or a damaged one.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


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


def pack_run(run: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write a run into one file, from which it can be loaded; the same run gives the same bytes.

    Parameters
    ----------
    run
        Folder of a run, or a packed one.
    out
        The file; its folder is made where it does not exist.
    overwrite
        Whether a packed head that is there may be replaced.

    Raises
    ------
    RequestError
        If `run` is not a run or is damaged, or `out` holds something else, or cannot be written.
    """
    check_file_out(out, "FILE")
    if out.exists() and not overwrite:
        raise RequestError(f"FILE {out} exists; name another file, or give --overwrite to replace it.")
    if out.exists() and not is_packed(out):
        raise RequestError(f"FILE {out} is not a packed head, and would be replaced; name another file.")
    with run_at(run) as folder:
        small, weights = _contents(folder)
        with writing(out, "FILE", "file"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(out) as draft:
                _write(draft, small, folder / WEIGHTS, weights)


def _contents(run: Path) -> tuple[dict[str, bytes], PackedFile]:
    """The small files of a run by name, and what its weights are; a damaged run is refused."""
    links = [name for name in _MOST_BYTES if (run / name).is_symlink()]
    if links:  # to what may be nobody else's to see
        raise HeadError(f"{run / links[0]} is a link; put the file itself there.")
    card = read_card(run)
    if not (run / METRICS).is_file():
        raise HeadError(f"{run} is not finished: {METRICS} is missing; fit it again.")
    read_metrics(run / METRICS)
    weights = PackedFile(sha256_of_file(run / WEIGHTS), (run / WEIGHTS).stat().st_size)
    if card.head in HEADS:  # others would have their code run
        read_head(run)
    elif card.weights_sha256 not in ("", weights.sha256):
        raise HeadError(f"{run} is damaged ({WEIGHTS} is not the one that {HEAD_JSON} is of).")
    small = card_files(card_of_run(run))
    for name in (README, GENES, HEAD_JSON, METRICS):  # a user's own README.md too
        if (run / name).is_file():
            small[name] = (run / name).read_bytes()
    for name, content in small.items():
        if len(content) > (_MOST_BYTES[name] or 0):
            raise HeadError(f"{run / name} has {len(content):,} bytes, which is too much to be packed.")
    return small, weights


def _write(file: Path, small: Mapping[str, bytes], weights: Path, of_weights: PackedFile) -> None:
    packed = {name: PackedFile(hashlib.sha256(data).hexdigest(), len(data)) for name, data in small.items()}
    packed[WEIGHTS] = of_weights
    manifest = Manifest(package_version=mmap_st.__version__, files=dict(sorted(packed.items())))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        every = {**small, MANIFEST: json_text(manifest).encode()}
        for name in sorted((*every, WEIGHTS)):
            info = zipfile.ZipInfo(name, _DATE)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.create_system = 3  # Unix, which the mode above is of
            info.file_size = of_weights.bytes if name == WEIGHTS else len(every[name])
            with (
                weights.open("rb") if name == WEIGHTS else io.BytesIO(every[name]) as source,
                archive.open(info, "w") as target,
            ):
                found = _copy(source, target)
            if name == WEIGHTS and found != of_weights:
                raise HeadError(f"{weights} was changed meanwhile; run the same command again.")


def _copy(source: IO[bytes], target: IO[bytes], most: int | None = None) -> PackedFile:
    """Copy at most `most` bytes; says what was copied."""
    digest, count = hashlib.sha256(), 0
    while block := source.read(_MIB):
        count += len(block)
        if most is not None and count > most:
            break
        digest.update(block)
        target.write(block)
    return PackedFile(digest.hexdigest(), count)


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip archive does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def is_packed(path: Path) -> bool:
    """Whether a file is a zip archive with our manifest; it may still be damaged."""
    try:
        with path.open("rb") as file:
            _check_end(file)
            with zipfile.ZipFile(file) as archive:
                return {MANIFEST, WEIGHTS} <= set(archive.namelist())
    except (OSError, *_ZIP_ERRORS):
        return False


@contextmanager
def run_at(path: Path) -> Iterator[Path]:
    """Give the folder of a run, or a private one with the files of a packed run, which is removed in the end.

    Raises
    ------
    HeadError
        If `path` is a file and no packed head, or it is damaged; what is raised of the private folder
        meanwhile names `path` in its place.
    """
    refuse_special(path, HeadError)
    if not path.is_file():
        restore_run(path)
        yield path
        return
    try:
        private = tempfile.TemporaryDirectory(prefix="mmap-head-")
    except OSError as error:
        raise _no_room(error) from error
    with private as name:
        folder = Path(name)
        try:
            _unpack(path, folder)
            yield folder
        except HeadError as error:
            raise HeadError(str(error).replace(str(folder), printable(str(path)))) from error


def _unpack(path: Path, folder: Path) -> None:
    """Write the files of a packed head into an empty folder, by their known names alone."""
    try:
        with path.open("rb") as file:
            _check_end(file)
            with zipfile.ZipFile(file) as archive:
                _unpack_checked(archive, path, folder)
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror or first_line(error)})") from error
    except _ZIP_ERRORS as error:
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
    if count > len(_MOST_BYTES) or directory > _MOST_DIRECTORY:
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
    missing = set(_MOST_BYTES) - {MANIFEST, *_MAY_BE_MISSING} - files.keys()
    if missing or files.keys() != by_name.keys() - {MANIFEST}:
        different = sorted(missing | (files.keys() ^ (by_name.keys() - {MANIFEST})))
        raise _refused(path, f"does not hold what its manifest names ({', '.join(different)[:200]})")
    for name, expected in files.items():
        if _extract(archive, by_name[name], folder) != expected:
            raise _refused(path, f"is damaged: {name} is not the one that was packed")


def _what_is_wrong(entry: zipfile.ZipInfo) -> str | None:
    """Why a file of an archive cannot be one that was packed."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.filename not in _MOST_BYTES or entry.orig_filename != entry.filename:
        return "is no file of a packed head"
    if entry.is_dir() or kind not in (0, stat.S_IFREG):
        return "is a link or a folder"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return "is compressed"
    most = _MOST_BYTES[entry.filename]
    if most is not None and entry.file_size > most:
        return f"has {entry.file_size:,} bytes"
    return None


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> PackedFile:
    """Copy one file of a known name into the private folder; says what it is."""
    with archive.open(entry) as source:
        try:
            with (folder / entry.filename).open("xb") as target:
                return _copy(source, target, entry.file_size)
        except OSError as error:
            raise _no_room(error) from error


def _no_room(error: OSError) -> WriteError:
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
