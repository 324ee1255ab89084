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

from mmap_st.errors import ImageError, OverviewError, RegionError, UnsuitableImageError, counted, first_line
from mmap_st.extract.slides.formats.alpha import Alpha, without_alpha
from mmap_st.extract.slides.formats.memory import refuse_too_large
from mmap_st.extract.slides.formats.notes import are_square, plane_notes
from mmap_st.extract.slides.formats.units import micrometres_of

WHITE = (255, 255, 255)
#: Coarser than this, a whole number of pixels per inch or centimetre is a printer's (72 dpi is 353 um/px).
_COARSEST_MPP = 20.0
_WHOLE = 0.02
_OPENING = threading.Lock()
#: What is read at a time of an image that has no tiles of its own.
TILE_PX = 256
#: Chunks of larger sides are decoded whole and cut into tiles; so are strips of smaller sides.
_LARGEST_TILE_PX, _SMALLEST_TILE_PX = 2048, 16
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
        Width and height of a tile, the unit in which pixels are cached, in its own pixels.
    block
        How many tiles, along x and y, are decoded together: more than one where the image is stored in large
        chunks, of which a part costs as much as the whole.
    """

    size: tuple[int, int]
    downsample: tuple[float, float]
    tile: tuple[int, int] = (TILE_PX, TILE_PX)
    block: tuple[int, int] = (1, 1)

    @property
    def block_px(self) -> tuple[int, int]:
        """Width and height of what is decoded at a time, in its own pixels."""
        return self.tile[0] * self.block[0], self.tile[1] * self.block[1]

    @property
    def large_blocks(self) -> bool:
        """Whether what is decoded at a time is too large to be decoded often."""
        return self.block != (1, 1) or max(self.tile) > _LARGEST_TILE_PX


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

    def read_tiles(self, level: int, places: Sequence[tuple[int, int]]) -> Iterator[NDArray[np.uint8]]:
        """See `mmap_st.extract.slides.slide.Slide`."""
        boxes = [tile_box(self._levels[level], *place) for place in places]
        around = box_around(boxes)
        pixels = np.asarray(self.read(around, level))
        for box in boxes:
            yield pixels[within(box, around)]

    def thumbnail(self, longest_px: int) -> Image.Image:
        """See `Slide`; read block by block, so that any slide takes little memory."""
        fine_enough = [level for level in self._levels if max(level.size) >= longest_px]
        number = self._levels.index(
            min(fine_enough, key=lambda level: max(level.size), default=self._levels[0])
        )
        width, height = self._levels[number].size
        reduction = max(max(width, height) // longest_px, 1)
        small = Image.new("RGB", (-(-width // reduction), -(-height // reduction)))
        # About as large as what is decoded at a time, so that little is decoded again.
        level = self._levels[number]
        sides = level.block_px if level.large_blocks else (_BLOCK_PX, _BLOCK_PX)
        across, down = (reduction * max(side // reduction, 1) for side in sides)
        for y in range(0, height, down):
            for x in range(0, width, across):
                box = x, y, min(x + across, width), min(y + down, height)
                try:
                    block = self.read(box, number)
                except RegionError as error:
                    raise OverviewError(f"its overview cannot be made: {error}") from error
                small.paste(block.reduce(reduction), (x // reduction, y // reduction))
        return shrunk(small, longest_px)

    def is_transparent(self) -> bool:
        """See `mmap_st.extract.slides.slide.Slide`."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """See `mmap_st.extract.slides.slide.Slide`."""
        return ()

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
    sizes: Sequence[tuple[int, int]], chunks: Sequence[tuple[int, int]] | None = None
) -> tuple[Level, ...]:
    """Levels of a pyramid, finest first, from their sizes and from what their image is stored in."""
    width, height = sizes[0]
    chunks = chunks or [(TILE_PX, TILE_PX)] * len(sizes)
    return tuple(
        Level((w, h), (width / w, height / h), *tiling(chunk, (w, h)))
        for (w, h), chunk in zip(sizes, chunks, strict=True)
    )


def tiling(chunk: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Tile and block of a level of `size` that is stored in chunks; all are width and height.

    Chunks of a usual size are tiles. Larger ones, and strips, are cut into tiles along lines that are also
    lines between chunks, so that each tile is decoded with the chunks that it lies in and with no other.
    """
    if max(chunk) <= _LARGEST_TILE_PX and min(chunk) >= _SMALLEST_TILE_PX:
        return chunk, (1, 1)
    (width, across), (height, down) = (_cut(*one) for one in zip(chunk, size, strict=True))
    return (width, height), (across, down)


def _cut(chunk: int, size: int) -> tuple[int, int]:
    """Length of a tile along one axis, and how many tiles are decoded together."""
    if chunk >= size:
        return TILE_PX, -(-size // TILE_PX)
    if chunk <= TILE_PX:
        return chunk * (TILE_PX // chunk), 1
    divisors = (d for d in range(TILE_PX // 4, chunk + 1) if chunk % d == 0)
    tile = min(divisors, key=lambda d: abs(math.log(d / TILE_PX)))
    return tile, chunk // tile


def tile_box(level: Level, column: int, row: int) -> tuple[int, int, int, int]:
    """Box x0, y0, x1, y1 of a tile in pixels of its level, cut at the level's edge."""
    x, y = column * level.tile[0], row * level.tile[1]
    return x, y, min(x + level.tile[0], level.size[0]), min(y + level.tile[1], level.size[1])


def box_around(boxes: Sequence[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    """The smallest box that holds all of these."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def within(box: tuple[int, int, int, int], around: tuple[int, int, int, int]) -> tuple[slice, slice]:
    """Rows and columns of a box in an array that shows the box `around` it."""
    x, y = around[:2]
    return slice(box[1] - y, box[3] - y), slice(box[0] - x, box[2] - x)


def plausible_mpp(x: float | None, y: float | None = None) -> float | None:
    """Mean of the micrometres per pixel along both axes; None where unknown, unequal or not above zero."""
    values = [value for value in (x, x if y is None else y) if value is not None and math.isfinite(value)]
    if len(values) < 2 or min(values) <= 0 or not are_square(*values):
        return None
    return sum(values) / 2


def um_of_resolution(per_unit: float, unit: str) -> float | None:
    """Micrometres per pixel of a resolution, pixels per ``centimeter`` or ``inch``; None for a printer's."""
    micrometres = micrometres_of(unit)
    if micrometres is None or not per_unit > 0 or is_of_a_printer(micrometres / per_unit):
        return None
    return micrometres / per_unit


def is_of_a_printer(mpp: float) -> bool:
    """Whether a resolution tag says how large an image is printed, and nothing of tissue."""
    dots = [length / mpp for length in (25_400.0, 10_000.0)]
    return mpp > _COARSEST_MPP and any(abs(number - round(number)) < _WHOLE for number in dots)


def has_alpha(image: Image.Image) -> bool:
    """Whether parts of an image may be transparent."""
    return image.mode in ("RGBA", "LA") or "transparency" in image.info


def flatten(image: Image.Image) -> Image.Image:
    """RGB, decoded, transparent parts white."""
    if has_alpha(image):
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


def as_rgb(pixels: NDArray[np.generic], axes: str, source: str, alpha: Alpha = Alpha.STRAIGHT) -> Image.Image:
    """An image from an array of 8-bit pixels, its axes named as in ``YXS``, ``CYX`` or ``YX``.

    Raises
    ------
    ImageError
        If it is not 8-bit grey, RGB or RGBA.
    """
    if pixels.dtype != np.uint8:
        raise UnsuitableImageError(f"{source} has pixels of type {pixels.dtype}; convert it to 8-bit RGB.")
    colour = next((axis for axis in "SC" if axis in axes), None)
    order = [axes.index(axis) for axis in ("Y", "X", colour) if axis is not None]
    rest = tuple(0 if i not in order else slice(None) for i in range(pixels.ndim))
    flat = pixels[rest]
    kept = [axis for i, axis in enumerate(axes) if i in order]
    flat = np.transpose(flat, [kept.index(axis) for axis in ("Y", "X", colour) if axis is not None])
    channels = 1 if flat.ndim == 2 else flat.shape[2]
    if channels not in (1, 3, 4):
        raise UnsuitableImageError(
            f"{source} has {counted(channels, 'channel')}; an H&E image has the three of RGB."
        )
    if channels == 4 and alpha is not Alpha.STRAIGHT:
        flat = without_alpha(np.asarray(flat, np.uint8), alpha)
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
    alpha
        What the last of four channels is.

    Raises
    ------
    ImageError
        If the pixels are not 8-bit grey, RGB or RGBA, or cannot be decoded here.
    """

    def __init__(
        self, path: Path, arrays: Sequence[Any], axes: str, mpp: float | None, alpha: Alpha = Alpha.STRAIGHT
    ) -> None:
        self._path, self._arrays, self._axes, self._mpp, self._alpha = path, arrays, axes, mpp, alpha
        self._reading = threading.Lock()
        self._colour = next((axis for axis in "SC" if axis in axes), None)
        self._notes = plane_notes(
            {axis: int(n) for axis, n in zip(axes, arrays[0].shape, strict=True) if axis not in "XY"},
            self._colour,
        )
        across, down = axes.index("X"), axes.index("Y")
        for array in arrays:
            # As stored, as a part of it, and as RGB.
            values = math.prod(array.chunks) // (array.chunks[across] * array.chunks[down])
            refuse_too_large(path, (array.chunks[across], array.chunks[down]), 2 * values + 3, "tiles")
        self._levels = levels_of(
            [(int(a.shape[across]), int(a.shape[down])) for a in arrays],
            [(int(a.chunks[across]), int(a.chunks[down])) for a in arrays],
        )
        if arrays[0].dtype != np.uint8:
            raise UnsuitableImageError(
                f"{path} has pixels of type {arrays[0].dtype}; convert it to 8-bit RGB."
            )
        # One pixel tells whether the compression can be decoded here, and whether the colours are RGB.
        with suppress(RegionError):  # others may be whole
            self.read((0, 0, 1, 1))

    def read(self, box: tuple[int, int, int, int], level: int = 0) -> Image.Image:
        inside = on_white(box, self._levels[level].size)
        if inside is None:
            return pasted(None, None, box)
        pixels = self._pixels(inside, level)
        return pasted(as_rgb(pixels, self._axes, str(self._path), self._alpha), inside, box)

    def read_tiles(self, level: int, places: Sequence[tuple[int, int]]) -> Iterator[NDArray[np.uint8]]:
        boxes = [tile_box(self._levels[level], *place) for place in places]
        around = box_around(boxes)
        pixels = self._pixels(around, level)
        # Tile by tile, since a chunk may be large: converted as a whole it would be in memory several times.
        for box in boxes:
            rows, columns = within(box, around)
            part = tuple({"X": columns, "Y": rows}.get(axis, slice(None)) for axis in self._axes)
            yield np.asarray(as_rgb(pixels[part], self._axes, str(self._path), self._alpha))

    def _pixels(self, box: tuple[int, int, int, int], level: int) -> NDArray[np.generic]:
        """What the level's array holds of a box that lies inside."""
        x0, y0, x1, y1 = box
        wanted = {"X": slice(x0, x1), "Y": slice(y0, y1), self._colour: slice(None)}
        where = tuple(wanted.get(axis, slice(0, 1)) for axis in self._axes)
        try:
            with self._reading:
                return np.asarray(self._arrays[level][where])
        except Exception as error:  # of many kinds, by the codec
            if "imagecodecs" in str(error):
                raise ImageError(
                    f"{self._path}: its compression needs imagecodecs, which is not installed:"
                    " pip install 'mmap-st[tiff]'."
                ) from error
            raise RegionError(f"{self._path} cannot be decoded at {box} ({first_line(error)}).") from error

    def is_transparent(self) -> bool:
        """See `Slide`."""
        coarsest = self._arrays[-1]
        sizes = dict(zip(self._axes, coarsest.shape, strict=True))
        if self._colour is None or sizes[self._colour] != 4 or self._alpha is Alpha.NONE:
            return False
        rest = {"X": slice(None), "Y": slice(None), self._colour: 3}
        try:
            with self._reading:
                return not np.any(coarsest[tuple(rest.get(axis, 0) for axis in self._axes)])
        except Exception:  # noqa: BLE001 - of many kinds, by the codec; then it is not known to be
            return False

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    def close(self) -> None:
        self._arrays = []
