"""What formats share whose levels are chunked arrays: reading a region of an array as RGB."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmap_st.errors import ImageError, RegionError
from mmap_st.extract.formats.pixels import TILE_PX, Pyramid, as_rgb, levels_of, on_white, pasted

_LARGEST_TILE_PX = 2048


class ArraySlide(Pyramid):
    """A slide whose levels are arrays.

    Parameters
    ----------
    path
        Of the image, for messages.
    arrays
        One a level, finest first; read by indexing.
    axes
        What their axes are, such as ``YXS`` or ``CYX``.
    mpp
        Micrometres per pixel from the image's metadata.

    Raises
    ------
    ImageError
        If the pixels are not 8-bit grey, RGB or RGBA, or cannot be decoded here.
    """

    def __init__(self, path: Path, arrays: Sequence[Any], axes: str, mpp: float | None) -> None:
        self._path, self._arrays, self._axes, self._mpp = path, arrays, axes, mpp
        self._reading = threading.Lock()
        across, down = axes.index("X"), axes.index("Y")
        self._levels = levels_of(
            [(int(a.shape[across]), int(a.shape[down])) for a in arrays],
            [_tile((int(a.chunks[across]), int(a.chunks[down]))) for a in arrays],
        )
        if arrays[0].dtype != np.uint8:
            raise ImageError(f"{path} has pixels of type {arrays[0].dtype}; convert it to 8-bit RGB.")
        # One pixel tells whether the compression can be decoded here, and whether the colours are RGB.
        with suppress(RegionError):  # others may be whole
            self.read((0, 0, 1, 1))

    def read(self, box: tuple[int, int, int, int], level: int = 0) -> Image.Image:
        inside = on_white(box, self._levels[level].size)
        if inside is None:
            return pasted(None, None, box)
        x0, y0, x1, y1 = inside
        where = tuple({"X": slice(x0, x1), "Y": slice(y0, y1)}.get(axis, slice(None)) for axis in self._axes)
        try:
            with self._reading:
                pixels = np.asarray(self._arrays[level][where])
        except Exception as error:  # of many kinds, by the codec
            if "imagecodecs" in str(error):
                raise ImageError(
                    f"{self._path}: its compression needs imagecodecs, which is not installed:"
                    " pip install 'mmap-st[tiff]'."
                ) from error
            raise RegionError(f"{self._path} cannot be decoded at {box} ({error}).") from error
        return pasted(as_rgb(pixels, self._axes, str(self._path)), inside, box)

    def close(self) -> None:
        self._arrays = []


def _tile(chunk: tuple[int, int]) -> tuple[int, int]:
    """What to read at a time of an array in chunks of this width and height."""
    return chunk if max(chunk) <= _LARGEST_TILE_PX else (TILE_PX, TILE_PX)
