"""The pipeline: slides are opened ahead, windows read ahead, embedded in order, kept by a writing thread.

reading threads -> (bounded) -> device -> (bounded) -> writing thread; the main thread feeds the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from mmap_st.errors import StoppedError
from mmap_st.extract.encoders import Encoder
from mmap_st.extract.engine.ahead import Opener, ReadAhead, wait_for
from mmap_st.extract.engine.device import DeviceQueue
from mmap_st.extract.engine.keeper import Keeper
from mmap_st.extract.engine.session import Outcome, SlideSession, of_one_slide
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
    device: _Queue = DeviceQueue(encoder, stop)
    with ReadAhead(plans, opener, threads, device.allocate, stop) as ahead, Keeper(kept) as keeper:
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
                    _drain(device, keeper)
                    keeper.end(session)
                elif session.failure is not None:
                    _leave(future)
                elif (windows := _result(session, future, stop)) is not None:
                    _put(device, keeper, session, windows)
                yield from keeper.outcomes()
        finally:
            # Also when the run is stopped: what is embedded is kept.
            _drain(device, keeper)
        yield from keeper.finish()


_Queue = DeviceQueue[tuple[SlideSession, Windows]]


def _put(device: _Queue, keeper: Keeper, session: SlideSession, windows: Windows) -> None:
    """Give a batch to the device; pass on what it has finished where it has enough to do."""
    busy = device.busy_s
    device.put(windows.pixels, (session, windows.without_pixels()))
    session.telemetry.device_s += device.busy_s - busy
    while device.full:
        _take(device, keeper)


def _drain(device: _Queue, keeper: Keeper) -> None:
    """Pass on all that the device has been given."""
    while len(device):
        _take(device, keeper)


def _take(device: _Queue, keeper: Keeper) -> None:
    busy = device.busy_s
    (session, windows), embedding = device.take()
    session.telemetry.device_s += device.busy_s - busy
    keeper.keep(session, windows, embedding)


def _result(session: SlideSession, future: Future[Windows], stop: Callable[[], bool]) -> Windows | None:
    """Wait for windows; None, and a failed slide, if they cannot be read."""
    waiting = time.perf_counter()
    try:
        return wait_for(future, stop)
    except StoppedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
        session.failure = of_one_slide(error)
        return None
    finally:
        session.telemetry.read_wait_s += time.perf_counter() - waiting


def _leave(future: Future[Windows]) -> None:
    """Do without windows of a slide that failed; while they are being read its image must stay open."""
    if not future.cancel():
        future.exception()
