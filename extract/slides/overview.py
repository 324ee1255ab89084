"""Thumbnails of slides, and close-ups of places on them, for figures and for predictions that others draw."""

from __future__ import annotations

import logging
from contextlib import closing

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmap_st.data import Thumbnail
from mmap_st.errors import of_one_slide
from mmap_st.extract.slides.remote import local_image
from mmap_st.extract.slides.slide import Slide, open_slide
from mmap_st.urls import Place

_LOG = logging.getLogger(__name__)
_LONGEST_PX = 1600


def thumbnail_of(image: Place) -> Thumbnail | None:
    """A slide's thumbnail, its longer side at most 1,600 pixels.

    None, and a warning in the log, where the image cannot be read: predictions and maps are worth having
    without.
    """
    try:
        with local_image(image) as path, closing(open_slide(path)) as slide:
            picture = slide.thumbnail(_LONGEST_PX)
            return Thumbnail(np.asarray(picture.convert("RGB"), np.uint8), picture.width / slide.size[0])
    except Exception as error:  # noqa: BLE001 - whatever it is, it is that image's
        _LOG.warning("no picture of the slide: %s", of_one_slide(error))
        return None


def close_ups(
    image: Place, centres: NDArray[np.float64], width_px: float, size: int
) -> NDArray[np.uint8] | None:
    """Pictures of places on a slide, to look at: they are read from the level that is just fine enough.

    Parameters
    ----------
    image
        Of the slide.
    centres
        (k, 2) in level-0 pixels.
    width_px
        Of what each picture shows, in level-0 pixels.
    size
        Of a picture, in its own pixels.

    Returns
    -------
    (k, size, size, 3) RGB, white outside the slide. None, and a warning in the log, where the image cannot be
    read.
    """
    try:
        with local_image(image) as path, closing(open_slide(path)) as slide:
            shown = [_close_up(slide, centre, width_px, size) for centre in centres]
    except Exception as error:  # noqa: BLE001 - whatever it is, it is that image's
        _LOG.warning("no close-ups of the slide: %s", of_one_slide(error))
        return None
    return np.stack(shown) if shown else np.empty((0, size, size, 3), np.uint8)


def _close_up(slide: Slide, centre: NDArray[np.float64], width_px: float, size: int) -> NDArray[np.uint8]:
    fine = [n for n, level in enumerate(slide.levels) if max(level.downsample) <= width_px / size]
    number = fine[-1] if fine else 0
    down = slide.levels[number].downsample
    side = [max(1, round(width_px / d)) for d in down]
    x, y = (round(c / d - s / 2) for c, d, s in zip(centre, down, side, strict=True))
    region = slide.read((x, y, x + side[0], y + side[1]), number)
    return np.asarray(region.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), np.uint8)
