"""Tiles of TIFF slides that are JPEGs, decoded one by one: a tenth of the time that OpenSlide takes.

The pixels are OpenSlide's, since both decode by libjpeg-turbo (tests/extract/test_tiles.py). Damage that
libjpeg can paper over is an error here, where OpenSlide returns made-up pixels.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import ImageError, RegionError
from mmap_st.extract.formats.pixels import Level

_JPEG, _RGB, _YCBCR = 7, 2, 6
_START = b"\xff\xd8"
#: Adobe's marker with transform 0: the three components are RGB. Without a marker libjpeg takes them for
#: YCbCr, and Aperio's tiles have none.
_COMPONENTS_ARE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
#: What libjpeg says where it skips bytes that belong to nothing: some scanners write them.
_UNCLEAR = "extraneous bytes"


@dataclass(frozen=True)
class _Page:
    """Where the tiles of one level lie.

    Sizes are (width, height) in pixels; the prefix comes before each tile's data.
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
        length = int(page.lengths[index])
        if length == 0:
            return None
        data = self._bytes(int(page.offsets[index]), length)
        if len(data) < length:
            raise self._damaged(level, column, row, "the file ends before it does")
        jpeg = page.prefix + data[len(_START) :]
        try:
            tile = simplejpeg.decode_jpeg(jpeg)
        except ValueError as error:
            if _UNCLEAR in str(error):
                return None
            raise self._damaged(level, column, row, str(error)) from error
        if tile.shape != (height, width, 3):
            raise self._damaged(level, column, row, f"it is {tile.shape[1]} x {tile.shape[0]} px")
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
                f"{self._path} cannot be read any more ({error}); check the disk or share that it is on."
            ) from error

    def _damaged(self, level: int, column: int, row: int, why: str) -> RegionError:
        return RegionError(f"{self._path}, level {level}: tile {column}, {row} cannot be decoded ({why}).")


def jpeg_pages(pages: Sequence[Any], levels: Sequence[Level]) -> tuple[Any, ...] | None:
    """The pages of a TIFF that hold these levels as JPEG tiles; None if any level is not so."""
    found = []
    for level in levels:
        page = next((page for page in pages if _holds(page, level.size)), None)
        if page is None:
            return None
        found.append(page)
    return tuple(found)


def _holds(page: Any, size: tuple[int, int]) -> bool:
    return (
        (page.imagewidth, page.imagelength) == size
        and page.is_tiled
        and page.compression == _JPEG
        and page.photometric in (_RGB, _YCBCR)
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.planarconfig == 1
        and page.imagedepth == 1
    )


def _prefix(page: Any) -> bytes:
    """What comes before a tile's own data: the tables that all tiles share."""
    tables = page.jpegtables[2:-2] if page.jpegtables else b""
    return _START + (_COMPONENTS_ARE_RGB if page.photometric == _RGB else b"") + tables
