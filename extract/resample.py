"""Windows read one at a time with Pillow: the plain reference of `mmap_st.extract.reading`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmap_st.extract.slide import Slide
from mmap_st.extract.windows import boxes_at_level, filter_regions, level_for

#: What the recipe records: Pillow's bicubic filter, widened when shrinking (antialiased), on the level
#: that `mmap_st.extract.windows.level_for` chooses.
RESAMPLING = "pillow bicubic, antialiased when shrinking, from the coarsest level twelve times as fine"
FILL = "white"


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
    at_level = boxes_at_level(np.array([box]), levels[level].downsample)
    left, top, right, bottom = (int(edge) for edge in filter_regions(at_level, input_px)[0])
    x0, y0, x1, y1 = at_level[0]
    region = slide.read((left, top, right, bottom), level)
    # Across, then down, as Pillow does in one call; but where a region happens to be just as wide as the
    # window and not as high, its one call gives other pixels (seen with Pillow 13).
    bicubic = Image.Resampling.BICUBIC
    across = region.resize((input_px, region.height), bicubic, box=(x0 - left, 0, x1 - left, region.height))
    window = across.resize((input_px, input_px), bicubic, box=(0, y0 - top, input_px, y1 - top))
    return np.asarray(window)
