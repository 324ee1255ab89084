"""The read plan of a slide: which tiles to decode, in which order, for which windows. Geometry alone."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import counted
from mmap_st.extract.slides.formats import Level
from mmap_st.extract.windows.geometry import (
    boxes_at_level,
    filter_regions,
    hilbert_order,
    level_for,
    mpp_key,
    window_boxes,
)

#: In `ReadPlan.next_use`: no later step needs the tile.
NEVER = np.iinfo(np.int32).max
#: Windows whose tiles are listed at a time while planning; it bounds the memory that planning takes.
_PLANNED_AT_A_TIME = 1 << 15


@dataclass(frozen=True)
class Source:
    """Where the windows of one magnification are read.

    Attributes
    ----------
    mpp
        Micrometres per pixel of the windows.
    level
        Of the pyramid.
    boxes
        (n, 4) x0, y0, x1, y1 of every spot's window in pixels of that level.
    regions
        (n, 4) left, top, right, bottom of the pixels that resizing them reads.
    """

    mpp: float
    level: int
    boxes: NDArray[np.float64]
    regions: NDArray[np.int64]


@dataclass(frozen=True)
class ReadPlan:
    """What is read of one slide, step by step; a step is a batch of windows, and the tiles it needs.

    Attributes
    ----------
    input_px
        Side of a window as the encoder sees it.
    levels
        Of the slide.
    sources
        One a magnification, finest first.
    source_of, row_of
        (w,) magnification and spot of every window, in the order of reading.
    step_windows
        (s + 1,) where each step's windows begin in those.
    tiles
        (t, 3) level, column and row of every tile that a window touches.
    block_of
        (t,) number of the block that each is decoded with.
    step_tiles
        (s + 1,) where each step's tiles begin in `needed`.
    needed
        (u,) number of a tile, for every step that needs it.
    next_use
        (u,) the next step that needs the same tile, or `NEVER`.
    """

    input_px: int
    levels: tuple[Level, ...]
    sources: tuple[Source, ...]
    source_of: NDArray[np.int32]
    row_of: NDArray[np.int64]
    step_windows: NDArray[np.int64]
    tiles: NDArray[np.int32]
    block_of: NDArray[np.int32]
    step_tiles: NDArray[np.int64]
    needed: NDArray[np.int32]
    next_use: NDArray[np.int32]

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.step_windows) - 1

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.row_of)

    @property
    def windows_a_step(self) -> int:
        """Windows of the largest step, at least 1."""
        return int(np.diff(self.step_windows).max(initial=1))

    @property
    def most_tiles(self) -> int:
        """Tiles of the step that needs most of them."""
        return int(np.diff(self.step_tiles).max(initial=0))

    @property
    def blocks(self) -> int:
        """Number of blocks that its tiles lie in: of tiles that are decoded one by one, their number."""
        return int(self.block_of.max(initial=-1)) + 1

    @property
    def most_tiles_of_a_block(self) -> int:
        """Tiles of the block of which most are needed."""
        return int(np.bincount(self.block_of).max(initial=0))

    @property
    def tile_bytes(self) -> int:
        """Bytes of the largest tile, decoded."""
        used = {source.level for source in self.sources}
        return max((3 * self.levels[i].tile[0] * self.levels[i].tile[1] for i in used), default=0)

    @property
    def bytes_to_decode_once(self) -> int:
        """Bytes of the tiles that must be held at a time so that each large block is decoded once; else 0.

        A tile is held from the step that needs its block first to the step that needs the tile last.
        """
        if self.most_tiles_of_a_block == 1 and not any(
            self.levels[source.level].large_blocks for source in self.sources
        ):
            return 0
        step_of = np.repeat(np.arange(len(self)), np.diff(self.step_tiles))
        first, last = np.full(self.blocks, NEVER, np.int64), np.zeros(len(self.tiles), np.int64)
        np.minimum.at(first, self.block_of[self.needed], step_of)
        np.maximum.at(last, self.needed, step_of)
        change = np.zeros(len(self) + 1, np.int64)
        np.add.at(change, first[self.block_of], 1)
        np.add.at(change, last + 1, -1)
        return int(np.cumsum(change).max(initial=0)) * self.tile_bytes

    def decodes(self, slots: int) -> int:
        """Tiles decoded when `slots` of them can be held: once each, and again where one had to make room.

        Of slides whose tiles are decoded one by one.
        """
        held: dict[int, int] = {}  # tile -> the step that needs it next
        farthest: list[tuple[int, int]] = []
        decoded = 0
        for step in range(len(self)):
            part = slice(self.step_tiles[step], self.step_tiles[step + 1])
            needed, later = self.needed[part].tolist(), self.next_use[part].tolist()
            decoded += sum(tile not in held for tile in needed)
            for tile, use in zip(needed, later, strict=True):
                held.pop(tile, None)
                if use != NEVER:
                    held[tile] = use
                    heapq.heappush(farthest, (-use, tile))
            while len(held) > slots:
                use, tile = heapq.heappop(farthest)
                if held.get(tile) == -use:
                    del held[tile]
        return decoded

    def __str__(self) -> str:
        """The plan in some lines, for people."""
        lines = [
            f"{counted(self.windows, 'window')} of {self.input_px} px in {counted(len(self), 'step')},"
            f" {counted(len(self.tiles), 'tile')}"
        ]
        for number, source in enumerate(self.sources):
            count = int((self.source_of == number).sum())
            level = self.levels[source.level]
            shrink = (source.boxes[0, 2] - source.boxes[0, 0]) / self.input_px if len(source.boxes) else 1.0
            lines.append(
                f"  {mpp_key(source.mpp)} um/px: {counted(count, 'window')} from level {source.level}"
                f" ({level.size[0]} x {level.size[1]} px, tiles of {level.tile[0]} x {level.tile[1]}),"
                f" {shrink:.3g} px to one"
            )
        return "\n".join(lines)


def plan_reading(
    levels: Sequence[Level],
    xy: NDArray[np.float64],
    source_mpp: float,
    input_px: int,
    wanted: Mapping[float, NDArray[np.int64]],
    windows_a_step: int,
    cache_bytes: int | None = None,
) -> ReadPlan:
    """Plan the reading of one slide.

    Spots are visited along a Hilbert curve, each with all of its magnifications: what is decoded for one of
    them serves the others and the neighbours, and can be forgotten soon. Where tiles are decoded in large
    blocks, these come one after the other, and a window is read when the last of its blocks is decoded.

    Parameters
    ----------
    levels
        Of the slide's pyramid.
    xy
        (n, 2) centres of its spots, level-0 pixels.
    source_mpp
        Micrometres per level-0 pixel.
    input_px
        Side of a window as the encoder sees it.
    wanted
        Spots whose windows are to be read, by mpp.
    windows_a_step
        Windows of a step.
    cache_bytes
        Memory for tiles: steps whose tiles would take more get fewer windows, down to one.
    """
    sources = tuple(_source(levels, xy, mpp, source_mpp, input_px) for mpp in sorted(wanted))
    # A square of the curve is as wide as a tile of level 0: within it order matters little.
    place = np.empty(len(xy), np.int64)
    place[hilbert_order(xy, float(max(levels[0].tile)))] = np.arange(len(xy))
    row_of = np.concatenate([wanted[source.mpp] for source in sources] or [np.empty(0, np.int64)])
    source_of = np.repeat(
        np.arange(len(sources), dtype=np.int32), [len(wanted[source.mpp]) for source in sources]
    )
    order = np.lexsort((source_of, place[row_of], _when_decoded(sources, levels, source_of, row_of)))
    row_of, source_of = row_of[order], source_of[order]
    step_windows = np.append(np.arange(0, len(row_of), windows_a_step), len(row_of))
    step_of, needed, tiles = _tile_uses(levels, sources, source_of, row_of, windows_a_step)
    plan = ReadPlan(
        input_px,
        tuple(levels),
        sources,
        source_of,
        row_of,
        step_windows,
        tiles,
        _blocks(levels, tiles),
        np.searchsorted(step_of, np.arange(len(step_windows))),
        needed.astype(np.int32),
        _next_uses(step_of, needed),
    )
    too_large = cache_bytes is not None and plan.most_tiles * plan.tile_bytes > cache_bytes
    if too_large and windows_a_step > 1:
        return plan_reading(levels, xy, source_mpp, input_px, wanted, windows_a_step // 2, cache_bytes)
    return plan


def _source(
    levels: Sequence[Level], xy: NDArray[np.float64], mpp: float, source_mpp: float, input_px: int
) -> Source:
    level = level_for([one.downsample for one in levels], mpp / source_mpp)
    boxes = boxes_at_level(window_boxes(xy, mpp, input_px, source_mpp), levels[level].downsample)
    return Source(mpp, level, boxes, filter_regions(boxes, input_px))


def _when_decoded(
    sources: Sequence[Source],
    levels: Sequence[Level],
    source_of: NDArray[np.int32],
    row_of: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(w,) in which place the last block of each window is decoded; 0 without large blocks.

    Blocks are decoded row by row, along the shorter side of the slide: then a window needs its last block and
    those before it, and of what was decoded earlier only a margin as wide as a window is still needed. They
    are those of the finest level that has any; windows of other levels take their place among them by the
    part of the slide that they show.
    """
    when = np.zeros(len(row_of), np.int64)
    used = sorted({source.level for source in sources if levels[source.level].large_blocks})
    if not used:
        return when
    finest = levels[used[0]]
    blocks = Level(finest.size, finest.downsample, finest.block_px)
    columns, rows = _grid(blocks)
    upright = finest.size[0] <= finest.size[1]
    for number, source in enumerate(sources):
        mine = np.flatnonzero(source_of == number)
        factor = np.array(levels[source.level].downsample) / np.array(finest.downsample)
        regions = source.regions[row_of[mine]] * np.tile(factor, 2)
        regions = np.concatenate([np.floor(regions[:, :2]), np.ceil(regions[:, 2:])], axis=1).astype(np.int64)
        owner, column, row = _tiles_under(blocks, regions)
        np.maximum.at(when, mine[owner], row * columns + column if upright else column * rows + row)
    return when


def _blocks(levels: Sequence[Level], tiles: NDArray[np.int32]) -> NDArray[np.int32]:
    """(t,) number of the block of every tile."""
    if len(tiles) == 0:
        return np.empty(0, np.int32)
    blocks = tiles.copy()
    blocks[:, 1:] //= np.array([level.block for level in levels], np.int32)[tiles[:, 0]]
    return np.unique(blocks, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)


def _tile_uses(
    levels: Sequence[Level],
    sources: Sequence[Source],
    source_of: NDArray[np.int32],
    row_of: NDArray[np.int64],
    windows_a_step: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Step and tile of every use, by step; and level, column and row of every tile."""
    grids = [_grid(level) for level in levels]
    starts = np.concatenate([[0], np.cumsum([columns * rows for columns, rows in grids])])
    total = int(starts[-1])
    parts = []
    at_a_time = max(_PLANNED_AT_A_TIME // windows_a_step, 1) * windows_a_step
    for start in range(0, len(row_of), at_a_time):
        window = np.arange(start, min(start + at_a_time, len(row_of)))
        found = []
        for number, source in enumerate(sources):
            mine = window[source_of[window] == number]
            owner, column, row = _tiles_under(levels[source.level], source.regions[row_of[mine]])
            key = starts[source.level] + column * grids[source.level][1] + row
            found.append(mine[owner] // windows_a_step * total + key)
        parts.append(np.unique(np.concatenate(found)))
    step_of, keys = np.divmod(np.concatenate(parts or [np.empty(0, np.int64)]), max(total, 1))
    keys, needed = np.unique(keys, return_inverse=True)
    level = np.searchsorted(starts, keys, side="right") - 1
    rows = np.array([rows for _, rows in grids])[level]
    column, row = np.divmod(keys - starts[level], rows)
    return step_of, needed, np.stack([level, column, row], axis=1).astype(np.int32)


def _grid(level: Level) -> tuple[int, int]:
    """Columns and rows of tiles of a level."""
    return -(-level.size[0] // level.tile[0]), -(-level.size[1] // level.tile[1])


def _tiles_under(
    level: Level, regions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Region, column and row of every tile inside the level that a region touches."""
    tile, size = np.array(level.tile), np.array(level.size)
    first = np.clip(regions[:, :2], 0, size) // tile
    last = -(-np.clip(regions[:, 2:], 0, size) // tile)
    across, down = np.maximum(last - first, 0).T
    inside = (regions[:, 2:] > 0).all(axis=1) & (regions[:, :2] < size).all(axis=1)
    counts = across * down * inside
    owner = np.repeat(np.arange(len(regions)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, first[owner, 0] + within % across[owner], first[owner, 1] + within // across[owner]


def _next_uses(step_of: NDArray[np.int64], needed: NDArray[np.int64]) -> NDArray[np.int32]:
    """(u,) the next step that needs each tile again; uses are sorted by step."""
    by_tile = np.argsort(needed, kind="stable")
    again = needed[by_tile[1:]] == needed[by_tile[:-1]]
    later = np.full(len(needed), NEVER, np.int32)
    later[by_tile[:-1][again]] = step_of[by_tile[1:][again]]
    return later
