"""Predictions of a slide block by block, for slides that are too large for all of them to be held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.attending import Attention, predict_and_attend
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import FittedHead


@dataclass(frozen=True)
class Block:
    """Predictions of consecutive spots.

    Attributes
    ----------
    rows
        Which spots of the slide.
    predicted
        (k, G) float32; rows of spots that are not valid are NaN.
    attention
        Of these spots; None where it was not asked for, or there is none.
    """

    rows: slice
    predicted: NDArray[np.float32]
    attention: Attention | None = None


@runtime_checkable
class BlockwiseHead(Protocol):
    """A trained head that predicts a slide without holding what it predicts."""

    def predict_blocks(self, slide: HeadSlide, size: int, *, attend: bool) -> Iterator[Block]:
        """Predictions as of `FittedHead.predict`, in the blocks of `spot_blocks`.

        They may differ from those of the whole slide in rounding. `attend` asks for attention.
        """
        ...


def spot_blocks(spots: int, size: int) -> Iterator[slice]:
    """Cut the spots of a slide into blocks of `size` consecutive ones; the last may be smaller."""
    for start in range(0, spots, size):
        yield slice(start, min(start + size, spots))


def predict_blocks(head: FittedHead, slide: HeadSlide, size: int, *, attend: bool) -> Iterator[Block]:
    """Predict a slide block by block; a head that cannot predicts it whole, and is cut into blocks.

    Parameters
    ----------
    size
        Spots of a block.
    attend
        Whether blocks tell what their spots attended to.
    """
    if isinstance(head, BlockwiseHead):
        yield from head.predict_blocks(slide, size, attend=attend)
        return
    predicted, attention = predict_and_attend(head, slide) if attend else (head.predict(slide), None)
    if len(predicted) != len(slide):
        raise ValueError(f"it predicted {len(predicted)} of {len(slide)} spots")
    for rows in spot_blocks(len(slide), size):
        own = None if attention is None else Attention(attention.weights[rows], attention.encoder)
        yield Block(rows, predicted[rows], own)
