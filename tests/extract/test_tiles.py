"""Tiles decoded one by one are OpenSlide's, pixel for pixel; damage is an error and never made-up pixels."""

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from mmap_st.errors import ImageError, RegionError
from mmap_st.extract.formats.openslide_format import OpenSlideSlide
from mmap_st.extract.formats.pixels import tile_box
from mmap_st.extract.formats.tiff import TiffSlide
from mmap_st.extract.slide import Slide, open_slide

TILE = 64


@pytest.fixture
def pyramid(tmp_path: Path) -> Path:
    """A picture with detail, 300 x 200 px in JPEG tiles, with a level of half the size."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (25, 38, 3), np.uint8))
    picture = coarse.resize((300, 200), Image.Resampling.BICUBIC)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for size in ((300, 200), (150, 100)):
            file.write(
                np.asarray(picture.resize(size)),
                tile=(TILE, TILE),
                compression="jpeg",
                photometric="rgb",
                subfiletype=0 if size[0] == 300 else 1,
                metadata=None,
            )
    return tmp_path / "a.tif"


def tiles_of(slide: Slide) -> list[tuple[int, int, int]]:
    return [
        (number, column, row)
        for number, level in enumerate(slide.levels)
        for column in range(-(-level.size[0] // level.tile[0]))
        for row in range(-(-level.size[1] // level.tile[1]))
    ]


def by_openslide(slide: Slide, path: Path, number: int, column: int, row: int) -> np.ndarray:
    level = slide.levels[number]
    x0, y0, x1, y1 = tile_box(level, column, row)
    with openslide.OpenSlide(path) as file:
        across, down = level.downsample
        region = file.read_region((round(x0 * across), round(y0 * down)), number, (x1 - x0, y1 - y0))
    return np.asarray(region.convert("RGB"))


def segment(path: Path, index: int) -> tuple[int, int]:
    """Offset and length of one tile of level 0."""
    with tifffile.TiffFile(path) as file:
        return file.pages[0].dataoffsets[index], file.pages[0].databytecounts[index]


@pytest.mark.parametrize("opened", [OpenSlideSlide, TiffSlide])
def test_every_tile_is_openslides(pyramid: Path, opened, monkeypatch) -> None:
    slide = opened(pyramid)
    expected = [by_openslide(slide, pyramid, *tile) for tile in tiles_of(slide)]
    monkeypatch.setattr(opened, "read", None)  # none of them is read the slow way
    for tile, pixels in zip(tiles_of(slide), expected, strict=True):
        assert np.array_equal(slide.read_tile(*tile), pixels)
    slide.close()


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "her2st_C2_crop_pyramid.tif"])
def test_tiles_of_real_slides_are_openslides(shared: Path, name: str) -> None:
    path = shared / "data" / "wsi" / name
    slide = open_slide(path)
    assert isinstance(slide, OpenSlideSlide)
    assert slide._tiles is not None
    tiles = tiles_of(slide)
    chosen = {*tiles[:: max(len(tiles) // 40, 1)], tiles[-1]}
    for tile in chosen:
        assert np.array_equal(slide.read_tile(*tile), by_openslide(slide, path, *tile))


@pytest.mark.parametrize("damage", ["first half kept, then zeros", "marker inside", "empty", "another size"])
def test_a_damaged_tile_is_an_error_and_the_others_are_read(pyramid: Path, damage: str) -> None:
    offset, length = segment(pyramid, 0)
    data = bytearray(pyramid.read_bytes())
    if damage == "first half kept, then zeros":
        data[offset + length // 2 : offset + length] = bytes(length - length // 2)
    elif damage == "marker inside":
        data[offset + length - 200 : offset + length - 198] = b"\xff\xd9"
    elif damage == "empty":
        data[offset : offset + length] = bytes(length)
    else:
        other = Image.new("RGB", (32, 32))
        other.save(pyramid.with_suffix(".jpg"), quality=1)
        small = pyramid.with_suffix(".jpg").read_bytes()
        assert len(small) <= length
        data[offset : offset + length] = small.ljust(length, b"\0")
    pyramid.write_bytes(data)
    slide = open_slide(pyramid)
    with pytest.raises(RegionError, match=r"a\.tif, level 0: tile 0, 0 cannot be decoded"):
        slide.read_tile(0, 0, 0)
    assert slide.read_tile(0, 1, 0).shape == (64, 64, 3)


def test_a_tile_with_bytes_that_belong_to_nothing_is_openslides_to_judge(pyramid: Path) -> None:
    offset, length = segment(pyramid, 0)
    data = bytearray(pyramid.read_bytes())
    tile = bytes(data[offset : offset + length])
    # Junk before the last marker, at the cost of what the tile starts with.
    longer = tile[:2] + tile[tile.index(b"\xff\xdb") : -2] + b"\x11\x22\x33\x44" + tile[-2:]
    assert len(longer) <= length
    data[offset : offset + length] = longer.ljust(length, b"\0")
    pyramid.write_bytes(data)
    slide = open_slide(pyramid)
    assert isinstance(slide, OpenSlideSlide)
    assert slide._tiles is not None
    assert slide._tiles.read(0, 0, 0) is None
    assert np.array_equal(slide.read_tile(0, 0, 0), by_openslide(slide, pyramid, 0, 0, 0))


def test_a_truncated_file_loses_the_tiles_behind_the_cut(pyramid: Path) -> None:
    slide = open_slide(pyramid)
    offset, length = segment(pyramid, 7)
    with pyramid.open("r+b") as file:
        file.truncate(offset + length // 2)
    assert slide.read_tile(0, 0, 0).shape == (64, 64, 3)
    with pytest.raises(RegionError, match="the file ends before it does"):
        slide.read_tile(0, 2, 1)


def test_a_file_that_cannot_be_read_any_more_fails_the_slide(pyramid: Path, monkeypatch) -> None:
    slide = open_slide(pyramid)

    def gone(*_: object) -> bytes:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("os.pread", gone)
    with pytest.raises(ImageError, match=r"Stale file handle.*check the disk or share"):
        slide.read_tile(0, 0, 0)


def test_tiles_that_a_file_leaves_out_are_shown_as_openslide_shows_them(
    tmp_path: Path, pyramid: Path
) -> None:
    data = bytearray(pyramid.read_bytes())
    with tifffile.TiffFile(pyramid) as file:
        counts = file.pages[0].tags["TileByteCounts"]
        size = counts.valuebytecount // counts.count
        data[counts.valueoffset : counts.valueoffset + size] = bytes(size)
    pyramid.write_bytes(data)
    slide = open_slide(pyramid)
    assert np.array_equal(slide.read_tile(0, 0, 0), np.asarray(slide.read((0, 0, TILE, TILE))))


@pytest.mark.parametrize("compression", ["deflate", None])
def test_other_compressions_are_openslides_work(tmp_path: Path, compression: str | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 130, 3), np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        tile=(TILE, TILE),
        compression=compression,
        photometric="rgb",
        metadata=None,
    )
    slide = open_slide(tmp_path / "a.tif")
    assert np.array_equal(slide.read_tile(0, 1, 1), pixels[64:100, 64:128])
