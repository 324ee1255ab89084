"""The inner loops of `mmap_st.extract.windows.kernels` for a GPU, compiled by Triton: the same bits.

Tiles lie column by column there too, so that neighbouring lanes of a pass read neighbouring bytes. Weights
come from the CPU: divisions in floating point may round otherwise on a GPU; sums of integers cannot.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Bytes that one program makes.
BLOCK = 512
_HALF = tl.constexpr(1 << 21)
_BITS = tl.constexpr(22)


@triton.jit(do_not_specialize=["slot_bytes", "width", "height", "columns", "rows", "px", "stride", "tallest"])
def narrow(
    arena,
    spans,
    first,
    weights,
    tables,
    narrowed,
    slot_bytes,
    width,
    height,
    columns,
    rows,
    px,
    stride,
    tallest,
    block: tl.constexpr,
):
    """The pass across: pixels of tiles to `narrowed` (windows, px, tallest, 3).

    `spans`, `first`, `weights` and `tables` are those of `mmap_st.extract.windows.device_resizing._Plan`.
    """
    window, out = tl.program_id(2), tl.program_id(1)
    begin = tl.program_id(0) * block
    span = spans + window * 8
    shift, last, taps = tl.load(span), tl.load(span + 1), tl.load(span + 2)
    shift_y, tall = tl.load(span + 3), tl.load(span + 4)
    if begin < 3 * tall:
        lane = begin + tl.arange(0, block)
        inside = lane < 3 * tall
        y = lane // 3 + shift_y
        row = y // height
        # Where a lane's pixel lies within a column of its tile, and its row of tiles in the window's table.
        within = (y - row * height) * 3 + lane % 3
        table = tables + window * columns * rows + row
        start = tl.load(first + window * 2 * px + out)
        weight = weights + (window * 2 * px + out) * stride
        total = tl.full([block], 0, tl.int32) + _HALF
        # Taps beyond the region weigh nothing.
        end = tl.minimum(start + taps, last + 1)
        while start < end:  # tile by tile
            column = (start + shift) // width
            offset = start + shift - column * width
            many = tl.minimum(end - start, width - offset)
            slot = tl.load(table + column * rows, mask=inside, other=0).to(tl.int64)
            at = arena + slot * slot_bytes + (offset * height * 3 + within)
            for k in range(many):
                total += tl.load(weight + k) * tl.load(at + k * height * 3, mask=inside, other=0).to(tl.int32)
            weight += many
            start += many
        rounded = tl.minimum(tl.maximum(total >> _BITS, 0), 255).to(tl.uint8)
        line = (window.to(tl.int64) * px + out) * tallest * 3
        tl.store(narrowed + line + lane, rounded, mask=inside)


@triton.jit(do_not_specialize=["px", "stride", "tallest"])
def lower(narrowed, spans, first, weights, pixels, px, stride, tallest, block: tl.constexpr):
    """The pass down: `narrowed` to windows of `pixels` (b, px, px, 3)."""
    window, out = tl.program_id(2), tl.program_id(1)
    lane = tl.program_id(0) * block + tl.arange(0, block)
    inside = lane < 3 * px
    span = spans + window * 8
    tall, taps, place = tl.load(span + 4), tl.load(span + 5), tl.load(span + 6).to(tl.int64)
    start = tl.load(first + (window * 2 + 1) * px + out) - tl.load(first + (window * 2 + 1) * px)
    weight = weights + ((window * 2 + 1) * px + out) * stride
    column = narrowed + (window.to(tl.int64) * px + lane // 3) * tallest * 3 + lane % 3
    total = tl.full([block], 0, tl.int32) + _HALF
    for k in range(tl.minimum(taps, tall - start)):
        total += tl.load(weight + k) * tl.load(column + 3 * (start + k), mask=inside, other=0).to(tl.int32)
    rounded = tl.minimum(tl.maximum(total >> _BITS, 0), 255).to(tl.uint8)
    tl.store(pixels + (place * px + out) * px * 3 + lane, rounded, mask=inside)
