"""Where the threads of a run spend their time, by samples: what the device waits for."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

#: Seconds between two samples: rare enough to cost the run nothing.
EVERY_S = 0.01
#: How many places of a thread are told.
MOST = 8


@contextmanager
def sampled_threads(names: tuple[str, ...]) -> Iterator[dict[str, dict[str, float]]]:
    """Sample the threads of these names; on exit, the share of samples by thread and place.

    A place is the package's innermost function and, where that has called a library, the function there.
    """
    seen: dict[str, Counter[str]] = {name: Counter() for name in names}
    shares: dict[str, dict[str, float]] = {}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(EVERY_S):
            frames = sys._current_frames()
            for thread in threading.enumerate():
                if thread.name in seen and thread.ident in frames:
                    seen[thread.name][_place(frames[thread.ident])] += 1

    sampler = threading.Thread(target=sample, name="sample", daemon=True)
    sampler.start()
    try:
        yield shares
    finally:
        done.set()
        sampler.join()
        for name, places in seen.items():
            count = max(places.total(), 1)
            shares[name] = {place: found / count for place, found in places.most_common(MOST)}


def _place(frame: FrameType) -> str:
    innermost, own = frame, frame
    while "mmap_st" not in own.f_code.co_filename and own.f_back is not None:
        own = own.f_back
    if own is innermost:
        return _name(own)
    return f"{_name(own)} > {_name(innermost)}"


def _name(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}:{frame.f_lineno}"
