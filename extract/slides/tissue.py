"""Tissue: where on a slide there is any, found on a thumbnail by one threshold and a few plain rules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import isotropic_closing, isotropic_dilation

from mmap_st.errors import TissueError
from mmap_st.extract.slides.slide import Slide

#: Recorded with a grid's spots; raised when the mask changes.
METHOD = "otsu-darkest-channel-2"

_MPP = 8.0
_LONGEST_PX = 4096
#: Longest side of the thumbnail where the slide's scale is unknown; its pixels then count as 8 um.
_LONGEST_PX_WITHOUT_SCALE = 1024

_SMOOTHING_UM = 6.0
_CLOSING_UM = 32.0
_SMALLEST_OBJECT_UM2 = 50_000.0
_LARGEST_FILLED_HOLE_UM2 = 10_000.0
_SMALLEST_STROKE_UM2 = 20_000.0
_MARGIN_UM = 40.0

#: Above this a pixel is tissue whatever Otsu says: on a slide that is all tissue it would part stroma from
#: nuclei. Tinted glass stays below.
_HIGHEST_THRESHOLD = 0.35
#: What the mean of tissue must be darker than that of glass; the noise of a blank slide is not.
_LEAST_CONTRAST = 0.08
_LEAST_SATURATION = 0.06


@dataclass(frozen=True)
class Tissue:
    """Where a slide has tissue.

    Attributes
    ----------
    mask
        (h, w) bool, True on tissue, over the whole slide.
    scale
        Level-0 pixels that one pixel of the mask spans, across and down.
    """

    mask: NDArray[np.bool_]
    scale: tuple[float, float]


def find_tissue(slide: Slide, mpp: float | None) -> Tissue:
    """Find a slide's tissue on a thumbnail of about 8 um a pixel, at most 4096 pixels long.

    Parameters
    ----------
    slide
        Open slide.
    mpp
        Micrometres per level-0 pixel. None: the thumbnail is 1024 pixels long, and its pixels count as 8 um
        where sizes matter.

    Raises
    ------
    TissueError
        If there is none.
    ImageError
        If the slide cannot be decoded.
    """
    return tissue_of(tissue_thumbnail(slide, mpp), slide.size, mpp)


def tissue_thumbnail(slide: Slide, mpp: float | None) -> Image.Image:
    """The overview on which `find_tissue` finds tissue."""
    longest = _LONGEST_PX_WITHOUT_SCALE
    if mpp is not None:
        longest = min(max(math.ceil(max(slide.size) * mpp / _MPP), 1), _LONGEST_PX)
    return slide.thumbnail(longest)


def tissue_of(thumbnail: Image.Image, size_px: tuple[int, int], mpp: float | None) -> Tissue:
    """`find_tissue` of a slide of `size_px` (width, height) whose overview has been read.

    Raises
    ------
    TissueError
        If there is none.
    """
    rgb = np.asarray(thumbnail, dtype=np.uint8)
    scale = size_px[0] / rgb.shape[1], size_px[1] / rgb.shape[0]
    um_per_px = _MPP if mpp is None else mpp * math.sqrt(scale[0] * scale[1])
    return Tissue(tissue_mask(rgb, um_per_px), scale)


def on_tissue(tissue: Tissue, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) whether each point of `xy` (n, 2), in level-0 pixels, lies on tissue; False outside the slide."""
    column, row = np.floor(xy / tissue.scale).astype(np.int64).T
    height, width = tissue.mask.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = np.zeros(len(xy), np.bool_)
    found[inside] = tissue.mask[row[inside], column[inside]]
    return found


def share_on_tissue(tissue: Tissue, xy: NDArray[np.float64]) -> float:
    """Share of the points `xy` (n, 2), in level-0 pixels, that lie on tissue."""
    return float(on_tissue(tissue, xy).mean())


def share_of_tissue(tissue: Tissue, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n,) share of each window's area that is tissue; what lies outside the slide is none.

    Parameters
    ----------
    tissue
        Of the slide.
    boxes
        (n, 4) x0, y0, x1, y1 in level-0 pixels, not rounded.
    """
    height, width = tissue.mask.shape
    # Tissue above and to the left of every corner of the mask's pixels; in between it is bilinear.
    total = np.zeros((height + 1, width + 1))
    total[1:, 1:] = tissue.mask.cumsum(axis=0).cumsum(axis=1)
    x = np.clip(boxes[:, 0::2] / tissue.scale[0], 0, width)
    y = np.clip(boxes[:, 1::2] / tissue.scale[1], 0, height)

    def upper_left(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        column, row = np.minimum(x.astype(int), width - 1), np.minimum(y.astype(int), height - 1)
        right, down = x - column, y - row
        upper = total[row, column] * (1 - right) + total[row, column + 1] * right
        lower = total[row + 1, column] * (1 - right) + total[row + 1, column + 1] * right
        return np.asarray(upper * (1 - down) + lower * down)

    inside = (
        upper_left(x[:, 1], y[:, 1])
        - upper_left(x[:, 0], y[:, 1])
        - upper_left(x[:, 1], y[:, 0])
        + upper_left(x[:, 0], y[:, 0])
    )
    area = np.prod((boxes[:, 2:] - boxes[:, :2]) / tissue.scale, axis=1)
    return np.asarray(np.clip(inside / area, 0.0, 1.0), dtype=np.float32)


def tissue_mask(rgb: NDArray[np.uint8], um_per_px: float) -> NDArray[np.bool_]:
    """Tell tissue from glass, ink and dirt.

    The threshold is Otsu's, on how dark the darkest of the three channels is: stain of either colour darkens
    it, and a haze of eosin on the glass darkens it less than it raises the saturation. Grey is not a stain.

    Parameters
    ----------
    rgb
        (h, w, 3) thumbnail.
    um_per_px
        Micrometres that one of its pixels spans.

    Returns
    -------
    (h, w) mask, without specks, its small holes filled and its large ones kept.

    Raises
    ------
    TissueError
        If nothing on it is tissue.
    """
    smooth = ndimage.gaussian_filter(
        rgb.astype(np.float32) / 255.0, (_SMOOTHING_UM / um_per_px, _SMOOTHING_UM / um_per_px, 0)
    )
    brightest, darkest = _over_channels(np.maximum, smooth), _over_channels(np.minimum, smooth)
    chroma = brightest - darkest
    saturation = chroma / np.maximum(brightest, 1e-3)
    darkness = 1.0 - darkest
    black = (brightest < 0.35) & (chroma < 0.08)
    foreign = black | _ink(smooth, saturation, um_per_px)
    # Parts that were never scanned are pure white, and no glass: on tinted glass they would be a third class.
    usual = ~foreign & (_over_channels(np.minimum, rgb) < 255)
    threshold = _threshold(darkness[usual])
    mask = (darkness > threshold) & (saturation > _LEAST_SATURATION) & ~foreign
    mask = _closed(mask, _CLOSING_UM / um_per_px)
    mask = _without_small(mask, _SMALLEST_OBJECT_UM2 / um_per_px**2, np.ones((3, 3)))
    mask = ~_without_small(~mask, _LARGEST_FILLED_HOLE_UM2 / um_per_px**2)
    mask &= ~foreign
    if not mask.any():
        raise _no_tissue()
    return mask


def _over_channels(combine: np.ufunc, rgb: NDArray[Any]) -> NDArray[Any]:
    """(h, w) largest or smallest of the channels; NumPy reduces so short an axis many times more slowly."""
    red, green, blue = np.moveaxis(rgb, 2, 0)
    found: NDArray[Any] = combine(combine(red, green), blue)
    return found


def _threshold(darkness: NDArray[np.float32]) -> float:
    if darkness.size == 0 or float(np.ptp(darkness)) < _LEAST_CONTRAST:
        raise _no_tissue()
    threshold = float(threshold_otsu(darkness))
    dark = darkness > threshold
    if darkness[dark].mean() - darkness[~dark].mean() < _LEAST_CONTRAST:
        raise _no_tissue()
    return min(threshold, _HIGHEST_THRESHOLD)


def _no_tissue() -> TissueError:
    return TissueError(
        "no tissue found on it; look at the image, and leave the slide out or give it a spot table."
    )


def _ink(smooth: NDArray[np.float32], saturation: NDArray[np.float32], um_per_px: float) -> NDArray[np.bool_]:
    """(h, w) pen strokes, with a margin.

    By the ratios of what the channels absorb, which do not depend on how thick the colour lies: green light
    is what H&E absorbs most; blue and green ink absorb red light more, blue ink hardly any blue light, and
    red ink no red light at all and both others alike.
    """
    absorbed = -np.log10(np.maximum(smooth, 0.01))
    red, green, blue = np.moveaxis(absorbed, 2, 0)
    cool = (red > 1.2 * green) & (saturation > 0.15)
    blues = (red > 0.8 * green) & (blue < 0.4 * green) & (saturation > 0.5)
    reds = (red < 0.25 * green) & (blue > 0.5 * green) & (saturation > 0.75)
    # Single pixels are dye on the tissue's edge, or blood.
    strokes = _without_small(cool | blues | reds, _SMALLEST_STROKE_UM2 / um_per_px**2, np.ones((3, 3)))
    margin = _MARGIN_UM / um_per_px
    return np.asarray(isotropic_dilation(strokes, margin)) if strokes.any() else strokes


def _closed(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Close gaps narrower than twice `radius` pixels; the picture's edge is not a gap."""
    pad = math.ceil(radius) + 1
    closed = isotropic_closing(np.pad(mask, pad, mode="edge"), radius)
    return np.asarray(closed[pad:-pad, pad:-pad], dtype=np.bool_)


def _without_small(
    mask: NDArray[np.bool_], least_px: float, connected: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """Drop connected parts of fewer than `least_px` pixels."""
    labels, _ = ndimage.label(mask, structure=connected)
    large = np.bincount(labels.ravel()) >= least_px
    large[0] = False
    return np.asarray(large[labels], dtype=np.bool_)
