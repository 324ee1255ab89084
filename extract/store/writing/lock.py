"""One writer a slide, on one machine and across machines; no lock outlives its process.

On one machine the operating system's file lock decides: it ends with the process that holds it. Some network
file systems keep such locks from other machines, so the holder also signs a file and touches it every few
seconds: a signature of another machine counts while it is fresh. A writer whose signature was replaced, say
after its machine slept, finds out before it writes again.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from filelock import Timeout

from mmap_st.errors import SlideLockedError, StoppedError, StoreError, first_line, printable
from mmap_st.extract.store.reader import locks_folder
from mmap_st.extract.store.storage import check_plain
from mmap_st.files import (
    InUseError,
    cannot_be_written,
    file_lock,
    file_name,
    has_no_file_locks,
    inode_of,
    os_lock,
)

_LOG = logging.getLogger(__name__)
_BEAT_S = 5.0
#: A signature that was not touched for this long is that of a dead process.
_DEAD_AFTER_S = 60.0
_POLL_S = 0.2
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock: process, machine for people, machine for certain, and a token no other lock has.

    Of tokens, the part after the last dash is the second at which the lock was taken, of the Unix epoch.
    """

    pid: int
    host: str
    machine: str
    token: str


def this_machine() -> str:
    """A name that no other machine has, and that a restart changes."""
    try:
        return f"{platform.node()} {_BOOT_ID.read_text().strip()}"
    except OSError:
        return f"{platform.node()} {uuid.getnode()}"


class SlideLock:
    """The lock of one slide of a store, held from entering to leaving the context; any thread may leave it.

    Lock files are next to the store, in ``STORE.locks/``, so that the store holds nothing but Zarr. They
    stay there: what locks is the operating system, never the existence of a file.

    Parameters
    ----------
    store
        Folder of the store.
    slide_key
        The slide's folder name in the store.
    wait_s
        How long to wait for another writer on this machine.
    stop
        Asked while waiting for one on another machine; True ends the waiting.
    patient
        Whether to wait and see if a writer on another machine, which signed less than a minute ago, is dead.

    Raises
    ------
    SlideLockedError
        On entering, if another process still holds the lock; it names that process.
    StoreError
        On entering, if the lock files are links or cannot be written.
    """

    def __init__(
        self,
        store: Path,
        slide_key: str,
        wait_s: float = 0.0,
        stop: Callable[[], bool] = lambda: False,
        *,
        patient: bool = True,
    ) -> None:
        self._folder = locks_folder(store)
        self._stop, self._patient = stop, patient
        self._signature = self._folder / file_name(slide_key, ".holder.json")
        self._lock = self._folder / file_name(slide_key, ".lock")
        self._wait_s = wait_s
        # Slides are opened by one thread and finished by another. Where a file system has no such locks, the
        # signature alone decides.
        self._file = os_lock(self._lock)
        token = f"{uuid.uuid4().hex}-{int(time.time())}"
        self._me = _Holder(os.getpid(), platform.node(), this_machine(), token)
        self._released = threading.Event()

    def __enter__(self) -> SlideLock:
        for file in (self._lock, self._signature):
            check_plain(self._folder, file.name)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._acquire_file()
            self._wait_for_dead()
            self._sign()
        except (SlideLockedError, StoppedError):
            self._file.release()
            raise
        except Timeout as error:
            raise _locked(self._holder()) from error
        except OSError as error:
            self._file.release()
            raise StoreError(f"{self._folder} {cannot_be_written(error, 'use another store')}") from error
        threading.Thread(target=self._beat, name="lock heartbeat", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        with suppress(OSError):
            if self._holder() == self._me:
                self._signature.unlink(missing_ok=True)
        self._file.release()

    def check(self) -> None:
        """Make sure that the lock is still held.

        Raises
        ------
        SlideLockedError
            If another process took it, which it may if this one gave no sign of life for a minute.
        """
        try:
            holder = self._holder()
        except OSError as error:
            raise StoreError(
                f"the lock {self._signature} cannot be read ({first_line(error)}); check the disk and run"
                " again."
            ) from error
        if holder is None:
            raise SlideLockedError(f"its lock {self._signature} was removed; run the same command again.")
        if holder != self._me:
            raise _locked(holder)

    def _beat(self) -> None:
        while not self._released.wait(_BEAT_S):
            try:
                if self._holder() != self._me:
                    return
                os.utime(self._signature)
            except OSError as error:
                _LOG.info("the lock %s cannot be touched (%s)", printable(str(self._signature)), error)

    def _acquire_file(self) -> None:
        try:
            while True:
                self._lock.touch()
                before = inode_of(self._lock)
                self._file.acquire(timeout=self._wait_s)
                # `mmap gc` may have removed it between our opening and locking it; others make a new one.
                if before is not None and inode_of(self._lock) == before:
                    break
                self._file.release()
            self._locks_files = True
        except (NotImplementedError, OSError) as error:
            if not has_no_file_locks(error):
                raise
            _LOG.warning(
                "%s has no file locks: only signatures keep writers apart", printable(str(self._folder))
            )
            self._locks_files = False

    def _wait_for_dead(self) -> None:
        """Wait until nobody else who signed can be writing: those of other machines show it by touching.

        Raises
        ------
        SlideLockedError
            If the signature is touched meanwhile.
        """
        seen: float | None = None
        began = time.monotonic()
        while (other := self._holder()) is not None:
            if other.machine == self._me.machine and self._locks_files:
                return  # it would hold the operating system's lock
            try:
                touched = self._signature.stat().st_mtime
            except FileNotFoundError:
                return
            if seen is not None and touched != seen:
                raise _locked(other)
            # The second for signatures from the future, by a clock that was wrong.
            if self._now() - touched >= _DEAD_AFTER_S or time.monotonic() - began >= _DEAD_AFTER_S:
                return
            if not self._patient:
                raise _locked(other)
            seen = touched
            if self._stop():
                raise StoppedError("stopped while waiting for a lock")
            time.sleep(_POLL_S)

    def _now(self) -> float:
        return _now(self._folder)

    def _sign(self) -> None:
        # A draft of its own: other machines may be signing at the same time.
        draft = self._folder / f"{self._me.token}.draft"
        draft.write_text(json.dumps(vars(self._me)))
        draft.replace(self._signature)

    def _holder(self) -> _Holder | None:
        return _signed(self._signature)


@dataclass(frozen=True)
class LockHolder:
    """Who writes a slide: process, machine, and since when (seconds of the epoch; None: not recorded)."""

    pid: int
    host: str
    since: float | None


def lock_holder(store: Path, slide_key: str) -> LockHolder | None:
    """Who writes a slide now; None where nobody has given a sign of life for a minute."""
    folder = locks_folder(store)
    signature = folder / file_name(slide_key, ".holder.json")
    holder = _signed(signature)
    try:
        if holder is None or _now(folder) - signature.stat().st_mtime >= _DEAD_AFTER_S:
            return None
    except OSError:
        return None
    since = holder.token.rpartition("-")[2]
    return LockHolder(holder.pid, holder.host, float(since) if since.isdecimal() else None)


def _now(folder: Path) -> float:
    """Time by the clock that stamps the files of a folder, which may be a file server's."""
    probe = folder / f"{uuid.uuid4().hex}.now"
    probe.write_bytes(b"")
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _signed(signature: Path) -> _Holder | None:
    """Who signed last; None if nobody did, or the signature cannot be read."""
    try:
        return _Holder(**json.loads(signature.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def check_unlocked(store: Path, slide_key: str) -> None:
    """Refuse a slide that is being written, as far as can be told without taking its lock.

    Raises
    ------
    SlideLockedError
        Naming who writes it.
    """
    lock = SlideLock(store, slide_key)
    holder = lock._holder()
    if lock._lock.exists():
        try:
            with file_lock(lock._lock):
                pass
        except InUseError as error:
            raise _locked(holder) from error
    if holder is not None and holder.machine != this_machine():
        with suppress(FileNotFoundError):
            if time.time() - lock._signature.stat().st_mtime < _DEAD_AFTER_S:
                raise _locked(holder)


@contextmanager
def slide_lock(store: Path, slide_key: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a `SlideLock`."""
    with SlideLock(store, slide_key, wait_s):
        yield


def _locked(holder: _Holder | None) -> SlideLockedError:
    who = f"another process ({holder.pid} on {holder.host})" if holder else "another process"
    return SlideLockedError(f"{who} is writing it; wait for that to end and run the same command again.")
