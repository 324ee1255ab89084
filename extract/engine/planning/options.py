"""How a run goes about its work, and what of this machine it takes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mmap_st.extract.engine.planning.sharing_out import Shard
from mmap_st.extract.slides import Stage
from mmap_st.extract.slides import free_memory as free_memory  # imported from here too
from mmap_st.extract.store import Publication

_MOST_WORKERS = 16
_LEAST_CACHE_MB = 256
#: Of the free memory, the tiles of one slide take at most one part in this many.
_SHARE_OF_MEMORY = 8


@dataclass(frozen=True)
class ExtractOptions:
    """How a run goes about its work; none of it changes an embedding, but `tissue_min` leaves some out.

    Attributes
    ----------
    batch_size
        Windows read, embedded and kept together; None: 32 on a CPU, 256 elsewhere.
    workers
        Threads that decode tiles and resize windows; None: one a CPU core, at most 16 a process.
    chunk
        Rows of a chunk of the store.
    overwrite
        Replace what another recipe made.
    cache_mb
        Memory for decoded tiles, of each slide in flight, in MiB; up to three slides may be: one that is
        read, one that is opened ahead, one that is written. Windows that need more get more. None: what
        keeps all reading threads busy, see `cache_bytes`.
    tissue_min
        Windows with a smaller share of tissue are not embedded.
    unchecked
        Take spots also where they would plainly fit the tissue better turned, mirrored or scaled.
    enlarge
        Make windows also where they are enlarged more than 4 times from the pixels of the slide.
    resample
        Where windows are resized: ``auto``, on the GPU that embeds them where it makes the same pixels to the
        bit, else on the CPU; or ``cpu``.
    shard
        The part of the cohort's slides that are embedded; None: all of them.
    claim
        Leave slides that another job is embedding to it, and wait for it in the end.
    stage
        Where slides are copied to while they are embedded; None: they are read where they lie, and those of
        servers are fetched to the cache.
    publish
        Where slides are published when they are complete; None: they are written where they stay.
    processes
        Processes of this run on this machine, which share `workers` and the free memory.
    """

    batch_size: int | None = None
    workers: int | None = None
    chunk: int = 1024
    overwrite: bool = False
    cache_mb: int | None = None
    tissue_min: float = 0.0
    unchecked: bool = False
    enlarge: bool = False
    resample: str = "auto"
    shard: Shard | None = None
    claim: bool = False
    stage: Stage | None = None
    publish: Publication | None = None
    processes: int = 1

    @property
    def threads(self) -> int:
        """Number of reading threads of one process."""
        together = self.workers or min(usable_cores(), _MOST_WORKERS * self.processes)
        return max(1, together // self.processes)

    @property
    def step_bytes(self) -> int:
        """Most bytes of decoded tiles that the windows of one reading step may need together."""
        return (self.cache_mb or _LEAST_CACHE_MB) << 20

    def cache_bytes(self, tiles_bytes: int, bytes_to_decode_once: int = 0) -> int:
        """Memory for the decoded tiles of a slide.

        Every reading thread holds the tiles of its own step. Where they do not fit together, threads wait
        for each other, and tiles are decoded again (benchmarks/README.md).

        Parameters
        ----------
        tiles_bytes
            Bytes of the tiles of the step that needs most of them.
        bytes_to_decode_once
            See `ReadPlan`: slides that are stored in large chunks need more than a step at a time.
        """
        if self.cache_mb is not None:
            return self.cache_mb << 20
        most = max(free_memory() // (_SHARE_OF_MEMORY * self.processes), self.step_bytes)
        return min(max((self.threads + 1) * tiles_bytes, bytes_to_decode_once, self.step_bytes), most)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
