"""Ctrl-C and SIGTERM in a long run: stop between two batches, where nothing is half done."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mmap_st.errors import StoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Exit statuses of a run that was stopped, as shells give them.
STOPPED = tuple(128 + number for number in _SIGNALS)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether the user asked to stop; a second signal stops at once.

    Python raises KeyboardInterrupt wherever the main thread happens to be. Between threads that is inside of
    a lock now and then, which then stays locked, and the program hangs instead of ending.

    Raises
    ------
    SystemExit
        With 128 and the signal's number, where the work ended with a `StoppedError`.
    """
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        asked.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield lambda: bool(asked)
    except StoppedError as error:
        raise SystemExit(128 + (asked or [signal.SIGINT])[0]) from error
    finally:
        restore()
