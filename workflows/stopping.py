"""How Ctrl-C and SIGTERM stop a long run between two batches, in a terminal and in a notebook."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mmap_st.errors import StoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether the user asked to stop; a second signal stops at once.

    Python raises KeyboardInterrupt wherever the main thread happens to be. Between threads that is inside of
    a lock now and then, which then stays locked, and the program hangs instead of ending. Outside of the main
    thread signals cannot be handled: they stay as they are, and the function is always False.

    Raises
    ------
    StoppedError
        Where the work ends with one; it then has the number of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, receive) for number in _SIGNALS}
    try:
        yield lambda: bool(received)
    except StoppedError as error:
        if received:
            error.signal_number = received[0]
        raise
    finally:
        restore()
