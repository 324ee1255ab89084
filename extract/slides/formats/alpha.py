"""What the fourth sample of pixels is: TIFF says by a tag whether it is alpha, and of which kind."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Alpha(Enum):
    """What the fourth sample is."""

    NONE = "something else"
    STRAIGHT = "alpha"
    PREMULTIPLIED = "alpha, with which the colours are multiplied"


_KINDS = {(1,): Alpha.PREMULTIPLIED, (2,): Alpha.STRAIGHT}


def alpha_of(page: Any) -> Alpha:
    """What it is on a page of tifffile; without a tag it is no alpha."""
    return Alpha.STRAIGHT if page.samplesperpixel != 4 else _KINDS.get(page.extrasamples, Alpha.NONE)


def without_alpha(pixels: NDArray[np.uint8], alpha: Alpha) -> NDArray[np.uint8]:
    """RGB (h, w, 3) of pixels (h, w, 4) whose fourth sample is no straight alpha, on white ground."""
    colours = pixels[..., :3]
    if alpha is Alpha.NONE:
        return colours
    # Where colours are brighter than their alpha allows, white is all that can be shown.
    flat: NDArray[np.uint8] = np.minimum(colours, pixels[..., 3:]) + (np.uint8(255) - pixels[..., 3:])
    return flat
