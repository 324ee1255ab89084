"""Windows that a GPU resizes of tiles: to read slides, the CPU has decoding left to do.

Each reading thread copies the tiles of its step there, and waits until its windows are made.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import DeviceError, first_line, printable
from mmap_st.extract.slides import free_memory
from mmap_st.extract.windows.geometry import filter_regions
from mmap_st.extract.windows.read_plan import ReadPlan
from mmap_st.extract.windows.resizing import CpuResizer, LevelWindows, Pixels

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)
#: Of the free memory, the GPU's and the machine's, resizing takes at most one part in this many.
_SHARE_OF_MEMORY = 4
#: Bytes that the pass across makes at a time, of each thread; one window may take more.
_NARROWED_BYTES = 32 << 20


class _Workspace(threading.local):
    """What each reading thread has of its own: a stream, and memory that it uses again and again."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device, self._held = device, dict[str, "torch.Tensor"]()
        self._cuda = device.type == "cuda"
        # Short kernels between the long ones of the network: with priority, nobody waits for windows.
        self.stream = torch.cuda.Stream(device, priority=-1) if self._cuda else None
        self._over = torch.cuda.Event(blocking=True) if self._cuda else None

    def here(self) -> AbstractContextManager[object]:
        """Where its copies and kernels belong."""
        import torch

        return torch.cuda.stream(self.stream) if self._cuda else nullcontext()

    def wait(self) -> None:
        """Wait, asleep, for all that it gave to the GPU."""
        if self._over is not None:
            self._over.record(self.stream)
            self._over.synchronize()

    def on_host(self, name: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return memory from which copies to the GPU need no wait."""
        return self._at_least(f"{name} on the host", count, dtype, "cpu")

    def on_device(self, name: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return memory of the GPU."""
        return self._at_least(name, count, dtype, self._device)

    def _at_least(
        self, name: str, count: int, dtype: torch.dtype, device: torch.device | str
    ) -> torch.Tensor:
        import torch

        held = self._held.get(name)
        if held is None or len(held) < count:
            self._held.pop(name, None)
            pinned = self._cuda and device == "cpu"
            held = torch.empty(count + count // 4, dtype=dtype, device=device, pin_memory=pinned)
            self._held[name] = held
        return held[:count]


#: In `_Plan.spans`, see `mmap_st.extract.windows.triton_kernels`.
_TALL = 4


@dataclass(frozen=True)
class _Plan:
    """What the kernels are told of some windows of one level, int32.

    Attributes
    ----------
    tile
        Width and height of the level's tiles.
    spans
        (k, 8) shift from the region's left edge to the table's, its last column, taps across; shift, rows
        and taps down; its place in the batch; 0.
    first
        (k, 2, px), see `fill_filters`.
    weights
        (k, 2, px, taps), likewise.
    tables
        (k, columns, rows) where the tiles under each window lie among those of the step.
    """

    tile: tuple[int, int]
    spans: NDArray[np.int32]
    first: NDArray[np.int32]
    weights: NDArray[np.int32]
    tables: NDArray[np.int32]

    @property
    def arrays(self) -> tuple[NDArray[np.int32], ...]:
        """All of them, flat."""
        return tuple(one.reshape(-1) for one in (self.spans, self.first, self.weights, self.tables))

    @property
    def size(self) -> int:
        """Numbers in all of them."""
        return sum(array.size for array in self.arrays)


def _plans(needed: NDArray[np.int32], part: LevelWindows, px: int) -> Iterator[_Plan]:
    """Cut windows into as many parts as the memory for the pass across needs."""
    tallest = int((part.regions[:, 3] - part.regions[:, 1]).max())
    at_a_time = max(1, _NARROWED_BYTES // (px * tallest * 3))
    for start in range(0, len(part.places), at_a_time):
        yield _plan(needed, part, slice(start, start + at_a_time), px)


def _plan(needed: NDArray[np.int32], part: LevelWindows, some: slice, px: int) -> _Plan:
    from mmap_st.extract.windows.kernels import fill_filters

    tile, places = part.tile, part.places[some]
    regions, boxes, count = part.regions[some], part.boxes[some], len(places)
    shrink = max(float((boxes[:, 2:] - boxes[:, :2]).max()) / px, 1.0)
    first, taps = np.empty((count, 2, px), np.int64), np.empty((count, 2), np.int64)
    weights = np.empty((count, 2, px, 4 * math.ceil(shrink + 1.0)), np.int32)
    fill_filters(regions, boxes, first, weights, taps)
    left, top, right, bottom = regions.T
    # Down, only the rows that the filter uses are made.
    upper = top + first[:, 1, 0]
    tall = np.minimum(upper + first[:, 1, -1] - first[:, 1, 0] + taps[:, 1], bottom) - upper
    column, row = left // tile[0], upper // tile[1]
    columns = column[:, None] + np.arange(int(((right - 1) // tile[0] - column).max()) + 1)
    rows = row[:, None] + np.arange(int(((upper + tall - 1) // tile[1] - row).max()) + 1)
    tables = _slots(needed, part.numbers, columns, rows)
    spans = np.zeros((count, 8), np.int32)
    across, down = left - column * tile[0], upper - row * tile[1]
    spans[:, :7] = np.stack([across, right - left - 1, taps[:, 0], down, tall, taps[:, 1], places], axis=1)
    return _Plan(tile, spans, first.astype(np.int32), weights, tables)


def _slots(
    needed: NDArray[np.int32],
    numbers: NDArray[np.int32],
    columns: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.int32]:
    """(k, c, r) where tiles by column (k, c) and row (k, r) lie among those that are needed, from 1.

    0, the white one, where there is no tile.
    """
    inside_x = (columns >= 0) & (columns < numbers.shape[0])
    inside_y = (rows >= 0) & (rows < numbers.shape[1])
    found = numbers[np.where(inside_x, columns, 0)[:, :, None], np.where(inside_y, rows, 0)[:, None, :]]
    # No tile is needed for what lies outside of the level, though the last tile's square may reach there.
    at = np.searchsorted(needed, found)
    held = (found >= 0) & (np.append(needed, np.int32(-1))[at] == found)
    return np.where(inside_x[:, :, None] & inside_y[:, None, :] & held, 1 + at, 0).astype(np.int32)


def _makes_the_same(resizer: DeviceResizer) -> bool:
    """Whether windows of a small picture are the CPU's to the bit, within it and over its edges."""
    import torch

    rng, px = np.random.default_rng(0), 12
    numbers = np.arange(16, dtype=np.int32).reshape(4, 4)
    boxes = np.array([[3.2, 1.7, 51.9, 26.3], [-9.5, -7.25, 14.5, 16.75], [40.1, 20.3, 50.2, 30.4]])
    part = LevelWindows(numbers, (60, 31), (16, 8), filter_regions(boxes, px), boxes, np.array([2, 0, 1]))
    arena = rng.integers(0, 256, (17, 3 * 16 * 8), np.uint8)
    arena[0] = 255
    slot_of, needed = rng.permutation(np.arange(1, 17, dtype=np.int32)), np.arange(16, dtype=np.int32)
    expected = np.empty((3, px, px, 3), np.uint8)
    made = torch.zeros(expected.shape, dtype=torch.uint8, device=resizer.device)
    CpuResizer().resize(arena, slot_of, needed, [part], expected)
    resizer.resize(arena, slot_of, needed, [part], made)
    return np.array_equal(made.cpu().numpy(), expected)


class DeviceResizer:
    """Resizes on a GPU; see `mmap_st.extract.windows.resizing.Resizer`.

    Parameters
    ----------
    device
        CUDA, or the CPU, where Triton only interprets its kernels, which tests can wait for.
    """

    on_device = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._own = _Workspace(device)

    @classmethod
    def of(cls, device: str) -> DeviceResizer | None:
        """Return that of a GPU on which windows are made to the bit as on a CPU; None where they are not.

        Triton may be missing, or have no C compiler; whatever is wrong with it, the CPU can resize.
        """
        if not device.startswith("cuda"):
            return None
        try:
            import torch

            resizer = cls(torch.device(device))
            if _makes_the_same(resizer):
                return resizer
            reason = "it gives other pixels"
        except Exception as error:  # noqa: BLE001 - compilers raise what they like
            reason = f"{type(error).__name__}: {first_line(error)}"
        _LOG.info("windows are resized on the CPU, not on %s: %s", printable(device), reason)
        return None

    def suits(self, plan: ReadPlan, threads: int) -> bool:
        """Whether there is memory for what that many threads hold of a slide, on the GPU and to copy from."""
        import torch

        tiles = (plan.most_tiles + 1) * plan.tile_bytes
        free = int(torch.cuda.mem_get_info(self.device)[0])
        fits = threads * (tiles + 2 * _NARROWED_BYTES) <= free // _SHARE_OF_MEMORY
        # There, memory is taken in powers of two.
        return fits and 2 * threads * tiles <= free_memory() // _SHARE_OF_MEMORY

    def resize(
        self,
        arena: NDArray[np.uint8],
        slot_of: NDArray[np.int32],
        needed: NDArray[np.int32],
        parts: Sequence[LevelWindows],
        out: Pixels,
    ) -> None:
        import torch

        assert isinstance(out, torch.Tensor)
        try:
            # Kernels run on the current device, which need not be this one.
            with torch.cuda.device(out.device) if out.is_cuda else nullcontext(), self._own.here():
                tiles = self._copied(arena, np.append(np.int32(0), slot_of[needed]))
                plans = [plan for part in parts for plan in _plans(needed, part, int(out.shape[2]))]
                arrays = self._own.on_host("plans", sum(plan.size for plan in plans), torch.int32)
                if plans:
                    np.concatenate([array for plan in plans for array in plan.arrays], out=arrays.numpy())
                copied = self._own.on_device("plans", len(arrays), torch.int32)
                copied.copy_(arrays, non_blocking=True)
                for plan, array in zip(plans, copied.split([plan.size for plan in plans]), strict=True):
                    self._launch(tiles, plan, array, out)
                self._own.wait()
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.device} has too little memory to resize windows on it; run the same command again"
                " with --resample cpu."
            ) from error

    def whiten(self, places: NDArray[np.int64], out: Pixels) -> None:
        import torch

        assert isinstance(out, torch.Tensor)
        with self._own.here():
            out[torch.from_numpy(places).to(out.device)] = 255
            self._own.wait()

    def _copied(self, arena: NDArray[np.uint8], slots: NDArray[np.int32]) -> torch.Tensor:
        """(t, bytes) tiles of some slots, on the device."""
        import torch

        count, size = len(slots), arena.shape[1]
        staged = self._own.on_host("tiles", count * size, torch.uint8)
        # Any mode but "raise" writes to `out` at once.
        np.take(arena, slots, axis=0, out=staged.numpy().reshape(count, size), mode="clip")
        held = self._own.on_device("tiles", count * size, torch.uint8)
        return held.copy_(staged, non_blocking=True).view(count, size)

    def _launch(self, tiles: torch.Tensor, plan: _Plan, arrays: torch.Tensor, out: torch.Tensor) -> None:
        import torch

        from mmap_st.extract.windows.triton_kernels import BLOCK, lower, narrow

        px, (windows, columns, rows) = int(out.shape[2]), plan.tables.shape
        stride, tallest = plan.weights.shape[3], int(plan.spans[:, _TALL].max())
        spans, first, weights, tables = arrays.split([array.size for array in plan.arrays])
        # Kernels of one stream run one after the other: the next plan's may use the same memory.
        narrowed = self._own.on_device("narrowed", windows * px * tallest * 3, torch.uint8)
        narrow[math.ceil(3 * tallest / BLOCK), px, windows](
            tiles,
            spans,
            first,
            weights,
            tables,
            narrowed,
            tiles.shape[1],
            *plan.tile,
            columns,
            rows,
            px,
            stride,
            tallest,
            BLOCK,
        )
        lower[math.ceil(3 * px / BLOCK), px, windows](
            narrowed, spans, first, weights, out, px, stride, tallest, BLOCK
        )
