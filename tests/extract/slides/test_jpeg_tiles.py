"""Tiles decoded one by one are OpenSlide's, pixel for pixel; damage is an error and never made-up pixels."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from mmap_st.errors import ImageError, RegionError
from mmap_st.extract.slides.formats.openslide_format import OpenSlideSlide
from mmap_st.extract.slides.formats.pixels import tile_box
from mmap_st.extract.slides.formats.tiff import TiffSlide
from mmap_st.extract.slides.slide import Slide, open_slide

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


@pytest.mark.parametrize("where", ["before the end", "in the header"])
def test_a_tile_with_bytes_that_belong_to_nothing_is_openslides_to_judge(pyramid: Path, where: str) -> None:
    offset, length = segment(pyramid, 0)
    data = bytearray(pyramid.read_bytes())
    tile = bytes(data[offset : offset + length])
    # Junk before the last marker, at the cost of what the tile starts with.
    start, rest = tile[:2], tile[tile.index(b"\xff\xdb") : -2]
    junk = b"\x11\x22\x33\x44"
    longer = start + rest + junk + tile[-2:] if where == "before the end" else start + junk + rest + tile[-2:]
    assert len(longer) <= length
    data[offset : offset + length] = longer.ljust(length, b"\0")
    pyramid.write_bytes(data)
    slide = open_slide(pyramid)
    assert isinstance(slide, OpenSlideSlide)
    assert slide._tiles is not None
    assert slide._tiles.read(0, 0, 0) is None
    if where == "in the header":  # which OpenSlide takes for damage
        with pytest.raises(RegionError, match="extraneous bytes"):
            slide.read_tile(0, 0, 0)
    else:
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


def jpeg_of(picture: Image.Image, **how: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90, subsampling=0, **how)
    return stream.getvalue()


def write_tiles(path: Path, jpegs: list[bytes], photometric: str, tile: int = TILE, **how: object) -> None:
    """A TIFF of one row of tiles that are these JPEGs, whatever their markers say."""
    tifffile.imwrite(
        path,
        iter(jpegs),
        shape=(tile, tile * len(jpegs), 3),
        dtype="uint8",
        tile=(tile, tile),
        compression="jpeg",
        photometric=photometric,
        metadata=None,
        **({"subsampling": (1, 1)} if photometric == "ycbcr" else {}),
        **how,
    )


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
@pytest.mark.parametrize("components", ["JFIF", "Adobe RGB"])
def test_the_tag_decides_the_colours_and_not_a_tiles_markers(tmp_path: Path, components, photometric) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64))
    jpeg = jpeg_of(picture, keep_rgb=components == "Adobe RGB")
    write_tiles(tmp_path / "a.tif", [jpeg, jpeg], photometric)
    slide = OpenSlideSlide(tmp_path / "a.tif")
    assert slide._tiles is not None
    expected = by_openslide(slide, tmp_path / "a.tif", 0, 1, 0)
    assert np.array_equal(slide._tiles.read(0, 1, 0), expected)


def test_grey_tiles_are_for_another_reader_to_judge(tmp_path: Path) -> None:
    write_tiles(tmp_path / "a.tif", [jpeg_of(Image.new("L", (64, 64), 90))], "ycbcr")
    slide = OpenSlideSlide(tmp_path / "a.tif")
    assert slide._tiles is not None
    assert slide._tiles.read(0, 0, 0) is None


def test_tiles_too_large_to_be_read_at_a_time_are_not_taken_for_smaller_ones(tmp_path: Path) -> None:
    side = 2064
    picture = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    write_tiles(tmp_path / "a.tif", [jpeg_of(picture)], "ycbcr", tile=side)
    for opened in (OpenSlideSlide, TiffSlide):
        slide = opened(tmp_path / "a.tif")
        assert slide._tiles is None
        assert slide.levels[0].tile == (256, 256)
        assert slide.read_tile(0, 8, 8).shape == (16, 16, 3)


def test_a_page_of_a_levels_size_is_not_taken_for_the_level(tmp_path: Path) -> None:
    """Two full pages: which of them OpenSlide shows is its own affair."""
    jpegs = [jpeg_of(Image.new("RGB", (64, 64), colour)) for colour in ("white", "black")]
    for append, jpeg in zip((False, True), jpegs, strict=True):
        write_tiles(tmp_path / "a.tif", [jpeg], "ycbcr", append=append)
    slide = OpenSlideSlide(tmp_path / "a.tif")
    assert slide._tiles is None
    assert np.array_equal(slide.read_tile(0, 0, 0), by_openslide(slide, tmp_path / "a.tif", 0, 0, 0))


@pytest.mark.parametrize("damage", ["a length of gigabytes", "a header of gigabytes"])
def test_damage_that_asks_for_much_memory_is_an_error_before_it_is_given(pyramid: Path, damage: str) -> None:
    data = bytearray(pyramid.read_bytes())
    offset, _ = segment(pyramid, 0)
    if damage == "a length of gigabytes":
        with tifffile.TiffFile(pyramid) as file:
            counts = file.pages[0].tags["TileByteCounts"]
        size = counts.valuebytecount // counts.count
        data[counts.valueoffset : counts.valueoffset + size] = b"\xff" * (size - 1) + b"\x0f"
    else:
        frame = data.index(b"\xff\xc0", offset)
        data[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    pyramid.write_bytes(data)
    with pytest.raises(RegionError, match=r"the file ends before it does|65500 x 65500 px"):
        open_slide(pyramid).read_tile(0, 0, 0)


def test_threads_agree_on_which_tiles_are_damaged(tmp_path: Path) -> None:
    """After one error a handle of OpenSlide refuses all that other threads read with it."""
    pixels = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="deflate", photometric="rgb", metadata=None)
    offset, _ = segment(path, 37)
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(data)
    slide = OpenSlideSlide(path)

    def damaged(index: int) -> bool:
        try:
            slide.read_tile(0, index % 10, index // 10)
        except RegionError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert np.flatnonzero(list(pool.map(damaged, range(100)))).tolist() == [37]
