"""Blocks of spots that a network sees together, with their surroundings and tokens."""

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

#: Slides of more valid spots are cut into compact parts: attention over all spots grows with their square.
MOST_SPOTS = 4_096

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Spots of one slide that a network sees together: all valid ones, or of a big slide those of one area.

    Attributes
    ----------
    slide
        The slide.
    rows
        (k,) ascending, which of its spots; all of them are valid.
    """

    slide: HeadSlide
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def embedding(self) -> NDArray[np.float32]:
        """(k, M, d) in units of the slide's mean and spread; read from the store once."""
        return self.slide.standardised(self.rows)

    @cached_property
    def place(self) -> NDArray[np.float32]:
        """(k, 2) centres in units of the slide's spot pitch, from the part's least x and y on."""
        xy = self.slide.xy[self.rows]
        return np.asarray((xy - xy.min(axis=0)) / spot_pitch(self.slide.xy), np.float32)


def parts_of(slide: HeadSlide, most: int = MOST_SPOTS) -> list[Part]:
    """All valid spots of a slide, cut across the longer side until no part has more than `most` spots."""

    def cut(rows: Rows) -> list[Rows]:
        if len(rows) <= most:
            return [rows]
        xy = slide.xy[rows]
        along = int(np.argmax(np.ptp(xy, axis=0)))
        order = np.argsort(xy[:, along], kind="stable")
        halves = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
        return [part for half in halves for part in cut(rows[half])]

    rows = np.flatnonzero(slide.valid)
    return [Part(slide, part) for part in cut(rows)] if len(rows) else []


# Axes are those of a sample: they hardly change with more tokens.
_MOST_TOKENS = 8_192


def token_axes(parts: Sequence[Part], components: int) -> NDArray[np.float32]:
    """(t, components) partly whitened principal axes of tokens at the finest magnification.

    They are found on spots taken evenly from all parts, and no expression is looked at. Axes that so few
    tokens do not have are 0.
    """
    _, _, places, width = parts[0].slide.grids.shape
    most = max(1, _MOST_TOKENS // places)
    step = max(1, -(-sum(len(part) for part in parts) // most))
    sample = np.concatenate([_finest(part, part.rows[::step]) for part in parts]).reshape(-1, width)
    found = whitened_axes(sample.astype(np.float64), min(components, *sample.shape))
    axes = np.zeros((width, components), np.float32)
    axes[:, : found.shape[1]] = found
    return axes


def reduced_tokens(part: Part, axes: NDArray[np.float32]) -> NDArray[np.float16]:
    """(k, g * g, c) tokens of a part's spots at the finest magnification on axes (t, c), read in blocks."""
    finest = part.slide.by_magnification[0].grids
    reduced = np.empty((len(part), finest.shape[2], axes.shape[1]), np.float16)
    for where, rows in row_blocks(finest, part.rows):
        reduced[where] = _finest(part, rows) @ axes
    return reduced


def _finest(part: Part, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(k, g * g, t) tokens of some of the slide's spots, standardised within the slide."""
    return part.slide.by_magnification[0].standardised_tokens(rows)[:, 0]
