"""Reading ahead: the next slide is opened while one is read, and windows while others are embedded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from mmap_st.extract.engine.session import OF_ONE_SLIDE, Outcome, SlideSession
from mmap_st.extract.plan import SlidePlan
from mmap_st.extract.reading.reader import Allocate, Windows

_MORE_THAN_THREADS = 2

Opener = Callable[[SlidePlan], SlideSession]
#: A slide that could not be opened; windows on their way; or, without windows, the end of a slide.
Item = Outcome | tuple[SlideSession, Future[Windows] | None]


class ReadAhead:
    """Iterates over the batches of many slides in order; closes the slides that nobody closed on leaving.

    Parameters
    ----------
    plans, opener
        The slides, and what opens one.
    threads
        Number of reading threads; so many batches and two more are on their way at a time.
    allocate
        Gives memory for windows.
    """

    def __init__(self, plans: Iterable[SlidePlan], opener: Opener, threads: int, allocate: Allocate) -> None:
        self._plans, self._opener = iter(plans), opener
        self._allocate = allocate
        self._depth = threads + _MORE_THAN_THREADS
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._opening = ThreadPoolExecutor(1, thread_name_prefix="open")
        self._opened: list[Future[SlideSession]] = []

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opening.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        for future in self._opened:
            if not future.cancelled() and future.exception() is None:
                future.result().close()

    def __iter__(self) -> Iterator[Item]:
        items: deque[Item] = deque()
        session: SlideSession | None = None
        step = 0
        following = self._open_next()
        while True:
            while len(items) < self._depth:
                if session is not None:
                    if step < len(session.reading) and session.failure is None:
                        items.append((session, self._read(session, step)))
                        step += 1
                    else:
                        items.append((session, None))
                        session = None
                    continue
                # With windows still to embed, a slide that is not yet open is not waited for.
                if following is None or (items and not following[1].done()):
                    break
                plan, opening = following
                try:
                    session, step = opening.result(), 0
                except OF_ONE_SLIDE as error:
                    items.append(Outcome(plan, None, error))
                following = self._open_next()
            if not items:
                return
            yield items.popleft()

    def _read(self, session: SlideSession, step: int) -> Future[Windows]:
        return self._readers.submit(session.reader.read, step, self._allocate)

    def _open_next(self) -> tuple[SlidePlan, Future[SlideSession]] | None:
        plan = next(self._plans, None)
        if plan is None:
            return None
        self._opened = [future for future in self._opened if not _is_closed(future)]
        self._opened.append(self._opening.submit(self._opener, plan))
        return plan, self._opened[-1]


def _is_closed(future: Future[SlideSession]) -> bool:
    """Whether nothing of a slide is left to be closed, so that it can be forgotten."""
    return future.done() and (future.exception() is not None or future.result().closed)
