"""Read the windows of one slide: by plan, from many threads; and one at a time, the plain reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmap_st.errors import RegionError
from mmap_st.extract.slides import Slide
from mmap_st.extract.windows.geometry import boxes_at_level, filter_regions, level_for
from mmap_st.extract.windows.read_plan import ReadPlan
from mmap_st.extract.windows.resizing import CpuResizer, LevelWindows, Pixels, Resizer
from mmap_st.extract.windows.tile_cache import TileCache


@dataclass(frozen=True)
class Windows:
    """A batch of windows of one slide.

    Attributes
    ----------
    pixels
        (b, px, px, 3) uint8; those of windows that cannot be read mean nothing.
    readable
        (b,) False where a tile of the window is damaged.
    source_of, row_of
        (b,) magnification and spot of each, as in the plan.
    """

    pixels: Pixels
    readable: NDArray[np.bool_]
    source_of: NDArray[np.int32]
    row_of: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_of)

    @staticmethod
    def joined(parts: Sequence[Windows], pixels: Pixels) -> Windows:
        """One batch of several, whose pixels lie one after the other in `pixels`."""
        return Windows(
            pixels,
            np.concatenate([part.readable for part in parts]),
            np.concatenate([part.source_of for part in parts]),
            np.concatenate([part.row_of for part in parts]),
        )

    def without_pixels(self) -> Windows:
        """The same without the memory of the pixels."""
        return replace(self, pixels=np.empty((0, 0, 0, 3), np.uint8))


class WindowReader:
    """Reads what a plan says; the same pixels as `mmap_st.extract.windows.reader.read_window`, to the bit.

    Parameters
    ----------
    slide
        Open slide, safe to read from threads.
    plan
        Of that slide.
    cache_bytes
        Memory for decoded tiles; more is taken where one step alone needs more.
    resizer
        Makes windows of them; None: the CPU does.

    Attributes
    ----------
    on_device
        Whether windows are made in the memory of a GPU; `read` must be given it.
    """

    def __init__(
        self, slide: Slide, plan: ReadPlan, cache_bytes: int, resizer: Resizer | None = None
    ) -> None:
        self._slide, self._plan = slide, plan
        self._resizer = resizer or CpuResizer()
        self.on_device = self._resizer.on_device
        self._cache = TileCache(plan, cache_bytes // max(plan.tile_bytes, 1), self._decode)
        self._numbers = {level: self._numbers_of(level) for level in {s.level for s in plan.sources}}

    def close(self) -> None:
        """Free the memory of the tiles; nothing can be read any more."""
        self._cache.close()

    @property
    def decoded(self) -> int:
        """Blocks decoded so far, those decoded again counted again; of most slides, tiles."""
        return self._cache.decoded

    def read(self, step: int, out: Pixels | None = None) -> Windows:
        """Read the windows of one step.

        Parameters
        ----------
        step
            Of the plan; any order works, that of the plan decodes least.
        out
            (b, px, px, 3) memory for the pixels of the step's windows; None: new memory.

        Raises
        ------
        ImageError
            If the slide cannot be decoded at all.
        """
        plan = self._plan
        part = slice(plan.step_windows[step], plan.step_windows[step + 1])
        source_of, row_of = plan.source_of[part], plan.row_of[part]
        shape = (len(row_of), plan.input_px, plan.input_px, 3)
        pixels = np.empty(shape, np.uint8) if out is None else out
        readable = np.ones(len(row_of), np.bool_)
        whole = self._cache.acquire(step)
        try:
            needed = plan.needed[plan.step_tiles[step] : plan.step_tiles[step + 1]]
            tiles, parts = plan.tiles[needed], []
            for number, source in enumerate(plan.sources):
                places = np.flatnonzero(source_of == number)
                regions = source.regions[row_of[places]]
                tile = plan.levels[source.level].tile
                damaged = tiles[~whole & (tiles[:, 0] == source.level), 1:] * np.array(tile)
                readable[places] = ~_touch(regions, damaged, tile)
                places = places[readable[places]]
                if len(places):
                    rows, level = row_of[places], plan.levels[source.level]
                    numbers = self._numbers[source.level]
                    regions, boxes = source.regions[rows], source.boxes[rows]
                    parts.append(LevelWindows(numbers, level.size, tile, regions, boxes, places))
            self._resizer.resize(self._cache.arena, self._cache.slot_of, needed, parts, pixels)
        finally:
            self._cache.release(step)
        if not readable.all():
            self._resizer.whiten(np.flatnonzero(~readable), pixels)
        return Windows(pixels, readable, source_of, row_of)

    def _decode(self, numbers: Sequence[int], slots: Sequence[NDArray[np.uint8]]) -> None:
        from mmap_st.extract.windows.kernels import store_tile

        level = int(self._plan.tiles[numbers[0], 0])
        places = [(int(column), int(row)) for _, column, row in self._plan.tiles[list(numbers)]]
        width, height = self._plan.levels[level].tile
        tiles: Iterable[NDArray[np.uint8]]
        if len(places) == 1:
            tiles = [self._slide.read_tile(level, *places[0])]
        else:
            tiles = self._slide.read_tiles(level, places)
        for (column, row), slot, pixels in zip(places, slots, tiles, strict=True):
            # Tiles that are cut at the slide's edge may be parts of larger arrays.
            tile = np.ascontiguousarray(pixels)
            if tile.shape[0] > height or tile.shape[1] > width:
                raise RegionError(f"tile {column}, {row} of level {level} is larger than the slide says.")
            store_tile(tile, slot[: 3 * width * height].reshape(width, height, 3))

    def _numbers_of(self, level: int) -> NDArray[np.int32]:
        """(columns, rows) number of each tile of a level in the plan, -1 for those that no window touches."""
        size, tile = self._plan.levels[level].size, self._plan.levels[level].tile
        numbers = np.full((-(-size[0] // tile[0]), -(-size[1] // tile[1])), -1, np.int32)
        mine = np.flatnonzero(self._plan.tiles[:, 0] == level)
        numbers[self._plan.tiles[mine, 1], self._plan.tiles[mine, 2]] = mine
        return numbers


def _touch(
    regions: NDArray[np.int64], corners: NDArray[np.int64], tile: tuple[int, int]
) -> NDArray[np.bool_]:
    """(k,) whether a region (k, 4) touches any of the tiles whose upper left corners (t, 2) are given."""
    over = (regions[:, None, :2] < corners[None] + np.array(tile)) & (regions[:, None, 2:] > corners[None])
    return np.asarray(over.all(axis=2).any(axis=1))


#: What the recipe records: Pillow's bicubic filter, widened when shrinking (antialiased), on the level
#: that `mmap_st.extract.windows.geometry.level_for` chooses.
RESAMPLING = "pillow bicubic, antialiased when shrinking, from the coarsest level twelve times as fine"
FILL = "white"


def read_window(slide: Slide, box: Sequence[float], input_px: int) -> NDArray[np.uint8]:
    """Read one window.

    Parameters
    ----------
    slide
        Open slide.
    box
        x0, y0, x1, y1 in level-0 pixels, not rounded: the window is exact, not snapped to pixels.
    input_px
        Side of the result.

    Returns
    -------
    (input_px, input_px, 3) uint8, the same as resizing that box of the whole level on white ground; the
    level is the slide's own, level 0, where it has no pyramid.

    Raises
    ------
    RegionError
        If the slide cannot be decoded there.
    ImageError
        If it cannot be decoded at all.
    """
    levels = slide.levels
    level = level_for([one.downsample for one in levels], (box[2] - box[0]) / input_px)
    at_level = boxes_at_level(np.array([box]), levels[level].downsample)
    left, top, right, bottom = (int(edge) for edge in filter_regions(at_level, input_px)[0])
    x0, y0, x1, y1 = at_level[0]
    region = slide.read((left, top, right, bottom), level)
    # Across, then down, as Pillow does in one call; but where a region happens to be just as wide as the
    # window and not as high, its one call gives other pixels (seen with Pillow 13).
    bicubic = Image.Resampling.BICUBIC
    across = region.resize((input_px, region.height), bicubic, box=(x0 - left, 0, x1 - left, region.height))
    window = across.resize((input_px, input_px), bicubic, box=(0, y0 - top, input_px, y1 - top))
    return np.asarray(window)
