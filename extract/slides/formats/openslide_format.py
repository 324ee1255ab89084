"""Whole-slide images that OpenSlide reads tile by tile: those of scanners, tiled TIFF, DICOM."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmap_st.errors import ImageError, RegionError, UnsuitableImageError, first_line
from mmap_st.extract.slides.formats.alpha import Alpha, alpha_of
from mmap_st.extract.slides.formats.memory import refuse_too_large
from mmap_st.extract.slides.formats.notes import (
    Sides,
    orientation_notes,
    orientation_of,
    orientation_of_page,
    pages_alike,
    plane_notes,
    shape_notes,
)
from mmap_st.extract.slides.formats.pixels import (
    TILE_PX,
    Level,
    Pyramid,
    flatten,
    is_of_a_printer,
    levels_of,
    on_white,
    pasted,
    plausible_mpp,
)
from mmap_st.extract.slides.formats.tiff import (
    JPEG,
    JpegTiles,
    jpeg_colours,
    jpeg_pages,
)

#: Formats whose levels are a TIFF's pages, pixel for pixel.
_PLAIN_TIFF = ("aperio", "generic-tiff")
#: Larger ones, in pixels, are not what is decoded at a time: the format has no tiles.
_LARGEST_CHUNK_PX = 1 << 26
_FOCAL_PLANES = "TotalPixelMatrixFocalPlanes"
#: A tile as decoded, as OpenSlide keeps it, and as RGB.
_BYTES_PER_PX = 11
#: Rows that are looked at a time for anything that is not transparent.
_BAND_PX = 1024


class OpenSlideSlide(Pyramid):
    """An image opened by OpenSlide."""

    def __init__(self, path: Path, *, mpp: float | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._slide = self._open()
        properties = self._slide.properties
        sizes = [(int(w), int(h)) for w, h in self._slide.level_dimensions]
        #: OpenSlide's numbers of the levels: it takes every page in tiles for one, labels too.
        self._numbers = [number for number, size in enumerate(sizes) if _shows_the_same(size, sizes[0])]
        self._levels = levels_of(
            [sizes[number] for number in self._numbers],
            [_chunk(path, properties, number) for number in self._numbers],
        )
        self._downsamples = tuple(float(self._slide.level_downsamples[number]) for number in self._numbers)
        self._mpp = _mpp(properties) or mpp
        self._tiles = _jpeg_tiles(path, properties, self._levels)

    def _open(self) -> Any:
        import openslide

        try:
            return openslide.OpenSlide(self._path)
        except (openslide.OpenSlideError, OSError) as error:
            if _FOCAL_PLANES in str(error):
                raise UnsuitableImageError(
                    f"{self._path} has several focal planes, and DICOM is read of one; export one of them."
                ) from error
            raise ImageError(f"{self._path} cannot be opened by OpenSlide ({first_line(error)}).") from error

    def read(self, box: tuple[int, int, int, int], level: int = 0) -> Image.Image:
        import openslide

        # Only what lies inside: at coordinates below zero OpenSlide's lower levels are a pixel off.
        inside = on_white(box, self._levels[level].size)
        if inside is None:
            return pasted(None, None, box)
        x0, y0, x1, y1 = inside
        slide = self._slide
        # OpenSlide wants the corner in level-0 pixels, and takes it to the level by its own downsample, one
        # for both axes: rounding puts the corner off by half a level-0 pixel at most.
        own = self._downsamples[level]
        where = (round(x0 * own), round(y0 * own)), self._numbers[level], (x1 - x0, y1 - y0)
        try:
            region = slide.read_region(*where)
        except openslide.OpenSlideError:
            # Of this region, or of one that another thread read: an error stays with the handle.
            self._reopen(slide)
            region = self._read_alone(where, box)
        return pasted(flatten(region), inside, box)

    def _read_alone(self, where: tuple[Any, int, Any], box: tuple[int, int, int, int]) -> Image.Image:
        """Read with a handle that nobody else uses."""
        import openslide

        fresh = self._open()
        try:
            region: Image.Image = fresh.read_region(*where)
        except openslide.OpenSlideError as error:
            raise RegionError(f"{self._path} cannot be decoded at {box} ({first_line(error)}).") from error
        finally:
            fresh.close()
        return region

    def read_tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        tile = self._tiles.read(level, column, row) if self._tiles is not None else None
        return super().read_tile(level, column, row) if tile is None else tile

    def is_transparent(self) -> bool:
        """See `Slide`."""
        import openslide

        coarsest = len(self._levels) - 1
        width, height = self._levels[coarsest].size
        own = self._downsamples[coarsest]
        for y in range(0, height, _BAND_PX):
            where = (0, round(y * own)), self._numbers[coarsest], (width, min(_BAND_PX, height - y))
            try:
                alpha = self._slide.read_region(*where).getchannel("A")
            except openslide.OpenSlideError:
                return False
            if alpha.getextrema() != (0, 0):
                return False
        return True

    @property
    def notes(self) -> tuple[str, ...]:
        return (
            *plane_notes({"I": pages_alike(self._path)}, None),
            *orientation_notes(orientation_of(self._path)),
            *shape_notes(*_sides(self._slide.properties)),
        )

    def close(self) -> None:
        self._slide.close()
        if self._tiles is not None:
            self._tiles.close()

    def _reopen(self, failed: object) -> None:
        """After one error OpenSlide refuses every later read of a handle: take a fresh one."""
        with self._lock:
            if self._slide is failed:
                self._slide = self._open()


def dicom_series(path: Path) -> str | None:
    """Which series, and so which slide, a DICOM file is of; None where OpenSlide cannot tell."""
    import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            return slide.properties.get("dicom.SeriesInstanceUID")
    except (openslide.OpenSlideError, OSError):
        return None


def is_misread_by_openslide(path: Path) -> bool:
    """Whether OpenSlide would open a plain TIFF and show other pixels than are in it.

    It goes by the photometric tag where tiles are JFIF, takes 16 bits for 8 and any fourth sample for alpha,
    of planes shows the first, turns every tile for itself where the file asks to be turned, and takes a label
    for the slide that comes first. Tiles that are huge it would decode again for every part of them.
    """
    import openslide
    import tifffile

    if openslide.OpenSlide.detect_format(path) != "generic-tiff":
        return False
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            keyframes = [other.keyframe for other in file.pages]
            largest = max(one.imagewidth * one.imagelength for one in keyframes if one is not None)
            return bool(
                page.imagewidth * page.imagelength < largest
                or page.tilewidth * page.tilelength > _LARGEST_CHUNK_PX
                or orientation_notes(orientation_of_page(page))
                or page.bitspersample != 8
                or page.samplesperpixel not in (1, 3, 4)
                or (page.samplesperpixel > 1 and page.planarconfig != 1)
                or alpha_of(page) is Alpha.NONE
                or (page.compression == JPEG and jpeg_colours(page) != page.photometric)
            )
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return False


def _chunk(path: Path, properties: Any, level: int) -> tuple[int, int]:
    """Width and height of a level's own tiles; `TILE_PX` where it has none, or huge ones."""
    width, height = (
        int(properties.get(f"openslide.level[{level}].tile-{side}", 0)) for side in ("width", "height")
    )
    # Others call tiles what they decode in parts.
    if properties.get("openslide.vendor") in _PLAIN_TIFF:
        refuse_too_large(path, (width, height), _BYTES_PER_PX, "tiles")
    return (width, height) if 0 < width * height <= _LARGEST_CHUNK_PX else (TILE_PX, TILE_PX)


def _jpeg_tiles(path: Path, properties: Any, levels: tuple[Level, ...]) -> JpegTiles | None:
    """Direct access to the tiles, where a slide is a plain TIFF of JPEGs."""
    import tifffile

    if properties.get("openslide.vendor") not in _PLAIN_TIFF:
        return None
    try:
        with tifffile.TiffFile(path) as file:
            pages = jpeg_pages(file.pages, levels)
            return None if pages is None else JpegTiles(path, pages)
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None  # OpenSlide opened it, and reads it alone


def _mpp(properties: Any) -> float | None:
    """Mean of both axes; None where the file does not say, or says what cannot be."""
    return plausible_mpp(*_sides(properties)) if None not in _sides(properties) else None


def _sides(properties: Any) -> Sides:
    """Micrometres that a pixel is wide and high."""
    values = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    try:
        x, y = (float(value) for value in values if value is not None)
    except ValueError:
        return None, None
    if properties.get("openslide.vendor") == "generic-tiff" and is_of_a_printer(x):
        return None, None
    return x, y


def _shows_the_same(size: tuple[int, int], finest: tuple[int, int]) -> bool:
    """Whether a level may be the finest one made smaller, by its proportions."""
    across, down = (whole / part for whole, part in zip(finest, size, strict=True))
    # Sizes are rounded, some up to whole tiles; a label or an overview is of quite another shape.
    return max(across, down) / min(across, down) <= 1.1 + 2 / min(size)
