"""The inner loops, compiled by numba: Pillow's bicubic resize, to the bit, straight from decoded tiles.

Tiles lie column by column, (width, height, 3), so that the pass across a window runs along contiguous
memory. Arithmetic is that of Pillow's Resample.c for 8-bit pixels: weights of 22 bits, the pass across
rounded to 8 bits before the pass down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_BITS = 22
_HALF = 1 << (_BITS - 1)
_WHITE = 255
_BLOCK = 16


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for threads; keep the machine code on disk where some folder can be written."""
    try:
        compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no place for its cache
        compiled = numba.njit(nogil=True)(function)
    return compiled


@_compiled
def store_tile(rgb: NDArray[np.uint8], tile: NDArray[np.uint8]) -> None:
    """Write contiguous pixels (h, w, 3) into `tile` (width, height, 3); what they do not cover is white."""
    height, width = rgb.shape[0], rgb.shape[1]
    if width < tile.shape[0] or height < tile.shape[1]:
        tile[:] = _WHITE
    _turn(rgb, tile)


@_compiled
def _weights(
    start: float, end: float, out_px: int, first: NDArray[np.int64], weights: NDArray[np.int32]
) -> int:
    """Fill `first` (out_px,) and `weights` (out_px, taps); return how many taps are used.

    `start` and `end` are of the box, from the region's first pixel; Pillow keeps them in single precision.
    """
    low = np.float32(start)
    scale = float(np.float32(end) - low) / out_px
    filter_scale = max(scale, 1.0)
    support = 2.0 * filter_scale
    longest = 0
    taps = np.empty(weights.shape[1], np.float64)
    for out in range(out_px):
        centre = float(low) + (out + 0.5) * scale
        begin = int(centre - support + 0.5)
        count = int(centre + support + 0.5) - begin
        total = 0.0
        for k in range(count):
            x = abs((k + begin - centre + 0.5) * (1.0 / filter_scale))
            if x < 1.0:
                taps[k] = (1.5 * x - 2.5) * x * x + 1.0
            elif x < 2.0:
                taps[k] = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
            else:
                taps[k] = 0.0
            total += taps[k]
        for k in range(count):
            share = taps[k] / total * (1 << _BITS)
            weights[out, k] = int(share - 0.5) if share < 0 else int(share + 0.5)
        for k in range(count, weights.shape[1]):
            weights[out, k] = 0
        first[out] = begin
        longest = max(longest, count)
    return longest


@_compiled
def fill_filters(
    regions: NDArray[np.int64],
    boxes: NDArray[np.float64],
    first: NDArray[np.int64],
    weights: NDArray[np.int32],
    taps: NDArray[np.int64],
) -> None:
    """Fill in what makes windows of regions, across and down, as `resample_windows` does itself.

    Parameters
    ----------
    regions, boxes
        (k, 4), see `resample_windows`.
    first
        (k, 2, px) first pixel of the region that each pixel of the window is made of.
    weights
        (k, 2, px, taps) of it and of those that follow.
    taps
        (k, 2) how many.
    """
    px = first.shape[2]
    for i in range(len(regions)):
        for axis in range(2):
            start, end = boxes[i, axis] - regions[i, axis], boxes[i, axis + 2] - regions[i, axis]
            taps[i, axis] = _weights(start, end, px, first[i, axis], weights[i, axis])


@_compiled
def _turn(lines: NDArray[np.uint8], turned: NDArray[np.uint8]) -> None:
    """Write (a, b, 3) into the first part of (b or more, a or more, 3), the first two axes swapped.

    In blocks that fit the cache.
    """
    here, there = lines.reshape(-1), turned.reshape(-1)
    # Unsigned: a negative index would count from the end, and testing for that takes time.
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    down, across = np.uint64(3 * lines.shape[1]), 3 * turned.shape[1]
    for top in range(0, lines.shape[0], _BLOCK):
        rows = min(_BLOCK, lines.shape[0] - top)
        for column in range(lines.shape[1]):
            i = np.uint64(3 * (top * lines.shape[1] + column))
            o = np.uint64(column * across + 3 * top)
            for _ in range(rows):
                there[o], there[o + one], there[o + two] = here[i], here[i + one], here[i + two]
                i, o = i + down, o + three


@_compiled
def _add(
    sums: NDArray[np.int32],
    pixels: NDArray[np.uint8],
    a: int,
    b: int,
    c: int,
    d: int,
    w: NDArray[np.int32],
) -> None:
    """Add to `sums` four weighted lines of `pixels`, which begin at `a`, `b`, `c` and `d`."""
    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
    # Unsigned: a negative index would count from the end, and testing for that forbids vector instructions.
    at_a, at_b, at_c, at_d = np.uint64(a), np.uint64(b), np.uint64(c), np.uint64(d)
    for i in range(np.uint64(len(sums))):
        sums[i] += (
            w0 * np.int32(pixels[at_a + i])
            + w1 * np.int32(pixels[at_b + i])
            + w2 * np.int32(pixels[at_c + i])
            + w3 * np.int32(pixels[at_d + i])
        )


@_compiled
def _round(sums: NDArray[np.int32], pixels: NDArray[np.uint8]) -> None:
    """Sums of weighted pixels as pixels."""
    for i in range(len(sums)):
        pixels[i] = min(max(sums[i] >> _BITS, 0), 255)


@_compiled
def _find_columns(
    starts: NDArray[np.int64],
    left: int,
    row: int,
    slot_of: NDArray[np.int32],
    numbers: NDArray[np.int32],
    level_width: int,
    tile: tuple[int, int],
    slot_bytes: int,
) -> None:
    """Fill `starts` with where each column of a region begins in the arena, within one row of tiles.

    Outside of the level that is slot 0: no step holds a tile for what lies outside the image.
    """
    width, height = tile
    for i in range(len(starts)):
        column = (left + i) // width
        slot = 0
        if 0 <= left + i < level_width and row >= 0:
            slot = slot_of[numbers[column, row]]
        starts[i] = slot * slot_bytes + (left + i - column * width) * height * 3


@_compiled
def resample_windows(
    arena: NDArray[np.uint8],
    slot_of: NDArray[np.int32],
    numbers: NDArray[np.int32],
    size: tuple[int, int],
    tile: tuple[int, int],
    regions: NDArray[np.int64],
    boxes: NDArray[np.float64],
    places: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Resize windows of one level from the tiles that hold them.

    Parameters
    ----------
    arena
        (slots, bytes) decoded tiles; slot 0 is white.
    slot_of
        (tiles,) slot of each tile of the plan.
    numbers
        (columns, rows) number of each tile of the level in the plan, -1 for none.
    size, tile
        Width and height of the level and of a tile.
    regions
        (k, 4) left, top, right, bottom of the pixels that the filter reaches.
    boxes
        (k, 4) x0, y0, x1, y1 of the windows in pixels of the level.
    places
        (k,) where each goes in `out`.
    out
        (b, px, px, 3) windows.
    """
    px, height = out.shape[2], tile[1]
    stored, written = arena.reshape(-1), out.reshape(-1)
    first_x, first_y = np.empty(px, np.int64), np.empty(px, np.int64)
    sums = np.empty(3 * max(height, px), np.int32)
    # Taps in whole fours, the last ones of weight 0. Memory is taken once: fresh pages cost more than pixels.
    most_x = 4 * math.ceil(max((boxes[:, 2] - boxes[:, 0]).max() / px, 1.0) + 1.0)
    most_y = 4 * math.ceil(max((boxes[:, 3] - boxes[:, 1]).max() / px, 1.0) + 1.0)
    weights_x, weights_y = np.empty((px, most_x), np.int32), np.empty((px, most_y), np.int32)
    widest = (regions[:, 2] - regions[:, 0]).max()
    tallest = (regions[:, 3] - regions[:, 1]).max() + most_y
    columns = np.empty(widest, np.int64)
    narrowed, flat = np.empty(3 * px * tallest, np.uint8), np.empty(3 * px * tallest, np.uint8)
    for i in range(len(places)):
        left, top, right, bottom = regions[i]
        x0, y0, x1, y1 = boxes[i, 0] - left, boxes[i, 1] - top, boxes[i, 2] - left, boxes[i, 3] - top
        taps_x = 4 * ((_weights(x0, x1, px, first_x, weights_x) + 3) // 4)
        taps_y = 4 * ((_weights(y0, y1, px, first_y, weights_y) + 3) // 4)
        upper = top + first_y[0]
        tall = first_y[px - 1] - first_y[0] + taps_y
        lower = min(upper + tall, bottom)
        starts, last = columns[: right - left], right - left - 1
        begin = upper
        while begin < lower:
            row = begin // height
            end = min((row + 1) * height, lower)
            within = row if begin < size[1] else -1
            _find_columns(starts, left, within, slot_of, numbers, size[0], tile, arena.shape[1])
            starts += 3 * (begin - row * height)
            line = sums[: 3 * (end - begin)]
            for o in range(px):
                line[:] = _HALF
                for k in range(0, taps_x, 4):
                    x = first_x[o] + k
                    a, b = starts[min(x, last)], starts[min(x + 1, last)]
                    c, d = starts[min(x + 2, last)], starts[min(x + 3, last)]
                    _add(line, stored, a, b, c, d, weights_x[o, k : k + 4])
                start = 3 * (o * tall + begin - upper)
                _round(line, narrowed[start : start + len(line)])
            begin = end
        _turn(narrowed[: 3 * px * tall].reshape((px, tall, 3)), flat[: 3 * px * tall].reshape((tall, px, 3)))
        line = sums[: 3 * px]
        for o in range(px):
            line[:] = _HALF
            for k in range(0, taps_y, 4):
                a = 3 * px * (first_y[o] - first_y[0] + k)
                _add(line, flat, a, a + 3 * px, a + 6 * px, a + 9 * px, weights_y[o, k : k + 4])
            start = 3 * px * (places[i] * px + o)
            _round(line, written[start : start + 3 * px])
