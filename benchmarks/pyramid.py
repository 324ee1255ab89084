"""Write a large synthetic slide: painted tissue, repeated, as a pyramid of JPEG tiles."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mmap_st.workflows.simulation.tissue import grow_tissue, paint_tissue

MPP = 0.25
TILE = 256
#: Downsamples of the three levels, those of Aperio's scanners.
LEVELS = (1, 4, 16)
#: The painted picture is as wide as a tile of the last level shows.
PICTURE = TILE * LEVELS[-1]
_QUALITY = 80

_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16
_BYTES = {_SHORT: 2, _LONG: 4, _RATIONAL: 8, _LONG8: 8}
_CODES = {_SHORT: "H", _LONG: "I", _RATIONAL: "2I", _LONG8: "Q"}


@dataclass(frozen=True)
class _Level:
    size: tuple[int, int]
    offsets: NDArray[np.uint64]
    lengths: NDArray[np.uint64]


def write_pyramid(
    path: Path,
    width: int,
    height: int,
    *,
    repeat_bytes: bool = False,
    seed: int = 0,
    picture: Image.Image | None = None,
) -> None:
    """Write a slide of `width` x `height` px at 0.25 um/px, in tiles of 256 px, of 3 levels.

    Parameters
    ----------
    path
        A BigTIFF, replaced where it exists.
    width, height
        Of level 0.
    repeat_bytes
        Point all repeats of a tile to the same bytes, so that any size takes a few MB on disk.
    seed, picture
        Of the tissue that is painted, which takes seconds; or a picture of (PICTURE, PICTURE) in its place.
    """
    picture = picture or paint_picture(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        levels = []
        for downsample in LEVELS:
            shrunk = picture.resize((PICTURE // downsample,) * 2, Image.Resampling.BOX)
            tiles = _encoded(np.asarray(shrunk))
            size = -(-width // downsample), -(-height // downsample)
            rows, columns = -(-size[1] // TILE), -(-size[0] // TILE)
            places: dict[tuple[int, int], int] = {}
            offsets = np.empty((rows, columns), np.uint64)
            lengths = np.empty((rows, columns), np.uint64)
            for row in range(rows):
                for column in range(columns):
                    which = row % len(tiles), column % len(tiles)
                    data = tiles[which[0]][which[1]]
                    if which not in places or not repeat_bytes:
                        places[which] = file.tell()
                        file.write(data)
                    offsets[row, column], lengths[row, column] = places[which], len(data)
            levels.append(_Level(size, offsets.ravel(), lengths.ravel()))
        link = 8
        for number, level in enumerate(levels):
            link = _write_directory(file, level, link, is_first=number == 0)


def paint_picture(seed: int) -> Image.Image:
    """Simulated tissue that covers the whole of a (PICTURE, PICTURE) picture."""
    rng = np.random.default_rng(seed)
    # A section has a margin of glass: its middle has none.
    tissue = grow_tissue(rng, 2 * PICTURE * MPP, 0.5)
    section = paint_tissue(rng, tissue, MPP)
    left = (section.width - PICTURE) // 2
    return section.crop((left, left, left + PICTURE, left + PICTURE))


def spots_on_grid(count: int, width: int, height: int, mpp: float = MPP) -> NDArray[np.float64]:
    """(count, 2) centres in level-0 pixels of spots 100 um apart, row by row, around the slide's middle."""
    pitch = 100.0 / mpp
    columns = min(int(width // pitch), int(np.ceil(np.sqrt(count * width / height))))
    rows = -(-count // columns)
    if rows * pitch > height:
        raise SystemExit(f"{count} spots 100 um apart do not fit on {width} x {height} px of {mpp} um")
    column, row = np.arange(count) % columns, np.arange(count) // columns
    middle = np.array([width, height]) / 2 - np.array([columns - 1, rows - 1]) * pitch / 2
    return np.stack([column, row], axis=1) * pitch + middle


def _encoded(pixels: NDArray[np.uint8]) -> list[list[bytes]]:
    """JPEGs of the tiles of a picture, by row and column."""
    return [
        [
            simplejpeg.encode_jpeg(
                np.ascontiguousarray(pixels[y : y + TILE, x : x + TILE]),
                quality=_QUALITY,
                colorspace="RGB",
                colorsubsampling="420",
            )
            for x in range(0, pixels.shape[1], TILE)
        ]
        for y in range(0, pixels.shape[0], TILE)
    ]


def _write_directory(file, level: _Level, link: int, *, is_first: bool) -> int:  # type: ignore[no-untyped-def]
    """Append one level's directory, and point to it from the one before; return where its own link lies."""
    per_cm = round(10_000 / MPP)
    tags: list[tuple[int, int, tuple[int, ...] | NDArray[np.uint64]]] = [
        (254, _LONG, (0 if is_first else 1,)),  # a reduced image
        (256, _LONG, (level.size[0],)),
        (257, _LONG, (level.size[1],)),
        (258, _SHORT, (8, 8, 8)),
        (259, _SHORT, (7,)),  # JPEG
        (262, _SHORT, (6,)),  # YCbCr
        (277, _SHORT, (3,)),
        (282, _RATIONAL, (per_cm, 1)),
        (283, _RATIONAL, (per_cm, 1)),
        (284, _SHORT, (1,)),
        (296, _SHORT, (3,)),  # a centimetre
        (322, _LONG, (TILE,)),
        (323, _LONG, (TILE,)),
        (324, _LONG8, level.offsets),
        (325, _LONG8, level.lengths),
        (530, _SHORT, (2, 2)),
    ]
    entries = b""
    for tag, kind, values in tags:
        count = len(values) // (2 if kind == _RATIONAL else 1)
        data = (
            values.astype("<u8").tobytes()
            if isinstance(values, np.ndarray)
            else b"".join(struct.pack(f"<{_CODES[kind][-1]}", value) for value in values)
        )
        if count * _BYTES[kind] > 8:
            place = file.tell()
            file.write(data)
            data = struct.pack("<Q", place)
        entries += struct.pack("<HHQ", tag, kind, count) + data.ljust(8, b"\0")
    start = file.tell()
    file.write(struct.pack("<Q", len(tags)) + entries + struct.pack("<Q", 0))
    own_link = file.tell() - 8
    file.seek(link)
    file.write(struct.pack("<Q", start))
    file.seek(0, 2)
    return int(own_link)
