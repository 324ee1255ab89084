"""How a run goes about its work."""

from __future__ import annotations

import os
from dataclasses import dataclass

_MOST_WORKERS = 16


@dataclass(frozen=True)
class ExtractOptions:
    """How a run goes about its work; none of it changes an embedding, but `tissue_min` leaves some out.

    Attributes
    ----------
    batch_size
        Windows read, embedded and kept together; None: 32 on a CPU, 256 elsewhere.
    workers
        Threads that decode tiles and resize windows; None: one a CPU core, at most 16.
    chunk
        Rows of a chunk of the store.
    overwrite
        Replace what another recipe made.
    cache_mb
        Memory for decoded tiles, of each slide in flight, in MiB; up to three slides may be: one that is
        read, one that is opened ahead, one that is written. Windows that need more get more.
    tissue_min
        Windows with a smaller share of tissue are not embedded.
    """

    batch_size: int | None = None
    workers: int | None = None
    chunk: int = 1024
    overwrite: bool = False
    cache_mb: int = 256
    tissue_min: float = 0.0

    @property
    def threads(self) -> int:
        """Number of reading threads."""
        return self.workers or min(usable_cores(), _MOST_WORKERS)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
