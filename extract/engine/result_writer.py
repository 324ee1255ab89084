"""The writing thread: saves batches, publishes slides, closes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.engine.session import Outcome, SlideSession, of_one_slide
from mmap_st.extract.windows import Windows

_WAITING_BATCHES = 8

_Batch = tuple[Windows, NDArray[np.float32]]


class ResultWriter:
    """Writes batches and publishes slides in a thread of its own, in the order in which they come.

    Parameters
    ----------
    on_batch_written
        Called with the number of windows of each batch once it is saved.
    """

    def __init__(self, on_batch_written: Callable[[int], None]) -> None:
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
            self._on_batch_written(len(windows))

    def _end(self, session: SlideSession) -> None:
        try:
            if session.failure is None:
                session.publish()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            session.failure = of_one_slide(error)
        finally:
            session.close()
        self._outcomes.put(Outcome(session.plan, session, session.failure))
