"""Parts of slides: the spots that a network sees together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.context import spot_pitch
from mmap_st.head.slides import HeadSlide

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
