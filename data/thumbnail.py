"""A small picture of a whole slide, to show what lies behind its spots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmap_st.urls import Place


@dataclass(frozen=True)
class Thumbnail:
    """A slide, made small.

    Attributes
    ----------
    pixels
        (h, w, 3) uint8, RGB.
    scale
        Pixels of the thumbnail per level-0 pixel of the slide; 1 at most.
    """

    pixels: NDArray[np.uint8]
    scale: float


#: Gives the thumbnail of an image; None where it cannot be read.
ThumbnailReader: TypeAlias = Callable[[Place], Thumbnail | None]


def no_thumbnail(image: Place) -> Thumbnail | None:
    """Read no image."""
    return None
