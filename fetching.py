"""Files of servers on this machine: fetched in pieces side by side, and kept where later runs find them.

The cache is a folder with a folder for each file that was fetched, named by its URL and by what the server
says of its version: what was replaced on the server is another file. Any number of processes may share it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from mmap_st.errors import MissingDependencyError, MmapError, RemoteError, StoppedError, first_line, printable
from mmap_st.files import sha256_of_json
from mmap_st.object_stores import Bucket, NoRangesError, Stat
from mmap_st.urls import Url

_LOG = logging.getLogger(__name__)
#: Where the cache is, for those who want it elsewhere.
CACHE_VARIABLE = "MMAP_CACHE"
#: Of all files in the cache together.
MOST_BYTES = 20_000_000_000
#: What was used so recently may be read just now; what was begun so long ago is of a process that is gone.
_IN_USE_S, _ABANDONED_S = 600.0, 86_400.0
_DRAFT = ".fetching-"
_PIECE = 8 << 20
_AT_ONCE, _POLL_S = 4, 0.2
#: Of a file that cannot be had in pieces.
_TRIES = 3


@dataclass(frozen=True)
class RemoteFiles:
    """What lies at a URL, as the server had it when it was asked: a file, a folder, or files of one slide.

    Attributes
    ----------
    url
        The one that was named.
    files
        Every file, by its path from the folder that `url` lies in, sorted.
    """

    url: Url
    files: tuple[tuple[str, Stat], ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(found.size for _, found in self.files)

    @property
    def version(self) -> str:
        """Changes when a file does: of one file what the server calls it, else a hash of them all."""
        if len(self.files) == 1:
            return _version(self.files[0][1])
        return sha256_of_json([[key, found.size, _version(found)] for key, found in self.files])

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the files."""
        return tuple(key for key, _ in self.files)


def _version(found: Stat) -> str:
    """Web servers need not name versions; then the time at which a file was written stands for it."""
    if found.version is None and not found.modified.timestamp():
        return uuid.uuid4().hex  # of one that says neither, nothing is known to be the same
    return found.version or found.modified.isoformat()


def look_at(url: Url, beside: Sequence[str] = ()) -> RemoteFiles:
    """What lies at a URL; one request for a file, and one more for a thousand files of a folder.

    Parameters
    ----------
    beside
        Names of neighbours, files or folders, that belong to it where they are there.

    Raises
    ------
    RemoteError
        If there is nothing, or the server refuses.
    """
    found = find(url, beside)
    if found is None:
        raise RemoteError(f"{url} does not exist; look at its spelling.")
    return found


def find(url: Url, beside: Sequence[str] = ()) -> RemoteFiles | None:
    """What lies at a URL, as `look_at`; None where nothing does.

    Raises
    ------
    RemoteError
        If the server refuses.
    """
    with _answering():
        bucket = Bucket(url.parent)
        files = _files(bucket, url.name)
        if not files:
            return None
        for name in beside:
            files += _files(bucket, name)
    for key, _ in files:
        if {"", ".", ".."} & set(key.split("/")):
            raise RemoteError(f"{url}: {key} is no path that a file can have here; rename it.")
    return RemoteFiles(url, tuple(sorted(files, key=lambda file: file[0])))


def _files(bucket: Bucket, name: str) -> list[tuple[str, Stat]]:
    """A file, or all files of a folder."""
    found = bucket.stat(name)
    if found is not None:
        return [(name, found)]
    below = dict(bucket.stats(name)) if bucket.url.lists else {}
    # Some tools mark folders by objects without content.
    folders = {key.rpartition("/")[0] for key in below} | {name}
    return [(key, one) for key, one in below.items() if key not in folders]


def fetch(files: RemoteFiles, folder: Path, stop: Callable[[], bool] = lambda: False) -> None:
    """Write files to a folder of one's own, as they lie on the server, several pieces at a time.

    Raises
    ------
    RemoteError
        If one was replaced since `look_at`, or cannot be had.
    OSError
        If one cannot be written.
    StoppedError
        If `stop` requests it.
    """
    bucket = Bucket(files.url.parent)
    for key, _ in files.files:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).touch()
    try:
        with _answering():
            _fetch_pieces(files, bucket, folder, stop)
    except NoRangesError:
        _fetch_whole(files, bucket, folder, stop)
    others = sorted({key.partition("/")[0] for key in files.names} - {files.url.name})
    if find(files.url, others) != files:
        raise _changed(files.url)


def _fetch_pieces(files: RemoteFiles, bucket: Bucket, folder: Path, stop: Callable[[], bool]) -> None:
    # In a thread of its own: a notebook's has a loop already.
    over = Event()
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as thread:
        work = _pieces(files, bucket, folder, lambda: over.is_set() or stop())
        try:
            thread.submit(asyncio.run, work).result()
        finally:
            over.set()  # a second Ctrl-C waits for nothing


async def _pieces(files: RemoteFiles, bucket: Bucket, folder: Path, stop: Callable[[], bool]) -> None:
    """Fetch the pieces of files; a server that does not answer holds up nobody who wants to stop."""
    waiting = (
        (key, start, min(start + _PIECE, one.size), one.size)
        for key, one in files.files
        for start in range(0, one.size, _PIECE)
    )

    async def work() -> None:
        for key, start, end, size in waiting:
            part = (None, None) if (start, end) == (0, size) else (start, end)
            content = await bucket.get_async(key, *part)
            if content is None or len(content) != end - start:
                raise _changed(files.url)
            with (folder / key).open("rb+") as file:
                file.seek(start)
                file.write(content)

    tasks = {asyncio.create_task(work()) for _ in range(_AT_ONCE)}
    left = tasks
    try:
        while left:
            done, left = await asyncio.wait(left, timeout=_POLL_S, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if stop():
                raise StoppedError("stopped while a file was fetched")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _fetch_whole(files: RemoteFiles, bucket: Bucket, folder: Path, stop: Callable[[], bool]) -> None:
    """From a server that gives no pieces: one that breaks off is begun again, a few times."""
    for key, found in files.files:
        for left in reversed(range(_TRIES)):
            try:
                with (folder / key).open("wb") as file:
                    for piece in bucket.stream(key):
                        if stop():
                            raise StoppedError("stopped while a file was fetched")
                        file.write(piece)
            except RemoteError:
                if not left:
                    raise
            else:
                break
        if (folder / key).stat().st_size != found.size:
            raise _changed(files.url)


def _changed(url: Url) -> RemoteError:
    return RemoteError(f"{url} was changed while it was read; run the same command again.")


@contextmanager
def _answering() -> Iterator[None]:
    """On a machine without what opens URLs, it is each slide's own error, as a server's answer is."""
    try:
        yield
    except MissingDependencyError as error:
        raise RemoteError(str(error)) from error


def cache_folder() -> Path:
    """Where fetched files are kept: the variable ``MMAP_CACHE``, else where the system keeps such things."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    import pooch

    return Path(pooch.os_cache("mmap-st"))


def cached(files: RemoteFiles, stop: Callable[[], bool] = lambda: False) -> Path:
    """The copy of files in the cache, fetched unless it is there: the path of what `files` is named by.

    Raises
    ------
    RemoteError
        If they cannot be fetched, or kept.
    StoppedError
        If `stop` requests it.
    """
    key = sha256_of_json([str(files.url), files.version, list(files.names)])[:40]
    place = cache_folder() / "files" / f"{key}-{files.size}"
    copy = place / files.url.name
    if copy.exists():
        with suppress(OSError):
            os.utime(place)  # the oldest are removed first
        return copy
    draft = place.with_name(f"{_DRAFT}{uuid.uuid4().hex}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft.mkdir()
        fetch(files, draft, stop)
        try:
            draft.rename(place)
        except OSError:
            if not copy.exists():  # else another process was faster
                raise
        _LOG.info("%s: %s", printable(str(files.url)), printable(f"{files.size / 1e6:.3g} MB fetched"))
        _make_room(place)
    except OSError as error:
        raise RemoteError(
            f"{files.url} cannot be kept in {place.parent} ({first_line(error)}); free some space, or name"
            f" another folder in {CACHE_VARIABLE}."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return copy


def _make_room(newest: Path) -> None:
    """Remove what was not used for longest, until the rest is within bounds; and what the killed left."""
    now, there = time.time(), []
    for place in newest.parent.iterdir():
        with suppress(OSError, ValueError):  # what another process removes, and what is none of ours
            age = now - place.stat().st_mtime
            if place.name.startswith(_DRAFT):
                if age > _ABANDONED_S:
                    shutil.rmtree(place, ignore_errors=True)
                continue
            there.append((age, int(place.name.rpartition("-")[2]), place))
    together = sum(size for _, size, _ in there)
    for age, size, place in sorted(there, reverse=True, key=lambda one: one[0]):
        if together <= MOST_BYTES or age < _IN_USE_S:
            return
        shutil.rmtree(place, ignore_errors=True)
        together -= size


@contextmanager
def named_by_url(copies: Mapping[Path, Url]) -> Iterator[None]:
    """Have errors that are raised within name what the user knows, not its copy."""
    try:
        yield
    except MmapError as error:
        for copy, url in copies.items():
            error.args = tuple(
                part.replace(str(copy), str(url)) if isinstance(part, str) else part for part in error.args
            )
        raise
