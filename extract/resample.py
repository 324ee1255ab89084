"""Windows as the encoder sees them: read from a slide and resampled to the encoder's input size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmap_st.extract.slide import Slide
from mmap_st.extract.windows import box_at_level, level_for

#: What the recipe records: Pillow's bicubic filter, widened when shrinking (antialiased), on the level
#: that `mmap_st.extract.windows.level_for` chooses.
RESAMPLING = "pillow bicubic, antialiased when shrinking, from the coarsest level three times as fine"
FILL = "white"

_BICUBIC_SUPPORT_PX = 2.0


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
    x0, y0, x1, y1 = box_at_level(box, levels[level].downsample)
    # Pixels that the filter reaches beyond the window.
    margin = math.ceil(_BICUBIC_SUPPORT_PX * max(1.0, (x1 - x0) / input_px, (y1 - y0) / input_px)) + 1
    left, top = math.floor(x0) - margin, math.floor(y0) - margin
    region = slide.read((left, top, math.ceil(x1) + margin, math.ceil(y1) + margin), level)
    # Across, then down, as Pillow does in one call; but where a region happens to be just as wide as the
    # window and not as high, its one call gives other pixels (seen with Pillow 13).
    bicubic = Image.Resampling.BICUBIC
    across = region.resize((input_px, region.height), bicubic, box=(x0 - left, 0, x1 - left, region.height))
    window = across.resize((input_px, input_px), bicubic, box=(0, y0 - top, input_px, y1 - top))
    return np.asarray(window)
