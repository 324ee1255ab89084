"""Files: what is written, locked and hashed the same way wherever that is done."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile

from filelock import FileLock, Timeout

from mmap_st.errors import WriteError, first_line
from mmap_st.urls import Place, url_of


def absolute(path: Path) -> Path:
    """The path from the root, its links kept: files beside a link and its name are what the user means.

    Only what stands before a ``..`` is resolved, since that leads from a link's target.
    """
    whole = Path.cwd() / path
    if ".." not in whole.parts:
        return whole
    last = max(place for place, part in enumerate(whole.parts) if part == "..")
    return Path(*whole.parts[: last + 1]).resolve().joinpath(*whole.parts[last + 1 :])


def absolute_place(place: Place) -> Place:
    """A place that means the same in another folder: a path from the root; a URL is one."""
    return absolute(place) if isinstance(place, Path) else place


def refuse_special(path: Path, error: type[Exception], option: str = "") -> None:
    """Refuse a path that leads to a pipe, a socket or a device: reading one may never end.

    Parameters
    ----------
    path, error
        What is to be read, and what to raise. What does not exist is left to whoever reads it.
    option
        The option that named it, for the message.

    Raises
    ------
    error
        Saying so.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        named = f"{option} {path}".strip()
        raise error(f"{named} is a pipe or a device, not a file; copy what it gives into a file.")


#: Bytes that a name may have on file systems in use.
MOST_BYTES = 255


def shortened(name: str, most: int = MOST_BYTES) -> str:
    """A name of at most `most` bytes: a longer one keeps its beginning, and gets a hash of the whole."""
    whole = name.encode("utf-8", "surrogatepass")
    if len(whole) <= most:
        return name
    ending = f"~{hashlib.sha256(whole).hexdigest()[:16]}"
    return whole[: most - len(ending)].decode("utf-8", "ignore") + ending


def file_name(stem: str, ending: str) -> str:
    """Stem and ending as the name of a file, the stem shortened where both together are too long."""
    return shortened(stem, MOST_BYTES - len(ending)) + ending


def refuse_clashes(names: Iterable[str], folder: Path) -> None:
    """Refuse names that differ in capitals alone, where the file system takes them for the same.

    Parameters
    ----------
    names
        Of files or folders.
    folder
        Where they belong; it need not exist.

    Raises
    ------
    WriteError
        Naming two of them.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name and _ignores_case(folder):
            raise WriteError(
                f"{other} and {name} would be the same file in {folder}, which does not distinguish capitals"
                " from small letters; rename one of them."
            )


def _ignores_case(folder: Path) -> bool:
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    with NamedTemporaryFile(dir=there, prefix="aA") as probe:
        return Path(probe.name).with_name(Path(probe.name).name.swapcase()).exists()


#: What is written to find out whether a place can be: more than a file system keeps beside a file's name.
_PROBE = bytes(64 << 10)


def check_folder_out(path: Path, option: str = "--out") -> None:
    """Refuse a folder that cannot be written to, before the work whose results belong there.

    Parameters
    ----------
    path
        The folder. It need not exist, and is not made.
    option
        What named it, for the message.

    Raises
    ------
    WriteError
        If it is a file, lies below one, or nothing can be written there.
    """
    _check_out(path, option, "folder")


def check_file_out(path: Path, option: str = "--out") -> None:
    """Refuse a file that cannot be written, before the work whose results belong there.

    Raises
    ------
    WriteError
        If it is a folder or a device, lies below a file, or nothing can be written there.
    """
    refuse_special(path, WriteError, option)
    _check_out(path, option, "file")


def _check_out(path: Path, option: str, wanted: str) -> None:
    if (url := url_of(path)) is not None:
        raise WriteError(
            f"{option} {url} is a URL, and results are written to a disk; name a {wanted} there, and copy it."
        )
    with writing(path, option, wanted):
        try:
            whole = path.resolve()
        except RuntimeError as error:  # what Python says of a loop of links
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
        there = next(place for place in (whole, *whole.parents) if place.exists())
        if there != whole and not there.is_dir():
            raise WriteError(f"{option} {path} is below {there}, which is a file; name another {wanted}.")
        if there == whole and there.is_dir() != (wanted == "folder"):
            found = "folder" if there.is_dir() else "file"
            raise WriteError(f"{option} {path} is a {found}; name a {wanted}.")
        with TemporaryFile(dir=there if there.is_dir() else there.parent) as probe:
            probe.write(_PROBE)


@contextmanager
def writing(path: Path, option: str = "--out", wanted: str = "folder") -> Iterator[None]:
    """Turn what goes wrong on the disk while `path` is written into one sentence.

    Raises
    ------
    WriteError
        Saying what.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"{option} {path} {cannot_be_written(error, f'name another {wanted}')}") from error


def cannot_be_written(error: OSError, elsewhere: str) -> str:
    """The end of a sentence on a file or a folder: that it cannot be written, why, and what to do.

    Parameters
    ----------
    elsewhere
        How to say that another place is wanted, such as ``"name another folder"``.
    """
    said = error.strerror or first_line(error)
    return f"cannot be written ({said}); {disk_advice(error, elsewhere)}, and run the same command again."


def disk_advice(error: OSError, elsewhere: str) -> str:
    """What helps against what a disk said: one or two steps, without a full stop; see `cannot_be_written`."""
    step = _STEPS.get(number_of(error), "check the disk")
    return f"{step} or {elsewhere}" if step else elsewhere


#: What helps against an error of the disk, unless nothing does but another place.
_STEPS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space in your quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.ENOENT: "make the folder that it belongs in",
    errno.ENOTDIR: "",
    errno.EISDIR: "",
    errno.EEXIST: "",
    errno.ELOOP: "correct the links that lead to it",
    errno.ENAMETOOLONG: "shorten its name",
    errno.EINVAL: "change its name",
    errno.EILSEQ: "change its name",
    errno.EBUSY: "close the program that uses it",
    errno.ETXTBSY: "close the program that uses it",
    errno.EMFILE: "raise the limit on open files",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs",
}
#: How libraries that write files by themselves (HDF5, Rust's) quote the number of an error.
_QUOTED = re.compile(r"(?:errno = |os error |Errno )(\d+)")


def number_of(error: OSError) -> int:
    """The error's number; of one that a library made up, the number that its text quotes, or 0."""
    if error.errno:
        return error.errno
    quoted = _QUOTED.search(str(error))
    return int(quoted[1]) if quoted else 0


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: the same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def is_nested_deeper(content: object, levels: int) -> bool:
    """Whether JSON has more levels: whatever walks through many would stumble."""
    level = [content]
    for _ in range(levels):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(level)


def sha256_of_json(value: object) -> str:
    """Hex sha256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read piece by piece.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Write a file that is there whole or not at all.

    Yields the path of a draft in the same folder. When the block ends, the draft takes the place of `path`;
    when the block fails, the draft is removed and `path` is as it was. A killed process leaves its draft, and
    the next one overwrites it. The caller makes sure that no two write the same file at a time.

    Parameters
    ----------
    path
        The file; its folder exists.
    sync
        Have the draft on disk before it takes the file's place, so that a power cut leaves one or the other.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    draft = path.with_name(file_name(f".{path.name}", ".unfinished"))
    try:
        yield draft
        if sync:
            with draft.open("rb+") as written:
                os.fsync(written.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write text as UTF-8 that is there whole or not at all; see `replacing`."""
    with replacing(path, sync=sync) as draft:
        draft.write_text(text, "utf-8")


class InUseError(Exception):
    """Another process holds a lock."""


@contextmanager
def file_lock(path: Path, wait_s: float | None = 0.0) -> Iterator[bool]:
    """Hold the operating system's lock of a file: it ends with the process, and the file stays.

    Yields whether there is such a lock: some network file systems have none, and then nothing is held.

    Parameters
    ----------
    path
        The file that stands for the lock; its folder exists.
    wait_s
        Seconds to wait for another process; None: as long as it takes.

    Raises
    ------
    InUseError
        If another process still holds it.
    OSError
        If the file cannot be made.
    """
    lock = os_lock(path)
    try:
        lock.acquire(timeout=-1 if wait_s is None else wait_s)
        held = True
    except Timeout as error:
        raise InUseError(f"another process holds {path}") from error
    except (NotImplementedError, OSError) as error:
        if not has_no_file_locks(error):
            raise
        held = False
    try:
        yield held
    finally:
        lock.release()


@contextmanager
def passing_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is made for it and removed in the end, and its folder where there is none.

    Raises
    ------
    InUseError
        If another process holds it.
    OSError
        If the file cannot be made.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        before = inode_of(path)
        with file_lock(path):
            # The same file before and after: it is the one that we opened, and others will open. Its last
            # holder may have removed it between our opening and locking it.
            if before is not None and inode_of(path) == before:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)  # while it is held
                return


def inode_of(path: Path) -> int | None:
    """What tells a file from another that takes its place; None where there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def os_lock(path: Path) -> FileLock:
    """The lock that `file_lock` holds, for what is locked by one thread and unlocked by another."""
    # Never a file whose existence locks: a killed process would hold it for ever.
    return FileLock(str(path), thread_local=False, fallback_to_soft=False)


def has_no_file_locks(error: Exception) -> bool:
    """Whether an error says that a file system has no locks."""
    known = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) in known


#: What zipfile raises on what is no archive, or a damaged one.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip archive does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, whatever its name: archives often give theirs none with a suffix."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
