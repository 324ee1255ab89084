"""Tiles: the slide's own pixels, where its spots are, at every zoom, and bounded memory."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mmap_st.errors import ImageError, RegionError
from mmap_st.extract.slides import open_slide
from mmap_st.report.viewer import tiles
from mmap_st.report.viewer.tiles import TILE_PX, ByteCache, NoTileError, SlideTiles, TileGrid

Pixels = NDArray[np.uint8]


def picture(width: int, height: int, seed: int = 0) -> Pixels:
    """Smooth, and different at every place, so that nothing can be turned or moved unseen."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    rng = np.random.default_rng(seed)
    waves = [127 + 60 * np.sin(x / a + y / b) for a, b in rng.uniform(50, 120, (3, 2))]
    ramp = [60 * x / width, 60 * y / height, 60 * (x + y) / (width + height)]
    return np.clip(np.stack([w + r for w, r in zip(waves, ramp, strict=True)], axis=-1), 0, 255).astype(
        np.uint8
    )


def png(path: Path, pixels: Pixels) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def tiff(path: Path, pixels: Pixels, levels: int = 1, **options: object) -> Path:
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(levels):
            step = 4**level
            small = np.asarray(Image.fromarray(pixels).reduce(step)) if level else pixels
            file.write(small, tile=(256, 256), photometric="rgb", subfiletype=1 if level else 0, **options)
    return path


def turned(path: Path, pixels: Pixels) -> Path:
    """Stored on its side, with the note to turn it."""
    return tiff(path, pixels, extratags=[(274, "H", 1, 6, True)])


def decoded(body: bytes) -> Pixels:
    image = Image.open(io.BytesIO(body))
    assert image.format == "JPEG"
    return np.asarray(image.convert("RGB"))


def difference(one: Pixels, other: Pixels) -> float:
    """Of brightness, which a JPEG keeps at every pixel; colours it keeps at every second."""
    assert one.shape == other.shape
    return float(np.abs(one.mean(axis=2) - other.mean(axis=2)).mean())


WAYS: dict[str, Callable[[Path], Path]] = {
    "png": lambda folder: png(folder / "a.png", picture(1300, 900)),
    "one tile": lambda folder: png(folder / "a.png", picture(200, 120)),
    "exactly tiles": lambda folder: png(folder / "a.png", picture(1024, 512)),
    "a pixel more": lambda folder: png(folder / "a.png", picture(1025, 513)),
    "narrow": lambda folder: png(folder / "a.png", picture(3, 1500)),
    "tiff": lambda folder: tiff(folder / "a.tif", picture(1300, 900)),
    "pyramid": lambda folder: tiff(folder / "a.tif", picture(2100, 1100), levels=3),
    "no pyramid": lambda folder: tiff(folder / "a.tif", picture(4200, 520)),
    "turned": lambda folder: turned(folder / "a.tif", picture(1300, 900)),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_finest_tiles_are_the_pixels_that_the_program_reads(way: str, tmp_path: Path) -> None:
    path = WAYS[way](tmp_path)
    found, slide = SlideTiles(), open_slide(path)
    grid = found.grid(path)
    width, height = slide.size
    assert grid.size == slide.size
    across, down = grid.tiles(grid.zooms - 1)
    assert (across, down) == (-(-width // TILE_PX), -(-height // TILE_PX))
    for column, row in {(0, 0), (across - 1, down - 1), (across // 2, down // 2)}:
        x, y = column * TILE_PX, row * TILE_PX
        box = (x, y, min(x + TILE_PX, width), min(y + TILE_PX, height))
        tile = decoded(found.tile(path, grid.zooms - 1, column, row))
        assert difference(tile, np.asarray(slide.read(box))) < 3


@pytest.mark.parametrize("way", WAYS)
def test_every_zoom_shows_the_same_slide(way: str, tmp_path: Path) -> None:
    path = WAYS[way](tmp_path)
    found, slide = SlideTiles(), open_slide(path)
    grid = found.grid(path)
    whole = slide.read((0, 0, *slide.size))
    assert grid.tiles(0) == (1, 1)
    for zoom in range(grid.zooms):
        side = 2 ** (grid.zooms - 1 - zoom)
        across, down = grid.tiles(zoom)
        for column in range(across):
            for row in range(down):
                tile = decoded(found.tile(path, zoom, column, row))
                px = TILE_PX * side
                box = (
                    column * px,
                    row * px,
                    min((column + 1) * px, slide.size[0]),
                    min((row + 1) * px, slide.size[1]),
                )
                assert abs(tile.shape[1] - (box[2] - box[0]) / side) <= 1.5
                assert abs(tile.shape[0] - (box[3] - box[1]) / side) <= 1.5
                wanted = whole.resize((tile.shape[1], tile.shape[0]), Image.Resampling.BOX, box=box)
                assert difference(tile, np.asarray(wanted)) < 4, (zoom, column, row)


def test_no_tile_needs_a_large_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = WAYS["no pyramid"](tmp_path)
    slide = open_slide(path)
    largest = 0
    read = slide.read

    def watched(box: tuple[int, int, int, int], level: int = 0) -> Image.Image:
        nonlocal largest
        largest = max(largest, (box[2] - box[0]) * (box[3] - box[1]))
        return read(box, level)

    slide.read = watched  # type: ignore[method-assign]
    found = SlideTiles(lambda _: slide)
    for zoom in range(found.grid(path).zooms):
        found.tile(path, zoom, 0, 0)
    assert 0 < largest <= 2048**2


def test_a_real_slide_is_shown_as_it_is(shared: Path) -> None:
    path = shared / "data/wsi/CMU-1-Small-Region.svs"
    found, slide = SlideTiles(), open_slide(path)
    grid = found.grid(path)
    tile = decoded(found.tile(path, grid.zooms - 1, 2, 3))
    assert difference(tile, np.asarray(slide.read((1024, 1536, 1536, 2048)))) < 6  # real noise, twice in JPEG
    whole = decoded(found.tile(path, 0, 0, 0))
    wanted = slide.thumbnail(max(whole.shape)).resize((whole.shape[1], whole.shape[0]))
    assert difference(whole, np.asarray(wanted)) < 12


def test_tiles_that_are_not_there(tmp_path: Path) -> None:
    path = WAYS["png"](tmp_path)
    found = SlideTiles()
    for place in (
        (0, 0, 1),
        (0, 1, 0),
        (2, 3, 0),
        (3, 0, 0),
        (-1, 0, 0),
        (2, -1, 0),
        (2, 0, -1),
        (10**6, 0, 0),
    ):
        with pytest.raises(NoTileError):
            found.tile(path, *place)


@pytest.mark.parametrize("size", [(1, 1), (512, 512), (513, 1), (1, 513), (100_000, 60_000)])
def test_a_grid_has_one_tile_at_first_and_whole_pixels_at_last(size: tuple[int, int]) -> None:
    grid = TileGrid(size)
    assert grid.tiles(0) == (1, 1)
    assert grid.tiles(grid.zooms - 1) == tuple(-(-side // TILE_PX) for side in size)


def test_what_is_kept_is_bounded() -> None:
    kept = ByteCache(100)
    for number in range(50):
        kept.put(number, b"x" * 10)
    assert (len(kept), kept.held_bytes) == (10, 100)
    kept.get(40)
    kept.put("new", b"y" * 10)
    assert kept.get(40) is not None
    assert kept.get(41) is None
    kept.put("new", b"y" * 20)  # again, and longer
    assert kept.held_bytes <= 100
    kept.put("too large", b"z" * 101)
    assert kept.get("too large") is None
    assert kept.held_bytes == sum(len(kept.get(key) or b"") for key in [*range(50), "new"])


def test_tiles_are_kept_and_made_once(tmp_path: Path) -> None:
    path = WAYS["png"](tmp_path)
    found = SlideTiles(most_bytes=10_000_000)
    first = found.tile(path, 0, 0, 0)
    assert found.tile(path, 0, 0, 0) is first
    small = SlideTiles(most_bytes=len(first) + 10)
    for column in range(2):
        for row in range(2):
            small.tile(path, 2, column, row)
    assert small.kept.held_bytes <= len(first) + 10


def test_few_slides_are_open_and_all_are_closed(tmp_path: Path) -> None:
    paths = [png(tmp_path / f"{i}.png", picture(300, 200, i)) for i in range(5)]
    opened: list[object] = []
    closed: list[object] = []

    def watched(path: Path) -> object:
        slide = open_slide(path)
        close = slide.close
        slide.close = lambda: (closed.append(slide), close())  # type: ignore[method-assign]
        opened.append(slide)
        return slide

    found = SlideTiles(watched, most_open=2)  # type: ignore[arg-type]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            list(pool.map(lambda path: found.tile(path, 0, 0, 0), paths * 4))
            found.kept = ByteCache(1)
    assert len(found._open) <= 2
    found.close()
    assert len(closed) == len(opened) == len(set(map(id, closed)))


class Damaged:
    """A slide of which one part cannot be decoded."""

    def __init__(self, path: Path) -> None:
        self._slide = open_slide(path)

    def __getattr__(self, name: str) -> object:
        return getattr(self._slide, name)

    def read(self, box: tuple[int, int, int, int], level: int = 0) -> Image.Image:
        if box[0] < 512 and box[1] < 512 and level == 0:
            raise RegionError(f"{box} cannot be decoded.")
        return self._slide.read(box, level)


def test_a_damaged_part_fails_its_tiles_alone(tmp_path: Path) -> None:
    path = WAYS["tiff"](tmp_path)
    found = SlideTiles(Damaged)  # type: ignore[arg-type]
    with pytest.raises(RegionError):
        found.tile(path, 2, 0, 0)
    assert found.tile(path, 2, 1, 1)
    assert next(iter(found._open.values())).users == 0


def test_an_image_that_is_none_says_so_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"nothing")
    found = SlideTiles()
    for _ in range(2):
        with pytest.raises(ImageError, match=r"a\.png"):
            found.tile(path, 0, 0, 0)
    png(path, picture(300, 200))
    assert found.tile(path, 0, 0, 0)


def test_tiles_made_at_a_time_are_few(tmp_path: Path) -> None:
    path, now, most = WAYS["tiff"](tmp_path), 0, 0
    lock = threading.Lock()
    slide = open_slide(path)
    read = slide.read

    def watched(*args: object) -> Image.Image:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            return read(*args)  # type: ignore[arg-type]
        finally:
            with lock:
                now -= 1

    slide.read = watched  # type: ignore[method-assign,assignment]
    found = SlideTiles(lambda _: slide, most_bytes=0)
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda _: found.tile(path, 2, 1, 1), range(60)))
    assert 0 < most <= tiles._AT_ONCE
