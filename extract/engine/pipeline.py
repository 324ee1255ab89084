"""The pipeline: slides are opened ahead, windows read ahead, embedded in order, kept by a writing thread.

reading threads -> (bounded) -> device -> (bounded) -> writing thread; the main thread feeds the device.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress

from mmap_st.errors import SlideError, StoppedError
from mmap_st.extract.encoders import Encoder
from mmap_st.extract.engine.ahead import Opener, ReadAhead
from mmap_st.extract.engine.device import DeviceQueue
from mmap_st.extract.engine.keeper import Keeper
from mmap_st.extract.engine.session import Outcome, SlideSession
from mmap_st.extract.plan import SlidePlan
from mmap_st.extract.reading.reader import Windows


def embed_slides(
    plans: Iterable[SlidePlan],
    opener: Opener,
    encoder: Encoder,
    threads: int,
    *,
    begun: Callable[[SlideSession], None],
    kept: Callable[[int], None],
    stop: Callable[[], bool],
) -> Iterator[Outcome]:
    """Embed slides one after the other with no pause between them; yield each when it is done or has failed.

    Parameters
    ----------
    plans, opener
        The slides, and what opens one.
    encoder
        On its device.
    threads
        Number of reading threads.
    begun, kept
        Called when a slide's first windows arrive, and with the number of windows that were just kept.
    stop
        Asked between batches; True ends the run there.

    Raises
    ------
    StoppedError
        If `stop` asked for it; batches that are embedded are kept.
    """
    device = DeviceQueue(encoder, stop)
    with ReadAhead(plans, opener, threads, device.allocate) as ahead, Keeper(kept) as keeper:
        feed = _Feed(device, keeper)
        current: SlideSession | None = None
        try:
            for item in ahead:
                if stop():
                    raise StoppedError("stopped between two batches")
                if isinstance(item, Outcome):
                    yield item
                    continue
                session, future = item
                if session is not current:
                    current = session
                    session.telemetry.begin()
                    begun(session)
                if future is None:
                    feed.drain()
                    keeper.end(session)
                elif session.failure is not None:
                    _leave(future)
                elif (windows := _result(session, future)) is not None:
                    feed.put(session, windows)
                yield from keeper.outcomes()
        finally:
            # Also when the run is stopped: what is embedded is kept.
            feed.drain()
        yield from keeper.finish()


class _Feed:
    """The device, and whose batches are on it."""

    def __init__(self, device: DeviceQueue, keeper: Keeper) -> None:
        self._device, self._keeper = device, keeper
        self._under_way: deque[tuple[SlideSession, Windows]] = deque()

    def put(self, session: SlideSession, windows: Windows) -> None:
        """Give a batch to the device; pass on what it has finished where it has enough to do."""
        busy = self._device.busy_s
        self._device.put(windows.pixels)
        self._under_way.append((session, windows))
        session.telemetry.device_s += self._device.busy_s - busy
        while self._device.full:
            self._take()

    def drain(self) -> None:
        """Pass on all that the device has been given."""
        while self._under_way:
            self._take()

    def _take(self) -> None:
        session, windows = self._under_way.popleft()
        busy = self._device.busy_s
        embedding = self._device.take()
        session.telemetry.device_s += self._device.busy_s - busy
        self._keeper.keep(session, windows, embedding)


def _result(session: SlideSession, future: Future[Windows]) -> Windows | None:
    """Wait for windows; None, and a failed slide, if they cannot be read."""
    waiting = time.perf_counter()
    try:
        return future.result()
    except SlideError as error:
        session.failure = error
        return None
    finally:
        session.telemetry.read_wait_s += time.perf_counter() - waiting


def _leave(future: Future[Windows]) -> None:
    """Do without windows of a slide that failed; while they are being read its image must stay open."""
    if not future.cancel():
        with suppress(SlideError):
            future.result()
