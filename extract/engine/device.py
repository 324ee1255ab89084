"""The device: windows in, embeddings out, in order, without waiting for each batch on a GPU."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import DeviceError, StoppedError, counted, first_line, printable
from mmap_st.extract.encoders import Encoder
from mmap_st.extract.windows import Pixels

if TYPE_CHECKING:
    import torch
import ctypes
import sys

_LOG = logging.getLogger(__name__)
#: Batches that a GPU has been given and not yet finished: while it works on one, the next is on its way.
_UNDER_WAY = 3
#: What a device without memory says where torch has no error of its own: cuBLAS, pinned memory, MPS.
_NO_MEMORY = ("out of memory", "alloc_failed", "not enough memory")
Tag = TypeVar("Tag")


@dataclass
class _Batch(Generic[Tag]):
    """Embeddings that are on their way back from the device, and the events around their making.

    Both ends' memory is kept, since copies may still be running.
    """

    tag: Tag
    windows: Pixels
    parts: list[torch.Tensor] = field(default_factory=list)
    began: Any = None
    ended: Any = None


class DeviceQueue(Generic[Tag]):
    """Embeds batches in the order in which they are put, each with a tag that tells whose it is.

    On CUDA `put` returns at once: windows are copied on a stream of their own from pinned memory, and results
    come back without a synchronisation until they are taken. Elsewhere `put` computes.

    Parameters
    ----------
    encoder
        On its device.
    stop
        Asked between the steps of a batch; True ends the run there.
    graphs
        Whether full steps are replayed as one CUDA graph, where that gives the same numbers.

    Attributes
    ----------
    step
        Windows that the network takes at a time; halved where the device has too little memory.
    busy_s
        Seconds that the device computed, of the batches taken.
    recorded
        A full step as a CUDA graph, from the second one on; None where there is none.
    """

    def __init__(
        self, encoder: Encoder, stop: Callable[[], bool] = lambda: False, graphs: bool = True
    ) -> None:
        import torch

        self._encoder, self._stop = encoder, stop
        self._device = torch.device(encoder.device)
        self._cuda = self._device.type == "cuda"
        self._copies = torch.cuda.Stream(self._device) if self._cuda else None
        self._under_way: deque[_Batch[Tag]] = deque()
        self.recorded: StepGraph | None = None
        self._may_record = self._cuda and graphs
        self.step = encoder.step
        self.busy_s = 0.0

    def __len__(self) -> int:
        """Batches that are put and not taken."""
        return len(self._under_way)

    @property
    def full(self) -> bool:
        """Whether a batch should be taken before the next is put."""
        return len(self._under_way) >= (_UNDER_WAY if self._cuda else 1)

    def allocate(self, shape: tuple[int, ...], on_device: bool = False) -> Pixels:
        """Memory for windows: on the device, or such from which they can be copied to it.

        Raises
        ------
        DeviceError
            If the device has too little.
        """
        import torch

        if on_device:
            try:
                # Not of the computing stream, whose freed memory its own kernels may still be using.
                with torch.cuda.stream(self._copies):
                    return torch.empty(shape, dtype=torch.uint8, device=self._device)
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"{self._device} has too little memory for windows; free some, or run the same command"
                    " again with --resample cpu or a smaller --batch-size."
                ) from error
        array: NDArray[np.uint8] = torch.empty(shape, dtype=torch.uint8, pin_memory=self._cuda).numpy()
        return array

    def put(self, windows: Pixels, tag: Tag) -> None:
        """Embed windows (b, px, px, 3) uint8, which are all there.

        Raises
        ------
        DeviceError
            If the device has too little memory for a single window.
        StoppedError
            If `stop` requested it.
        """
        import torch

        while True:
            try:
                self._under_way.append(self._launch(windows, tag))
                return
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is one of them
                if not _is_out_of_memory(error):
                    raise
                if self.step == 1:
                    raise DeviceError(
                        f"{self._device} has too little memory for one window of {self._encoder.spec.name};"
                        " free some or choose another --device, and run the same command again."
                    ) from error
                self.step = max(self.step // 2, 1)
                self.recorded, self._may_record = None, False  # its own memory is given back too
                _LOG.warning(
                    "%s is out of memory: from here on %s at a time",
                    self._device,
                    counted(self.step, "window"),
                )
            # Outside of the handler, where the failed step's tensors are gone.
            if self._cuda:
                torch.cuda.synchronize(self._device)
                torch.cuda.empty_cache()

    def take(self) -> tuple[Tag, NDArray[np.float32]]:
        """The oldest batch's tag and embeddings (b, d); waits for that batch alone."""
        import torch

        batch = self._under_way.popleft()
        if batch.ended is not None:
            batch.ended.synchronize()
            self.busy_s += batch.began.elapsed_time(batch.ended) / 1e3
        embeddings: NDArray[np.float32] = torch.cat(batch.parts).numpy()
        return batch.tag, embeddings

    def _launch(self, windows: Pixels, tag: Tag) -> _Batch[Tag]:
        import torch

        batch = _Batch(tag, windows)
        # On a CPU steps are filled up as ever, so that bits do not depend on when memory was short.
        filled = self._encoder.step if self._device.type == "cpu" else self.step
        started = time.perf_counter()
        # Streams and events are those of the current device, which need not be the encoder's.
        here = torch.cuda.device(self._device) if self._cuda else nullcontext()
        with torch.inference_mode(), here:
            if self._cuda:
                # A thread that waits for one sleeps, and leaves its core to those that read.
                batch.began, batch.ended = (
                    torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2)
                )
                batch.began.record()
            for start in range(0, len(windows), self.step):
                if self._stop():
                    raise StoppedError("stopped while embedding")
                pixels = self._upload(windows[start : start + self.step])
                batch.parts.append(self._download(self._forward(pixels, filled)))
            if self._cuda:
                batch.ended.record()
            else:
                self.busy_s += time.perf_counter() - started
        return batch

    def _forward(self, pixels: torch.Tensor, filled: int) -> torch.Tensor:
        """One step: replayed where it is a full one and recorded, else launched kernel by kernel."""
        if len(pixels) < self.step:
            return self._encoder.forward(pixels, filled)
        if self.recorded is not None:
            return self.recorded(pixels)
        embedded = self._encoder.forward(pixels, filled)
        if self._may_record:
            self._may_record = False
            self.recorded = StepGraph.record(self._encoder, pixels, embedded)
        return embedded

    def _upload(self, windows: Pixels) -> torch.Tensor:
        import torch

        host = windows if isinstance(windows, torch.Tensor) else torch.from_numpy(windows)
        if self._copies is None:
            return host.to(self._device)
        with torch.cuda.stream(self._copies):
            pixels = host.to(self._device, non_blocking=True)  # itself, where it is there already
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copies)
        # The memory is the copying stream's; it may not be given away before the computing one is done.
        pixels.record_stream(computing)
        return pixels

    def _download(self, embedded: torch.Tensor) -> torch.Tensor:
        import torch

        if not self._cuda:
            return embedded.cpu()
        host = torch.empty(embedded.shape, dtype=embedded.dtype, pin_memory=True)
        return host.copy_(embedded, non_blocking=True)


@dataclass(frozen=True)
class StepGraph:
    """A step of the network as one CUDA graph.

    A transformer's step is some thousand kernels, and threads that read windows share Python's lock with the
    one that launches them: with 16 of these the launches of UNI take 93 ms of a step of 93 ms, and of UNI2-h
    233 ms of 256 ms (benchmarks/README.md). A graph is launched at once.
    """

    pixels: torch.Tensor
    embedded: torch.Tensor
    graph: torch.cuda.CUDAGraph

    @classmethod
    def record(cls, encoder: Encoder, pixels: torch.Tensor, embedded: torch.Tensor) -> StepGraph | None:
        """Record what made `embedded` of `pixels` and replay it once; None where that does not give the same.

        A network that waits for the device (`.item()`), or for whose second set of activations there is too
        little memory, cannot be recorded.
        """
        import torch

        try:
            held, graph = pixels.clone(), torch.cuda.CUDAGraph()
            # Threads that read go on taking pinned memory meanwhile, which concerns this graph no more.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                made = encoder.forward(held, len(held))
            graph.replay()
            if torch.equal(made, embedded):
                return cls(held, made, graph)
            reason = "a replay gives other numbers"
        except RuntimeError as error:  # torch.OutOfMemoryError and torch.AcceleratorError are among them
            reason = first_line(error)
        _LOG.info("%s is launched kernel by kernel: %s", printable(encoder.spec.name), reason)
        return None

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed as many windows as were recorded."""
        self.pixels.copy_(pixels)
        self.graph.replay()
        return self.embedded.clone()


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error).lower() for words in _NO_MEMORY)


_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_KEPT = 1 << 25  # bytes; the most that every glibc takes for M_MMAP_THRESHOLD


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed, for the whole process.

    By default glibc hands the activations of each batch back to the system and asks for them again, and the
    system clears every page anew: on a CPU a third of the time of an extraction (benchmarks/README.md).

    Returns
    -------
    False where the C library is not glibc: nothing is changed there.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    kept = library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
    # Set together: either of them alone ends the automatic choice of the other.
    return bool(kept and library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
