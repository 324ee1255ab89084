"""The pipeline: slides are opened ahead, windows prefetched, embedded in order, written by one thread.

reading threads -> (bounded queue) -> device -> (bounded queue) -> writing thread; the main thread feeds the
device.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import StoppedError, of_one_slide
from mmap_st.extract.encoders import Encoder
from mmap_st.extract.engine.device import DeviceQueue
from mmap_st.extract.engine.planning import Planned
from mmap_st.extract.engine.session import Outcome, SlideSession
from mmap_st.extract.windows import Pixels, Windows

_WAITING_BATCHES = 8

_Batch = tuple[Windows, NDArray[np.float32]]


class ResultWriter:
    """Writes batches and publishes slides in a thread of its own, in the order in which they come.

    Parameters
    ----------
    on_batch_written
        Called with the slide and the number of windows of each batch once it is saved.
    """

    def __init__(self, on_batch_written: Callable[[SlideSession, int], None]) -> None:
        self._on_batch_written = on_batch_written
        self._queue: queue.Queue[tuple[SlideSession, _Batch | None] | None] = queue.Queue(_WAITING_BATCHES)
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._defect: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)

    def __enter__(self) -> ResultWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._join()

    def save(self, session: SlideSession, windows: Windows, embedding: NDArray[np.float32]) -> None:
        """Save a batch; a failure is the slide's, and is seen in its session."""
        self._put((session, (windows, embedding)))

    def end(self, session: SlideSession) -> None:
        """All batches of a slide were given: publish it, unless it failed, and close it."""
        self._put((session, None))

    def outcomes(self) -> Iterator[Outcome]:
        """The slides that ended since."""
        while not self._outcomes.empty():
            yield self._outcomes.get()

    def finish(self) -> Iterator[Outcome]:
        """Wait until all is written; the slides that ended since."""
        self._join()
        if self._defect is not None:
            raise self._defect
        yield from self.outcomes()

    def _put(self, item: tuple[SlideSession, _Batch | None]) -> None:
        if self._defect is not None:
            raise self._defect
        self._queue.put(item)

    def _join(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            session, batch = item
            if self._defect is not None:
                continue  # so that nobody waits for room in the queue
            try:
                if batch is not None:
                    self._save(session, *batch)
                else:
                    self._end(session)
            except BaseException as defect:  # noqa: BLE001 - raised again in the main thread
                self._defect = defect

    def _save(self, session: SlideSession, windows: Windows, embedding: NDArray[np.float32]) -> None:
        if session.failure is not None:
            return
        try:
            session.save(windows.source_of, windows.row_of, windows.readable, embedding)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            session.failure = of_one_slide(error)
        else:
            self._on_batch_written(session, len(windows))

    def _end(self, session: SlideSession) -> None:
        try:
            if session.failure is None:
                session.publish()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            session.failure = of_one_slide(error)
        finally:
            session.close()
        self._outcomes.put(Outcome(session.plan, session, session.failure))


_MORE_THAN_THREADS = 2

_MOST_OPEN = 2
_POLL_S = 0.2
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Reading:
    """A batch that is being read: its steps, side by side, each into its own part of the pixels.

    Attributes
    ----------
    pixels
        (b, px, px, 3) uint8.
    steps
        Windows of each step.
    """

    pixels: Pixels
    steps: tuple[Future[Windows], ...]

    def result(self, stop: Callable[[], bool]) -> Windows:
        """Wait for all steps.

        Raises
        ------
        StoppedError
            If `stop` requests it before that.
        SlideError
            What reading one of them raised.
        """
        return Windows.joined([wait_for(step, stop) for step in self.steps], self.pixels)

    def leave(self) -> None:
        """Discard them; while a step is being read the slide's image must stay open."""
        for step in self.steps:
            if not step.cancel():
                step.exception()


Allocate = Callable[[tuple[int, int, int, int], bool], Pixels]
Opener = Callable[[Planned, Callable[[], bool]], SlideSession]
#: A slide that could not be opened; windows that are being read; or, without windows, the end of a slide.
Item = Outcome | tuple[SlideSession, Reading | None]


class Prefetcher:
    """Iterates over the batches of many slides in order; closes any slide that is still open on exit.

    Parameters
    ----------
    plans, opener
        The slides, and what opens one; it is given what to ask, while it waits, whether to stop.
    threads
        Number of reading threads; batches with this many steps and two more are in flight at a time.
    allocate
        Gives memory for windows of a shape, on the device or not.
    stop
        Asked while waiting; True ends the waiting.
    """

    def __init__(
        self,
        plans: Iterable[Planned],
        opener: Opener,
        threads: int,
        allocate: Allocate,
        stop: Callable[[], bool],
    ) -> None:
        self._plans, self._opener = iter(plans), opener
        self._allocate, self._stop = allocate, stop
        self._leaving = False
        self._threads = threads
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._opening = ThreadPoolExecutor(1, thread_name_prefix="open")
        self._opened: list[Future[SlideSession]] = []

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True  # a slide that waits to be opened may wait for one that is open
        self._opening.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        with ExitStack() as closing:  # all of them, whatever one of them raises
            for future in self._opened:
                if not future.cancelled() and future.exception() is None:
                    closing.callback(future.result().close)

    def __iter__(self) -> Iterator[Item]:
        items: deque[Item] = deque()
        session: SlideSession | None = None
        number = 0
        following = self._open_next()
        while True:
            while not self._enough(items):
                if session is not None:
                    if number < len(session.batches) and session.failure is None:
                        items.append((session, self._read(session, session.batches[number])))
                        number += 1
                    else:
                        items.append((session, None))
                        session = None
                    continue
                # With windows still to embed, a slide that is not yet open is not waited for.
                if following is None or (items and not following[1].done()):
                    break
                plan, opening = following
                following = None
                try:
                    session, number = wait_for(opening, self._stop), 0
                except StoppedError:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
                    items.append(Outcome(plan, None, of_one_slide(error)))
            # No third slide is opened, since each takes the memory of its tiles.
            if following is None and len(_sessions(items, session)) < _MOST_OPEN:
                following = self._open_next()
            if items:
                yield items.popleft()
            elif following is None:
                return

    def _enough(self, items: Iterable[Item]) -> bool:
        """Whether all threads have something to read, and some more batches are in flight."""
        steps = [len(item[1].steps) for item in items if isinstance(item, tuple) and item[1] is not None]
        ahead = steps[: len(steps) - _MORE_THAN_THREADS] if len(steps) > _MORE_THAN_THREADS else []
        return sum(ahead) >= self._threads

    def _read(self, session: SlideSession, batch: range) -> Reading:
        plan = session.reading
        start, stop = plan.step_windows[batch.start], plan.step_windows[batch.stop]
        shape = (int(stop - start), plan.input_px, plan.input_px, 3)
        pixels = self._allocate(shape, session.reader.on_device)
        steps = []
        for step in batch:
            part = pixels[plan.step_windows[step] - start : plan.step_windows[step + 1] - start]
            steps.append(self._readers.submit(session.reader.read, step, part))
        return Reading(pixels, tuple(steps))

    def _is_over(self) -> bool:
        return self._leaving or self._stop()

    def _open_next(self) -> tuple[Planned, Future[SlideSession]] | None:
        plan = next(self._plans, None)
        if plan is None:
            return None
        self._opened = [future for future in self._opened if not _is_closed(future)]
        self._opened.append(self._opening.submit(self._opener, plan, self._is_over))
        return plan, self._opened[-1]


def _is_closed(future: Future[SlideSession]) -> bool:
    """Whether nothing of a slide is left to be closed, so that it can be forgotten."""
    return future.done() and (future.exception() is not None or future.result().closed)


def _sessions(items: Iterable[Item], session: SlideSession | None) -> set[int]:
    """Which slides are open and not yet read to their end."""
    return {id(item[0]) for item in items if isinstance(item, tuple)} | ({id(session)} if session else set())


def wait_for(future: Future[_Result], stop: Callable[[], bool]) -> _Result:
    """Wait for a result.

    Raises
    ------
    StoppedError
        If `stop` requests it before that.
    """
    while True:
        try:
            return future.result(timeout=_POLL_S)
        except TimeoutError:
            if future.done():
                return future.result()
            if stop():
                raise StoppedError("stopped while reading") from None


def embed_slides(
    plans: Iterable[Planned],
    opener: Opener,
    encoder: Encoder,
    threads: int,
    *,
    on_slide_start: Callable[[SlideSession], None],
    on_batch_written: Callable[[SlideSession, int], None],
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
    on_slide_start, on_batch_written
        Called when a slide's first windows arrive, and with a slide and how many of its windows were just
        written.
    stop
        Asked between batches; True ends the run there.

    Raises
    ------
    StoppedError
        If `stop` requested it; embedded batches are saved.
    """
    device: _Queue = DeviceQueue(encoder, stop)
    with (
        Prefetcher(plans, opener, threads, device.allocate, stop) as items,
        ResultWriter(on_batch_written) as writer,
    ):
        current: SlideSession | None = None
        try:
            for item in items:
                if stop():
                    raise StoppedError("stopped between two batches")
                if isinstance(item, Outcome):
                    yield item
                    continue
                session, reading = item
                if session is not current:
                    current = session
                    session.telemetry.begin()
                    on_slide_start(session)
                if reading is None:
                    _drain(device, writer)
                    writer.end(session)
                elif session.failure is not None:
                    reading.leave()
                elif (windows := _result(session, reading, stop)) is not None:
                    _put(device, writer, session, windows)
                yield from writer.outcomes()
        finally:
            # Also when the run is stopped: what is embedded is saved.
            _drain(device, writer)
        yield from writer.finish()


_Queue = DeviceQueue[tuple[SlideSession, Windows]]


def _put(device: _Queue, writer: ResultWriter, session: SlideSession, windows: Windows) -> None:
    """Give a batch to the device; pass on what it has finished where it has enough to do."""
    busy = device.busy_s
    device.put(windows.pixels, (session, windows.without_pixels()))
    session.telemetry.device_s += device.busy_s - busy
    while device.full:
        _take(device, writer)


def _drain(device: _Queue, writer: ResultWriter) -> None:
    """Pass on all that the device has been given."""
    while len(device):
        _take(device, writer)


def _take(device: _Queue, writer: ResultWriter) -> None:
    busy = device.busy_s
    (session, windows), embedding = device.take()
    session.telemetry.device_s += device.busy_s - busy
    writer.save(session, windows, embedding)


def _result(session: SlideSession, reading: Reading, stop: Callable[[], bool]) -> Windows | None:
    """Wait for windows; None, and a failed slide, if they cannot be read."""
    waiting = time.perf_counter()
    try:
        return reading.result(stop)
    except StoppedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
        session.failure = of_one_slide(error)
        reading.leave()
        return None
    finally:
        session.telemetry.read_wait_s += time.perf_counter() - waiting
