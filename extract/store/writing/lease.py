"""One writer a slide of a store in a bucket: leases, since a server has no file locks.

A lease is an object beside the store. Its holder writes it anew every few seconds; one that was not written
for a minute, by the server's clock, is of a dead process, and the next writer takes it over. Servers that
know conditional writes decide who is first; on others the one whose lease stays does.

What keeps a store whole does not rest on either. A holder writes to the store only while its lease is fresh
by its own clock, and no request lasts longer than the time that is left then: before another process may take
the lease over, all that the first one began has ended. And a reader compares the digests of what it reads.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import TracebackType

from mmap_st.errors import RemoteError, SlideLockedError, StoppedError, first_line, printable
from mmap_st.extract.store.writing.lock import LockHolder, this_machine
from mmap_st.files import file_name
from mmap_st.object_stores import LONGEST_REQUEST_S, Bucket, Conflict, NoConditions
from mmap_st.urls import Url

_LOG = logging.getLogger(__name__)
#: A lease that was not written for this long is of a dead process.
DEAD_AFTER_S = 60.0
#: A holder counts on it for less: so long that what it began in time is over when another may take it.
_FRESH_FOR_S = DEAD_AFTER_S - LONGEST_REQUEST_S - 5.0
_BEAT_S = 8.0
_POLL_S = 1.0
_REGAINED_WITHIN_S = 180.0
#: Where writes have no conditions: how long others have that wrote at the same moment.
_SETTLE_S = 2.0
_ENDING = ".lease.json"


@dataclass(frozen=True)
class _Lease:
    """Who holds a slide.

    Attributes
    ----------
    pid, host, machine
        The process, its machine for people, and for certain.
    token
        No other holder has it; empty: the slide is free.
    fence
        How often the slide was taken: of two holders, the later one has the larger number.
    since
        When it was taken, in seconds of the Unix epoch by the holder's clock.
    beat
        How often the holder has written it.
    """

    pid: int
    host: str
    machine: str
    token: str
    fence: int
    since: float
    beat: int = 0

    def written(self) -> bytes:
        """As the server stores it."""
        return json.dumps(asdict(self)).encode()


def leases_of(store: Url) -> Url:
    """Where the leases of a store are: beside it, so that it holds nothing but Zarr."""
    return store.with_name(store.name + ".locks")


class SlideLease:
    """The lease of one slide, held from entering to leaving the context; any thread may leave it.

    Parameters
    ----------
    store
        URL of the store.
    slide_key
        The slide's folder name in the store.
    stop
        Asked while waiting; True ends it.
    patient
        Whether to wait and see if a holder is dead.

    Raises
    ------
    SlideLockedError
        On entering, if another process holds it; it names that process.
    RemoteError
        On entering, if the server does not answer, or refuses.
    """

    def __init__(
        self, store: Url, slide_key: str, stop: Callable[[], bool] = lambda: False, *, patient: bool = True
    ) -> None:
        self._bucket, self._key = Bucket(leases_of(store)), file_name(slide_key, _ENDING)
        self._stop, self._patient = stop, patient
        self._mine = _Lease(os.getpid(), platform.node(), this_machine(), uuid.uuid4().hex, 0, time.time())
        self._version: str | None = None
        self._conditions = False
        self._fresh_until = 0.0
        self._lost = False
        self._released = threading.Event()
        # A request of the heartbeat and one that frees the slide must not overtake each other.
        self._writing = threading.Lock()

    def __enter__(self) -> SlideLease:
        self._take()
        threading.Thread(target=self._keep_fresh, name="lease heartbeat", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        with self._writing:
            try:
                if not self._lost:
                    self._write(_Lease(**{**asdict(self._mine), "token": "", "beat": self._mine.beat + 1}))
            except (RemoteError, Conflict) as failure:
                _LOG.info("the lease %s is not given back: %s", printable(self._key), printable(str(failure)))

    @property
    def fence(self) -> int:
        """Larger than that of every holder before."""
        return self._mine.fence

    def check(self) -> None:
        """Make sure that nothing else can be writing while a request that is begun now lasts.

        Raises
        ------
        SlideLockedError
            If the lease was lost, or could not be kept fresh.
        """
        if self._lost or time.monotonic() >= self._fresh_until:
            raise SlideLockedError(
                f"its lease {self._bucket.url / self._key} was lost, since the server could not be reached"
                " for a while, or another process took it over; run the same command again."
            )

    def wait_until_fresh(self) -> None:
        """Wait until the server has confirmed the lease lately: it may have been out of reach for a while.

        Raises
        ------
        SlideLockedError
            If the lease was lost, or that takes minutes.
        """
        until = time.monotonic() + _REGAINED_WITHIN_S
        while not self._lost and time.monotonic() >= self._fresh_until and time.monotonic() < until:
            time.sleep(_POLL_S)
        self.check()

    def _take(self) -> None:
        self._conditions = _knows_conditions(self._bucket)
        while True:
            began = time.monotonic()
            other, version = self._read()
            if other is not None and other.token and not self._is_dead(other, version):
                continue
            fence = 1 if other is None else other.fence + 1
            self._mine = _Lease(**{**asdict(self._mine), "fence": fence})
            self._version = version
            try:
                self._write(self._mine)
            except Conflict:
                # Another process was first, or it was ours: an answer can be lost on its way.
                other, version = self._read()
                if other is None or other.token != self._mine.token:
                    continue
                self._version = version
            if not self._conditions:
                # Whoever saw the slide free at the same moment has written by now, or took too long to count.
                if time.monotonic() - began > _SETTLE_S / 2:
                    self._give_up()
                    continue
                time.sleep(_SETTLE_S)
                other, version = self._read()
                if other is None or other.token != self._mine.token:
                    continue
                self._version = version
            self._fresh_until = max(self._fresh_until, began + _FRESH_FOR_S)
            return

    def _give_up(self) -> None:
        """Take a lease back that was written too late, unless another's is there by now."""
        there, _ = self._read()
        if there is not None and there.token == self._mine.token:
            self._bucket.put(self._key, self._free())

    def _free(self) -> bytes:
        return _Lease(**{**asdict(self._mine), "token": ""}).written()

    def _is_dead(self, other: _Lease, version: str | None) -> bool:
        """Whether a holder has not written for a minute; False: it changed meanwhile.

        Raises
        ------
        SlideLockedError
            If it is alive.
        StoppedError
            If `stop` requests it.
        """
        began = time.monotonic()
        while True:
            stat, now = self._bucket.stat(self._key), self._now()
            if stat is None or stat.version != version:
                return self._alive(other) if stat is not None else False
            # By the server's clock; and for leases from the future, by how long it was watched.
            if now - stat.modified.timestamp() >= DEAD_AFTER_S or time.monotonic() - began >= DEAD_AFTER_S:
                return True
            if not self._patient:
                self._alive(other)
            if self._stop():
                raise StoppedError("stopped while waiting for a lease")
            time.sleep(_POLL_S)

    def _alive(self, other: _Lease) -> bool:
        now, _ = self._read()
        if now is not None and now.token == other.token:
            raise SlideLockedError(
                f"another process ({other.pid} on {other.host}) is writing it; wait for that to end and run"
                " the same command again."
            )
        return False

    def _now(self) -> float:
        return _now(self._bucket)

    def _read(self) -> tuple[_Lease | None, str | None]:
        """The lease that is there, and its version; a damaged one counts as none."""
        stat = self._bucket.stat(self._key)
        return _lease_in(self._bucket, self._key), None if stat is None else stat.version

    def _write(self, lease: _Lease) -> None:
        """Write it in place of the version that was seen last."""
        if self._conditions:
            self._version = self._bucket.put_if(self._key, lease.written(), self._version)
        else:
            self._version = self._bucket.put(self._key, lease.written())

    def _keep_fresh(self) -> None:
        while not self._released.wait(_BEAT_S):
            with self._writing:
                if self._released.is_set() or self._lost:
                    return
                began = time.monotonic()
                beat = _Lease(**{**asdict(self._mine), "beat": self._mine.beat + 1})
                try:
                    if not self._still_mine():
                        self._lost = True
                        return
                    self._write(beat)
                except Conflict:
                    # Of our own write, whose answer was lost, or another's.
                    self._lost = not self._find_own_version()
                except RemoteError as error:
                    _LOG.info("a lease cannot be kept fresh: %s", printable(first_line(error)))
                else:
                    self._mine, self._fresh_until = beat, began + _FRESH_FOR_S

    def _still_mine(self) -> bool:
        """Where writes have no conditions, look who is there before writing over it."""
        if self._conditions:
            return True
        there, _ = self._read()
        return there is not None and there.token == self._mine.token

    def _find_own_version(self) -> bool:
        try:
            there, version = self._read()
        except RemoteError:
            return True  # asked again at the next beat; until then the lease goes stale
        self._version = version
        return there is not None and there.token == self._mine.token


def lease_holder(store: Url, slide_key: str) -> LockHolder | None:
    """Who writes a slide now; None where nobody has given a sign of life for a minute."""
    bucket, key = Bucket(leases_of(store)), file_name(slide_key, _ENDING)
    lease, stat = _lease_in(bucket, key), bucket.stat(key)
    if lease is None or not lease.token or stat is None:
        return None
    if _now(bucket) - stat.modified.timestamp() >= DEAD_AFTER_S:
        return None
    return LockHolder(lease.pid, lease.host, lease.since)


@lru_cache(maxsize=64)
def _knows_conditions(bucket: Bucket) -> bool:
    """Whether a server refuses to write over what is there when asked to: some do not, and do not say so."""
    probe = f"{uuid.uuid4().hex}.now"
    bucket.put(probe, b"1")
    try:
        bucket.put_if(probe, b"2", None)
    except Conflict:
        return True
    except NoConditions:
        pass
    finally:
        bucket.delete([probe])
    _LOG.info("%s knows no conditional writes", printable(str(bucket.url)))
    return False


def _lease_in(bucket: Bucket, key: str) -> _Lease | None:
    content = bucket.get(key)
    try:
        return None if content is None else _Lease(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _now(bucket: Bucket) -> float:
    """Time by the clock that stamps a server's objects."""
    probe = f"{uuid.uuid4().hex}.now"
    bucket.put(probe, b"")
    try:
        stat = bucket.stat(probe)
        return time.time() if stat is None else stat.modified.timestamp()
    finally:
        bucket.delete([probe])
