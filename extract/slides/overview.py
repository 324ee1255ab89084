"""Thumbnails of slides, for figures and for predictions that others draw."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from mmap_st.data import Thumbnail
from mmap_st.errors import of_one_slide
from mmap_st.extract.slides.slide import open_slide

_LOG = logging.getLogger(__name__)
_LONGEST_PX = 1600


def thumbnail_of(image: Path) -> Thumbnail | None:
    """A slide's thumbnail, its longer side at most 1,600 pixels.

    None, and a warning in the log, where the image cannot be read: predictions and maps are worth having
    without.
    """
    try:
        slide = open_slide(image)
        try:
            picture = slide.thumbnail(_LONGEST_PX)
            return Thumbnail(np.asarray(picture.convert("RGB"), np.uint8), picture.width / slide.size[0])
        finally:
            slide.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is that image's
        _LOG.warning("no picture of the slide: %s", of_one_slide(error))
        return None
