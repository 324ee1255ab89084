"""What formats share: levels, pixels as RGB on white ground, and regions of chunked arrays."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmap_st.errors import ImageError, OverviewError, RegionError

WHITE = (255, 255, 255)
#: Coarser than this, an image's resolution is a printer's (72 dpi is 353 um/px) and not its scale; finer than
#: light resolves, it was written in another unit.
_COARSEST_MPP = 20.0
_FINEST_MPP = 0.01
_OPENING = threading.Lock()
#: What is read at a time of an image that has no tiles of its own.
TILE_PX = 256
#: Side of the blocks, roughly, in which an overview is read.
_BLOCK_PX = 2048


@dataclass(frozen=True)
class Level:
    """One level of a pyramid.

    Attributes
    ----------
    size
        Width and height in its own pixels.
    downsample
        Level-0 pixels to one of its pixels, along x and y: exact ratios of the sizes, never rounded.
    tile
        Width and height of what is decoded at a time, in its own pixels.
    """

    size: tuple[int, int]
    downsample: tuple[float, float]
    tile: tuple[int, int] = (TILE_PX, TILE_PX)


class Pyramid(ABC):
    """What a slide says of itself, for the formats that know their levels when they are opened."""

    _levels: tuple[Level, ...]
    _mpp: float | None

    @abstractmethod
    def read(self, box: tuple[int, int, int, int], level: int = 0) -> Image.Image:
        """See `mmap_st.extract.slides.slide.Slide`."""

    def read_tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """See `mmap_st.extract.slides.slide.Slide`."""
        return np.array(self.read(tile_box(self._levels[level], column, row), level))

    def thumbnail(self, longest_px: int) -> Image.Image:
        """See `Slide`; read block by block, so that any slide takes little memory."""
        fine_enough = [level for level in self._levels if max(level.size) >= longest_px]
        number = self._levels.index(
            min(fine_enough, key=lambda level: max(level.size), default=self._levels[0])
        )
        width, height = self._levels[number].size
        reduction = max(max(width, height) // longest_px, 1)
        small = Image.new("RGB", (-(-width // reduction), -(-height // reduction)))
        side = reduction * max(_BLOCK_PX // reduction, 1)
        for y in range(0, height, side):
            for x in range(0, width, side):
                box = x, y, min(x + side, width), min(y + side, height)
                try:
                    block = self.read(box, number)
                except RegionError as error:
                    raise OverviewError(f"its overview cannot be made: {error}") from error
                small.paste(block.reduce(reduction), (x // reduction, y // reduction))
        return shrunk(small, longest_px)

    @property
    def size(self) -> tuple[int, int]:
        return self._levels[0].size

    @property
    def mpp(self) -> float | None:
        return self._mpp

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._levels


def levels_of(
    sizes: Sequence[tuple[int, int]], tiles: Sequence[tuple[int, int]] | None = None
) -> tuple[Level, ...]:
    """Levels of a pyramid from their sizes and those of their tiles, finest first."""
    width, height = sizes[0]
    tiles = tiles or [(TILE_PX, TILE_PX)] * len(sizes)
    return tuple(
        Level((w, h), (width / w, height / h), tile) for (w, h), tile in zip(sizes, tiles, strict=True)
    )


def tile_box(level: Level, column: int, row: int) -> tuple[int, int, int, int]:
    """Box x0, y0, x1, y1 of a tile in pixels of its level, cut at the level's edge."""
    x, y = column * level.tile[0], row * level.tile[1]
    return x, y, min(x + level.tile[0], level.size[0]), min(y + level.tile[1], level.size[1])


def plausible_mpp(x: float | None, y: float | None = None) -> float | None:
    """Mean of the micrometres per pixel along both axes; None where they are unknown or cannot be a scale."""
    values = [value for value in (x, x if y is None else y) if value is not None and math.isfinite(value)]
    if len(values) < 2 or min(values) <= 0:
        return None
    mean = sum(values) / 2
    return mean if _FINEST_MPP <= mean <= _COARSEST_MPP else None


def mpp_of_resolution(per_unit: float, unit: str) -> float | None:
    """Micrometres per pixel of a resolution tag, pixels per ``centimeter`` or ``inch``."""
    micrometres = {"centimeter": 10_000.0, "inch": 25_400.0}.get(unit.lower())
    return plausible_mpp(micrometres / per_unit) if micrometres is not None and per_unit > 0 else None


def flatten(image: Image.Image) -> Image.Image:
    """RGB, decoded, transparent parts white."""
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", image.size, WHITE)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    # convert() of an RGB image copies it; load() alone decodes.
    image.load()
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def on_white(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The part of a box that lies inside a level; None if there is none."""
    x0, y0, x1, y1 = box
    inside = (max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1]))
    return inside if inside[0] < inside[2] and inside[1] < inside[3] else None


def pasted(
    part: Image.Image | None, inside: tuple[int, int, int, int] | None, box: tuple[int, int, int, int]
) -> Image.Image:
    """`part`, which shows `inside`, on the white ground of `box`."""
    if part is not None and inside == box:
        return part
    region = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), WHITE)
    if part is not None and inside is not None:
        region.paste(part, (inside[0] - box[0], inside[1] - box[1]))
    return region


def shrunk(image: Image.Image, longest_px: int) -> Image.Image:
    """The image, its longer side at most `longest_px`."""
    scale = min(1.0, longest_px / max(image.size))
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)


def as_rgb(pixels: NDArray[np.generic], axes: str, source: str) -> Image.Image:
    """An image from an array of 8-bit pixels, its axes named as in ``YXS``, ``CYX`` or ``YX``.

    Raises
    ------
    ImageError
        If it is no 8-bit grey, RGB or RGBA.
    """
    if pixels.dtype != np.uint8:
        raise ImageError(f"{source} has pixels of type {pixels.dtype}; convert it to 8-bit RGB.")
    colour = next((axis for axis in "SC" if axis in axes), None)
    order = [axes.index(axis) for axis in ("Y", "X", colour) if axis is not None]
    rest = tuple(0 if i not in order else slice(None) for i in range(pixels.ndim))
    flat = pixels[rest]
    kept = [axis for i, axis in enumerate(axes) if i in order]
    flat = np.transpose(flat, [kept.index(axis) for axis in ("Y", "X", colour) if axis is not None])
    channels = 1 if flat.ndim == 2 else flat.shape[2]
    if channels not in (1, 3, 4):
        raise ImageError(f"{source} has {channels} channels; an H&E image has the three of RGB.")
    return flatten(
        Image.fromarray(np.ascontiguousarray(flat[..., 0] if flat.ndim == 3 and channels == 1 else flat))
    )


@contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow open pictures as large as slides are; its limit guards web servers from strangers."""
    with _OPENING:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


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
