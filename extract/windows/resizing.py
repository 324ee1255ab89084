"""Windows resized from decoded tiles, by the CPU, or by a GPU on which they stay: the same to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

#: (b, px, px, 3) uint8 windows, in this machine's memory or in its GPU's.
Pixels: TypeAlias = Union[NDArray[np.uint8], "torch.Tensor"]


@dataclass(frozen=True)
class LevelWindows:
    """Windows that are made of one level of a slide.

    Attributes
    ----------
    numbers
        (columns, rows) number of each tile of the level in the plan, -1 for none.
    size, tile
        Width and height of the level and of a tile.
    regions
        (k, 4) left, top, right, bottom of the pixels that the filter reaches.
    boxes
        (k, 4) x0, y0, x1, y1 of the windows in pixels of the level.
    places
        (k,) where each goes in the batch.
    """

    numbers: NDArray[np.int32]
    size: tuple[int, int]
    tile: tuple[int, int]
    regions: NDArray[np.int64]
    boxes: NDArray[np.float64]
    places: NDArray[np.int64]


class Resizer(Protocol):
    """Makes windows of tiles; safe to use from many threads.

    Attributes
    ----------
    on_device
        Whether it makes them in the memory of a GPU.
    """

    on_device: bool

    def resize(
        self,
        arena: NDArray[np.uint8],
        slot_of: NDArray[np.int32],
        needed: NDArray[np.int32],
        parts: Sequence[LevelWindows],
        out: Pixels,
    ) -> None:
        """Make windows of one step; all of them are there when it returns.

        Parameters
        ----------
        arena
            (slots, bytes) decoded tiles, column by column; slot 0 is white.
        slot_of
            (tiles,) slot of each tile of the plan.
        needed
            (t,) numbers of the step's tiles, ascending; no other one is looked at.
        parts
            The windows, level by level.
        out
            (b, px, px, 3) all windows of the step.
        """
        ...

    def whiten(self, places: NDArray[np.int64], out: Pixels) -> None:
        """Make some windows white."""
        ...


class CpuResizer:
    """Resizes on the CPU, each thread its own step."""

    on_device = False

    def resize(
        self,
        arena: NDArray[np.uint8],
        slot_of: NDArray[np.int32],
        needed: NDArray[np.int32],
        parts: Sequence[LevelWindows],
        out: Pixels,
    ) -> None:
        from mmap_st.extract.windows.kernels import resample_windows  # numba takes its time

        assert isinstance(out, np.ndarray)
        for part in parts:
            resample_windows(
                arena,
                slot_of,
                part.numbers,
                part.size,
                part.tile,
                part.regions,
                part.boxes,
                part.places,
                out,
            )

    def whiten(self, places: NDArray[np.int64], out: Pixels) -> None:
        assert isinstance(out, np.ndarray)
        out[places] = 255
