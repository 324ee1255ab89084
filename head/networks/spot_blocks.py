"""Blocks of neighbouring spots of one slide that a network processes together, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.store import row_blocks
from mmap_st.head.basis import whitened_axes
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.neighbourhood import spot_pitch

#: Slides with more valid spots are split: the cost of attention over all spots grows with their square.
MAX_SPOTS = 4_096

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class SpotBlock:
    """Spots of one slide that a network sees together: all valid ones, or those of one area of a large slide.

    Attributes
    ----------
    slide
        The slide.
    rows
        (k,) int64 ascending, which of its spots; all of them are valid.
    """

    slide: HeadSlide
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def embedding(self) -> NDArray[np.float32]:
        """(k, M, d) float32, standardised within the slide; read from the store once."""
        return self.slide.standardised(self.rows)

    @cached_property
    def place(self) -> NDArray[np.float32]:
        """(k, 2) float32 centres in spot pitches, relative to the smallest x and y of the block."""
        xy = self.slide.xy[self.rows]
        return np.asarray((xy - xy.min(axis=0)) / spot_pitch(self.slide.xy), np.float32)


def split_into_blocks(slide: HeadSlide, max_spots: int = MAX_SPOTS) -> list[SpotBlock]:
    """Split a slide's valid spots across the longer side until no block has more than `max_spots`."""

    def split(rows: Rows) -> list[Rows]:
        if len(rows) <= max_spots:
            return [rows]
        xy = slide.xy[rows]
        axis = int(np.argmax(np.ptp(xy, axis=0)))
        order = np.argsort(xy[:, axis], kind="stable")
        halves = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
        return [block for half in halves for block in split(rows[half])]

    rows = np.flatnonzero(slide.valid)
    return [SpotBlock(slide, block) for block in split(rows)] if len(rows) else []


# The axes are computed on a sample: more tokens hardly change them.
_MAX_TOKENS = 8_192


def token_axes(blocks: Sequence[SpotBlock], components: int) -> NDArray[np.float32]:
    """Compute partly whitened principal axes of the tokens at the finest magnification.

    They are computed on evenly spaced spots of all blocks, without looking at expression.

    Returns
    -------
    (t, components) float32; columns beyond the rank of the sample are 0.
    """
    _, _, places, width = blocks[0].slide.grids.shape
    max_spots = max(1, _MAX_TOKENS // places)
    step = max(1, -(-sum(len(block) for block in blocks) // max_spots))
    sample = np.concatenate([_finest(block, block.rows[::step]) for block in blocks]).reshape(-1, width)
    found = whitened_axes(sample.astype(np.float64), min(components, *sample.shape))
    axes = np.zeros((width, components), np.float32)
    axes[:, : found.shape[1]] = found
    return axes


def reduced_tokens(block: SpotBlock, axes: NDArray[np.float32]) -> NDArray[np.float16]:
    """(k, g * g, c) float16 tokens of a block at the finest magnification, projected on axes (t, c)."""
    finest = block.slide.by_magnification[0].grids
    reduced = np.empty((len(block), finest.shape[2], axes.shape[1]), np.float16)
    for where, rows in row_blocks(finest, block.rows):
        reduced[where] = _finest(block, rows) @ axes
    return reduced


def _finest(block: SpotBlock, rows: Rows) -> NDArray[np.float32]:
    """(k, g * g, t) tokens of some of the slide's spots, standardised within the slide."""
    return block.slide.by_magnification[0].standardised_tokens(rows)[:, 0]
