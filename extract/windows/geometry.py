"""Window geometry: pure functions from spots and micrometres per pixel to boxes in level-0 pixels.

Windows are read along a Hilbert curve: an order of places in which neighbours come soon after each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import RequestError

#: Micrometres per pixel of the magnifications that people name.
_MPP_OF_1X = 10.0
#: Windows are enlarged so many times from the pixels of a slide, at most: beyond, they are a blur.
MOST_ENLARGED = 4.0
_KEY_DECIMALS = 4
_FINER_THAN_WINDOWS = 12.0
#: Pixels of the result that the bicubic filter reaches to either side.
_FILTER_REACH = 2.0


def mpp_of_magnification(magnification: float) -> float:
    """40x is 0.25 um/px, 20x 0.5, 10x 1.0, 5x 2.0."""
    return canonical_mpp(_MPP_OF_1X / magnification)


def canonical_mpp(mpp: float) -> float:
    """Round to the four decimals that name a magnification in a store."""
    return round(mpp, _KEY_DECIMALS)


def finest_mpp(source_mpp: float) -> float:
    """Least micrometres per pixel that windows of a slide may have, rounded up: what is named is accepted."""
    return math.ceil(source_mpp / MOST_ENLARGED * 100 - 1e-6) / 100


def mpp_key(mpp: float) -> str:
    """Name of a magnification in a store, such as ``0.5000``."""
    return f"{mpp:.{_KEY_DECIMALS}f}"


def parse_magnifications(magnifications: str | None, mpp: str | None) -> tuple[float, ...] | None:
    """Read ``--magnifications 20,10,5`` or ``--mpp 0.5,1,2`` as micrometres per pixel, finest first.

    None where neither is given.

    Raises
    ------
    RequestError
        If both are given, or a value is not a number, or not one that a microscope could have.
    """
    if magnifications is not None and mpp is not None:
        raise RequestError("Give --magnifications or --mpp, not both; 20x is 0.5 um/px.")
    if magnifications is not None:
        scales = [_mpp_of_magnification(word) for word in _words("--magnifications", magnifications)]
    elif mpp is not None:
        scales = [_mpp_of_word(word) for word in _words("--mpp", mpp)]
    else:
        return None
    return tuple(sorted({canonical_mpp(scale) for scale in scales}))


_EXAMPLES = {"--magnifications": "20,10,5", "--mpp": "0.5,1,2"}
_FINEST, _COARSEST = 0.01, 100.0


def _words(flag: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        what = "is empty" if len(words) == 1 else "has nothing between two commas, or at an end"
        raise RequestError(
            f"{flag} {text!r} {what}; give numbers separated by commas, such as {_EXAMPLES[flag]}."
        )
    return words


def _mpp_of_magnification(word: str) -> float:
    value = _number("--magnifications", word, word.lower().removesuffix("x"))
    if not _MPP_OF_1X / _COARSEST <= value <= _MPP_OF_1X / _FINEST:
        raise RequestError(
            f"--magnifications {word}: a magnification lies between {_MPP_OF_1X / _COARSEST:g} and"
            f" {_MPP_OF_1X / _FINEST:g}; 20 is 20x, 0.5 um/px."
        )
    # Nobody looks at spots at 0.5x, which is 20 um/px, but many write um/px here.
    if value < 1 and not word.lower().endswith("x"):
        raise RequestError(
            f"--magnifications {word}: did you mean --mpp {word}? A magnification below 1 is written {word}x."
        )
    return mpp_of_magnification(value)


def _mpp_of_word(word: str) -> float:
    if word.lower().endswith("x"):
        raise RequestError(f"--mpp {word}: it is a magnification; give --magnifications {word[:-1]}.")
    value = _number("--mpp", word, word)
    if not _FINEST <= value <= _COARSEST:
        raise RequestError(
            f"--mpp {word}: micrometres per pixel lie between {_FINEST:g} and {_COARSEST:g}; 20x is 0.5."
        )
    return value


def _number(flag: str, word: str, digits: str) -> float:
    try:
        value = float(digits)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise RequestError(
            f"{flag}: {word!r} is not a number; give numbers separated by commas, such as {_EXAMPLES[flag]}."
        )
    return value


def window_boxes(
    xy: NDArray[np.float64], mpp: float, input_px: int, source_mpp: float
) -> NDArray[np.float64]:
    """Boxes (n, 4) of windows around `xy` (n, 2): x0, y0, x1, y1 in level-0 pixels, not rounded.

    A window is `input_px` * `mpp` micrometres wide, whatever the slide's own `source_mpp`.
    """
    half = input_px * mpp / source_mpp / 2.0
    return np.concatenate([xy - half, xy + half], axis=1)


def level_for(downsamples: Sequence[tuple[float, float]], shrink: float) -> int:
    """The level to read windows from: the coarsest that is still twelve times as fine as they are.

    Parameters
    ----------
    downsamples
        Of each level along x and y, level 0 first.
    shrink
        Level-0 pixels to one pixel of a window. Where it is under 12, that is level 0.

    Twelve times, because levels are made by filters of many kinds and compressed once more, which networks
    notice (benchmarks/README.md has by how much): so every embedding stays that of level 0 to a cosine of
    0.999. Since tiles are decoded once for all magnifications, level 0 costs little.
    """
    fine = [i for i, pair in enumerate(downsamples) if max(pair) * _FINER_THAN_WINDOWS <= shrink * (1 + 1e-9)]
    return max(fine, key=lambda i: max(downsamples[i]), default=0)


def boxes_at_level(boxes: NDArray[np.float64], downsample: tuple[float, float]) -> NDArray[np.float64]:
    """Boxes (n, 4) of level-0 pixels in pixels of a level, not rounded."""
    return np.asarray(boxes / np.array([*downsample, *downsample]))


def filter_regions(boxes: NDArray[np.float64], input_px: int) -> NDArray[np.int64]:
    """Pixels that resizing `boxes` (n, 4) to `input_px` reads: (n, 4) left, top, right, bottom.

    The filter is widened where windows are shrunk, and reaches beyond them.
    """
    shrink = np.maximum((boxes[:, 2:] - boxes[:, :2]).max(axis=1) / input_px, 1.0)
    margin = np.ceil(_FILTER_REACH * shrink) + 1
    low, high = np.floor(boxes[:, :2]) - margin[:, None], np.ceil(boxes[:, 2:]) + margin[:, None]
    return np.concatenate([low, high], axis=1).astype(np.int64)


def share_in_bounds(boxes: NDArray[np.float64], size: Sequence[int]) -> NDArray[np.float32]:
    """(n,) share of each box's area that lies inside a slide of `size` (width, height) pixels."""
    limits = np.array([size[0], size[1]], dtype=np.float64)
    low = np.clip(boxes[:, :2], 0.0, limits)
    high = np.clip(boxes[:, 2:], 0.0, limits)
    inside = np.prod(high - low, axis=1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.asarray(inside / area, dtype=np.float32)


_ORDER = 16


def hilbert_order(xy: NDArray[np.float64], cell: float) -> NDArray[np.int64]:
    """Order in which to visit places.

    Parameters
    ----------
    xy
        (n, 2) places.
    cell
        Side of the squares that the curve passes through, in the unit of `xy`; places in one square keep
        their order.

    Returns
    -------
    (n,) indices into `xy`.
    """
    if len(xy) == 0:
        return np.empty(0, dtype=np.int64)
    cells = np.floor((xy - xy.min(axis=0)) / cell)
    # Places further apart than the curve has squares would wrap around; then the squares grow.
    cells = np.floor(cells / max(1.0, (cells.max() + 1) / 2**_ORDER)).astype(np.int64)
    return np.argsort(hilbert_distance(cells[:, 0], cells[:, 1]), kind="stable")


def hilbert_distance(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) distance along the curve of squares `x`, `y` (n,), both from 0 to 2**16 - 1.

    The classic walk down the quadrants (Hilbert 1891; Skilling 2004, AIP Conf. Proc. 707), on whole arrays.
    """
    x, y = x.copy(), y.copy()
    distance = np.zeros_like(x)
    side = 1 << (_ORDER - 1)
    while side:
        right, low = (x & side) > 0, (y & side) > 0
        distance += side * side * ((3 * right) ^ low)
        x, y = x & (side - 1), y & (side - 1)
        flipped = ~low & right
        x, y = np.where(flipped, side - 1 - x, x), np.where(flipped, side - 1 - y, y)
        x, y = np.where(low, x, y), np.where(low, y, x)
        side >>= 1
    return distance
