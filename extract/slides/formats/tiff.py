"""OME-TIFF, with pyramids in sub-resolutions and scale in its XML, and TIFFs that OpenSlide refuses.

Tiles that are JPEGs are decoded one by one: a tenth of the time that OpenSlide takes. The pixels are
OpenSlide's, since both decode by libjpeg-turbo (tests/extract/slides/test_tiles.py). Damage that libjpeg can
paper over is an error here, where OpenSlide returns made-up pixels.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import ImageError, RegionError, UnsuitableImageError, first_line
from mmap_st.extract.slides.formats.alpha import alpha_of
from mmap_st.extract.slides.formats.notes import (
    Sides,
    orientation_notes,
    orientation_of_page,
    shape_notes,
)
from mmap_st.extract.slides.formats.pixels import (
    ArraySlide,
    Level,
    plausible_mpp,
    um_of_resolution,
)
from mmap_st.extract.slides.formats.units import micrometres_of

JPEG, _RGB, _YCBCR = 7, 2, 6
_START = b"\xff\xd8"
#: Adobe's marker: its last byte tells whether the three components are RGB or YCbCr. The TIFF's photometric
#: tag decides which, as for OpenSlide; libjpeg alone would go by markers, and guess where there are none.
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
_TRANSFORM = {_RGB: b"\x00", _YCBCR: b"\x01"}
#: Places beyond this are damage, and fit no 64 bits when added up.
_LARGEST_PLACE = 1 << 62
_APP0, _APP14, _SCAN, _END = 0xE0, 0xEE, 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: What libjpeg says where it skips bytes that belong to nothing: some scanners write them.
_UNCLEAR = "extraneous bytes"


@dataclass(frozen=True)
class _Page:
    """Where the tiles of one level lie.

    Sizes are (width, height) in pixels; the prefix comes before each tile's own segments.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    prefix: bytes


class JpegTiles:
    """The tiles of a pyramid.

    Parameters
    ----------
    path
        TIFF file.
    pages
        tifffile's page of each level, finest first; `jpeg_pages` chooses them.
    """

    def __init__(self, path: Path, pages: Sequence[Any]) -> None:
        self._path = path
        self._pages = tuple(
            _Page(
                (page.imagewidth, page.imagelength),
                (page.tilewidth, page.tilelength),
                np.array(page.dataoffsets, dtype=np.int64),
                np.array(page.databytecounts, dtype=np.int64),
                _prefix(page),
            )
            for page in pages
        )
        self._file = path.open("rb")
        self._bytes_in_file = os.fstat(self._file.fileno()).st_size
        self._seeking = threading.Lock()

    def read(self, level: int, column: int, row: int) -> NDArray[np.uint8] | None:
        """Decode one tile.

        Returns
        -------
        (h, w, 3) RGB, cropped to the level; None where the file leaves the tile out, or has it in a form
        that another reader may know better.

        Raises
        ------
        RegionError
            If the tile is damaged.
        ImageError
            If the file cannot be read any more.
        """
        import simplejpeg

        page = self._pages[level]
        width, height = page.tile
        index = row * -(-page.size[0] // width) + column
        offset, length = int(page.offsets[index]), int(page.lengths[index])
        if length == 0:
            return None
        data = self._bytes(offset, length) if offset + length <= self._bytes_in_file else b""
        if len(data) < length:
            raise self._damaged(level, column, row, "the file ends before it does")
        try:
            segments, frame, scan = _parse(data)
        except _UnclearError:
            return None
        except ValueError as error:
            raise self._damaged(level, column, row, first_line(error)) from error
        if frame is None or frame.bits != 8 or frame.components != 3:
            return None
        # Before decoding: a damaged header may claim gigabytes.
        if frame.size != page.tile:
            raise self._damaged(level, column, row, f"it is {frame.size[0]} x {frame.size[1]} px")
        try:
            tile = simplejpeg.decode_jpeg(page.prefix + segments + scan)
        except ValueError as error:
            if _UNCLEAR in str(error):
                return None
            raise self._damaged(level, column, row, first_line(error)) from error
        inside = tile[: page.size[1] - row * height, : page.size[0] - column * width]
        return np.asarray(inside, dtype=np.uint8)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _bytes(self, offset: int, length: int) -> bytes:
        try:
            if hasattr(os, "pread"):
                return os.pread(self._file.fileno(), length, offset)
            with self._seeking:
                self._file.seek(offset)
                return self._file.read(length)
        except (OSError, ValueError) as error:
            raise ImageError(
                f"{self._path} cannot be read any more ({first_line(error)}); check the disk or share that"
                " it is on."
            ) from error

    def _damaged(self, level: int, column: int, row: int, why: str) -> RegionError:
        return RegionError(f"{self._path}, level {level}: tile {column}, {row} cannot be decoded ({why}).")


def jpeg_pages(pages: Sequence[Any], levels: Sequence[Level]) -> tuple[Any, ...] | None:
    """The pages of a TIFF that hold these levels as JPEG tiles; None if any level does not."""
    found = []
    for level in levels:
        # Where two pages have one size, which of them is the level cannot be told from here.
        of_that_size = [page for page in pages if (page.imagewidth, page.imagelength) == level.size]
        if len(of_that_size) != 1 or not _holds(of_that_size[0], level):
            return None
        found.append(of_that_size[0])
    return tuple(found)


def _holds(page: Any, level: Level) -> bool:
    columns, rows = (-(-size // tile) for size, tile in zip(level.size, level.tile, strict=True))
    return (
        page.is_tiled
        and (page.tilewidth, page.tilelength) == level.tile
        and len(page.dataoffsets) == len(page.databytecounts) == columns * rows
        and max(*page.dataoffsets, *page.databytecounts, 0) < _LARGEST_PLACE
        and page.compression == JPEG
        and page.photometric in (_RGB, _YCBCR)
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.planarconfig == 1
        and page.imagedepth == 1
        and _tables_are_clear(page)
    )


def _tables_are_clear(page: Any) -> bool:
    try:
        return _prefix(page) is not None
    except ValueError:
        return False


def _prefix(page: Any) -> bytes:
    """What comes before a tile's own segments: its colours, and the tables that all tiles share."""
    tables = _parse(page.jpegtables)[0] if page.jpegtables else b""
    return _START + _ADOBE + _TRANSFORM[jpeg_colours(page)] + tables


def jpeg_colours(page: Any) -> int:
    """The photometric tag; JFIF is YCbCr, and Bio-Formats and QuPath write it under the tag RGB."""
    return _YCBCR if page.photometric == _RGB and page.is_jfif else int(page.photometric)


@dataclass(frozen=True)
class _Frame:
    """What a JPEG's header says: width and height, bits a component, number of components."""

    size: tuple[int, int]
    bits: int
    components: int


class _UnclearError(ValueError):
    """A header with bytes that belong to nothing, which some scanners write."""


def _parse(jpeg: bytes) -> tuple[bytes, _Frame | None, bytes]:
    """The segments of a JPEG but those that name its colours, its frame, and its scan with all that follows.

    Raises
    ------
    ValueError
        If it is not a JPEG.
    """
    if jpeg[:2] != _START:
        raise ValueError("it is not a JPEG")
    kept: list[bytes] = []
    frame, at = None, len(_START)
    while True:
        if len(jpeg) < at + 4 and jpeg[at : at + 2] != bytes((0xFF, _END)):
            raise ValueError("its header is cut off")
        if jpeg[at] != 0xFF:
            raise _UnclearError("bytes that belong to nothing")
        marker = jpeg[at + 1]
        if marker in (_SCAN, _END):
            return b"".join(kept), frame, jpeg[at:]
        if marker == 0xFF:  # filling
            at += 1
            continue
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in _FRAMES and end >= at + 10:
            height, width = (int.from_bytes(jpeg[at + i : at + i + 2], "big") for i in (5, 7))
            frame = _Frame((width, height), jpeg[at + 4], jpeg[at + 9])
        if marker not in (_APP0, _APP14):
            kept.append(jpeg[at:end])
        at = end


_COLOURS = frozenset({"red", "green", "blue", "alpha", "r", "g", "b", "a", "rgb"})
#: Names of channels that say nothing, such as Channel:0:0, C1 or 2.
_NO_NAME = re.compile(r"(channel|ch|c)?[\s_:#.-]*\d+([\s_:.-]+\d+)*")
_UNITS = {2: "inch", 3: "centimeter"}


class TiffSlide(ArraySlide):
    """A TIFF opened by tifffile; regions are read chunk by chunk."""

    def __init__(self, path: Path) -> None:
        import tifffile
        import zarr

        try:
            self._file = tifffile.TiffFile(path)
            # Scanners may put the label or an overview first.
            number, series = max(enumerate(self._file.series), key=lambda one: _pixels(one[1]))
            about = ome_image(self._file.ome_metadata, number)
            _refuse_stains(about)
            arrays = [
                zarr.open_array(series.aszarr(level=index), mode="r") for index in range(len(series.levels))
            ]
            page = series.keyframe
            sides = ome_sides(about) if ome_sides(about)[0] is not None else _resolution_sides(page)
            mpp = plausible_mpp(*sides)
            axes = str(series.axes)
        except UnsuitableImageError as error:
            raise UnsuitableImageError(f"{path} {error}") from error
        except Exception as error:  # of many kinds, by what is damaged
            raise ImageError(f"{path} cannot be opened as TIFF ({first_line(error)}).") from error
        super().__init__(path, arrays, axes, mpp, alpha_of(page))
        self._notes += (*orientation_notes(orientation_of_page(page)), *shape_notes(*sides))
        own = [level.keyframe for level in series.levels if len(level) == 1]
        pages = jpeg_pages([page for page in own if page.parent is self._file], self.levels)
        self._tiles = None if pages is None else JpegTiles(path, pages)
        if self._tiles is not None and not self._shows_the_same(self._tiles):
            self._tiles.close()
            self._tiles = None

    def _shows_the_same(self, tiles: JpegTiles) -> bool:
        """Whether a tile has the colours that `read` gives it: markers may contradict the tag."""
        with suppress(RegionError):
            first = tiles.read(len(self.levels) - 1, 0, 0)
            return first is None or np.array_equal(first, super().read_tile(len(self.levels) - 1, 0, 0))
        return True

    def read_tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        tile = self._tiles.read(level, column, row) if self._tiles is not None else None
        return super().read_tile(level, column, row) if tile is None else tile

    def close(self) -> None:
        super().close()
        self._file.close()
        if self._tiles is not None:
            self._tiles.close()


def _pixels(series: Any) -> int:
    """Width times height of a series; 0 for one that is not a picture."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return int(sizes.get("X", 0)) * int(sizes.get("Y", 0))


def ome_image(xml: str | None, number: int) -> dict[str, Any]:
    """What an OME-XML says of the pixels of one of its images; nothing where there is none."""
    import tifffile

    try:
        images = tifffile.xml2dict(xml or "")["OME"]["Image"]
        pixels = (images[number] if isinstance(images, list) else images)["Pixels"]
    except (SyntaxError, KeyError, TypeError, ValueError, IndexError):
        return {}
    return pixels if isinstance(pixels, dict) else {}


def _refuse_stains(pixels: dict[str, Any]) -> None:
    """Refuse images whose channels have names of their own: those of fluorescence are not H&E.

    Raises
    ------
    ImageError
        If so; the sentence lacks the file's name.
    """
    channels = pixels.get("Channel", [])
    channels = channels if isinstance(channels, list) else [channels]
    names = [str(c["Name"]) for c in channels if isinstance(c, dict) and c.get("Name")]
    said = [name.strip().lower() for name in names if not _NO_NAME.fullmatch(name.strip().lower())]
    if len(names) > 1 and not set(said) <= _COLOURS:
        raise UnsuitableImageError(
            f"has the channels {', '.join(names)}; an H&E image has red, green and blue."
        )


def ome_sides(pixels: dict[str, Any]) -> Sides:
    """Micrometres that a pixel is wide and high, by an OME-XML."""
    try:
        sizes = [float(pixels[f"PhysicalSize{axis}"]) for axis in "XY"]
    except (KeyError, TypeError, ValueError):
        return None, None
    units = [micrometres_of(pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "XY"]
    x, y = (None if unit is None else size * unit for size, unit in zip(sizes, units, strict=True))
    return x, y


def ome_mpp_of(path: Path) -> float | None:
    """Micrometres per pixel that the OME-XML of a file states of its first image; None if it does not."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        return plausible_mpp(*ome_sides(ome_image(file.ome_metadata, 0)))


def is_ome(path: Path) -> bool:
    """Whether a file is a TIFF with an OME-XML."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.is_ome)
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return False


def _resolution_sides(page: Any) -> Sides:
    """The same by the resolution tags."""
    unit = page.tags.get("ResolutionUnit")
    x = page.tags.get("XResolution")
    y = page.tags.get("YResolution", x)
    if x is None or unit is None:
        return None, None
    name = _UNITS.get(int(unit.value), "")
    across, down = (um_of_resolution(tag.value[0] / max(tag.value[1], 1), name) for tag in (x, y))
    return across, down
