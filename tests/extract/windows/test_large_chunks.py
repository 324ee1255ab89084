"""Slides that are stored in large chunks or in strips: the pixels are the same, and chunks are decoded about once."""

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.extract.slides.formats import pixels as module
from mmap_st.extract.slides.formats.pixels import ArraySlide, tiling
from mmap_st.extract.slides.slide import open_slide
from mmap_st.extract.windows.geometry import window_boxes
from mmap_st.extract.windows.read_plan import ReadPlan, plan_reading
from mmap_st.extract.windows.reader import WindowReader, read_window

SIZE = (1500, 1100)
INPUT_PX = 32
#: Chunks (width, height) of a slide of 1,500 x 1,100 px where tiles are 32 px, and chunks over 64 are large.
CHUNKS = {
    "large chunks": (256, 256),
    "chunks of an odd size": (266, 266),
    "chunks of a prime size": (211, 211),
    "large across, usual down": (256, 48),
    "strips": (1500, 1),
    "broad strips": (1500, 100),
    "columns": (8, 1100),
    "one chunk": (1500, 1100),
    "one chunk, larger than the slide": (1600, 1600),
}


class CountedArray:
    """An array in chunks that counts how often each is decoded, and fails where one is damaged."""

    def __init__(self, pixels: np.ndarray, chunks: tuple[int, ...]) -> None:
        self._pixels, self.chunks = pixels, chunks
        self.shape, self.dtype = pixels.shape, pixels.dtype
        self.decoded: Counter[tuple[int, ...]] = Counter()
        self.damaged: set[tuple[int, ...]] = set()

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        spans = [
            range((part.start or 0) // chunk, -(-(size if part.stop is None else part.stop) // chunk))
            for part, chunk, size in zip(where, self.chunks, self.shape, strict=True)
        ]
        touched = list(itertools.product(*spans))
        self.decoded.update(touched)
        if self.damaged & set(touched):
            raise ValueError("damaged")
        return self._pixels[where]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_PX", 32)
    monkeypatch.setattr(module, "_LARGEST_TILE_PX", 64)


def slide_in(chunk: tuple[int, int], *, levels: int = 1) -> tuple[ArraySlide, list[CountedArray]]:
    rng = np.random.default_rng(0)
    arrays = []
    for level in range(levels):
        width, height = SIZE[0] >> level, SIZE[1] >> level
        picture = rng.integers(0, 256, (3, height, width), np.uint8)
        arrays.append(CountedArray(picture, (3, min(chunk[1], 10_000), chunk[0])))
    slide = ArraySlide(Path("made.zarr"), arrays, "CYX", 1.0)
    for array in arrays:
        array.decoded.clear()
    return slide, arrays


def spots(pitch: float = 45.0) -> np.ndarray:
    x, y = (np.arange(10.0, side, pitch) for side in SIZE)
    xy = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    return xy[np.random.default_rng(1).permutation(len(xy))]


def plan_of(slide: ArraySlide, xy: np.ndarray, mpps: tuple[float, ...], cache: int | None = None) -> ReadPlan:
    return plan_reading(slide.levels, xy, 1.0, INPUT_PX, {mpp: np.arange(len(xy)) for mpp in mpps}, 8, cache)


def check_all(
    slide: ArraySlide, plan: ReadPlan, reader: WindowReader, xy: np.ndarray, threads: int = 1
) -> None:
    """Read all windows; every eighth is compared with the plain reference, which decodes for itself."""
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(reader.read, range(len(plan))))
    decoded = [array.decoded.copy() for array in slide._arrays]
    assert sum(len(windows) for windows in found) == plan.windows
    for windows in found:
        assert windows.readable.all()
        source, row = windows.source_of[0], windows.row_of[0]
        box = window_boxes(xy[row][None], plan.sources[source].mpp, INPUT_PX, 1.0)[0]
        assert np.array_equal(windows.pixels[0], read_window(slide, box.tolist(), INPUT_PX))
    for array, before in zip(slide._arrays, decoded, strict=True):
        array.decoded = before


@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("threads", [1, 3])
def test_each_chunk_is_decoded_about_once_and_the_pixels_stay_the_same(kind: str, threads: int) -> None:
    slide, (array,) = slide_in(CHUNKS[kind])
    xy, cache = spots(), SIZE[0] * SIZE[1] * 3 // 3  # a third of the slide
    plan = plan_of(slide, xy, (1.0, 2.0, 3.0), cache)
    reader = WindowReader(slide, plan, cache)
    check_all(slide, plan, reader, xy, threads)
    chunks = -(-SIZE[0] // CHUNKS[kind][0]) * -(-SIZE[1] // CHUNKS[kind][1])
    assert len(array.decoded) == chunks
    assert sum(array.decoded.values()) <= 1.34 * chunks
    assert (
        reader._cache.arena.nbytes <= max(cache, 3 * np.prod(slide.levels[0].block_px)) + 20 * plan.tile_bytes
    )


@pytest.mark.parametrize("kind", CHUNKS)
def test_the_memory_that_a_plan_asks_for_decodes_each_chunk_once(kind: str) -> None:
    slide, (array,) = slide_in(CHUNKS[kind])
    xy = spots()
    plan = plan_of(slide, xy, (1.0, 4.0))
    needed = plan.bytes_to_decode_once
    assert 0 < needed <= len(plan.tiles) * plan.tile_bytes
    reader = WindowReader(slide, plan, needed)
    for step in range(len(plan)):
        reader.read(step)
    assert set(array.decoded.values()) == {1}


@pytest.mark.parametrize("kind", ["large chunks", "strips", "chunks of an odd size"])
def test_levels_of_a_pyramid_are_each_decoded_about_once(kind: str) -> None:
    slide, arrays = slide_in(CHUNKS[kind], levels=3)
    xy = spots()
    plan = plan_of(slide, xy, (1.0, 24.0, 48.0))
    assert [source.level for source in plan.sources] == [0, 1, 2]
    reader = WindowReader(slide, plan, 1 << 21)
    check_all(slide, plan, reader, xy)
    for array in arrays:
        assert max(array.decoded.values()) <= 2
        assert sum(array.decoded.values()) <= 1.34 * len(array.decoded)


def test_a_damaged_chunk_costs_its_own_windows_and_is_tried_once() -> None:
    slide, (array,) = slide_in(CHUNKS["large chunks"])
    array.damaged = {(0, 1, 1)}
    xy = spots()
    plan = plan_of(slide, xy, (1.0,))
    reader = WindowReader(slide, plan, 1 << 21)
    for step in range(len(plan)):
        windows = reader.read(step)
        for pixels, readable, row in zip(windows.pixels, windows.readable, windows.row_of, strict=True):
            left, top, right, bottom = plan.sources[0].regions[row]
            touches = left < 512 and right > 256 and top < 512 and bottom > 256
            assert readable != touches
            if readable:
                box = window_boxes(xy[row][None], 1.0, INPUT_PX, 1.0)[0]
                assert np.array_equal(pixels, read_window(slide, box.tolist(), INPUT_PX))
    assert array.decoded[0, 1, 1] == 1


@pytest.mark.parametrize("kind", CHUNKS)
def test_an_overview_decodes_each_chunk_a_few_times(kind: str) -> None:
    slide, (array,) = slide_in(CHUNKS[kind])
    small = slide.thumbnail(130)
    whole = module.shrunk(slide.read((0, 0, *SIZE)).reduce(SIZE[0] // 130), 130)
    assert np.array_equal(np.asarray(small), np.asarray(whole))
    chunks = -(-SIZE[0] // CHUNKS[kind][0]) * -(-SIZE[1] // CHUNKS[kind][1])
    assert sum(array.decoded.values()) - chunks <= 4 * chunks


@given(
    chunk=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    size=st.tuples(st.integers(1, 60_000), st.integers(1, 60_000)),
)
def test_tiles_are_cut_along_the_lines_between_chunks(chunk, size) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE_PX", 256)
        patch.setattr(module, "_LARGEST_TILE_PX", 2048)
        tile, block = tiling(chunk, size)
    if max(chunk) <= 2048 and min(chunk) >= 16:
        assert (tile, block) == (chunk, (1, 1))
        return
    for length, several, stored, side in zip(tile, block, chunk, size, strict=True):
        if stored >= side:
            assert length * several >= side  # one chunk: cut anywhere, decoded together
            assert length == 256
        else:
            assert length * several % stored == 0  # no chunk lies in two blocks
            assert length % stored == 0 or stored % length == 0
            assert length * several <= max(stored, 256)


def write_ome_zarr(path: Path, picture: np.ndarray, chunk: int) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=picture, chunks=(3, chunk, chunk))
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    scale = {"type": "scale", "scale": [1, 1.0, 1.0]}
    dataset = {"path": "0", "coordinateTransformations": [scale]}
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": [{"name": "c", "type": "channel"}, *axes], "datasets": [dataset]}
    ]


@pytest.mark.parametrize("form", ["ome.zarr", "ome.tif"])
def test_files_in_large_chunks_are_read_as_the_reference_reads_them(tmp_path: Path, form: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (3, SIZE[1], SIZE[0]), np.uint8)
    path = tmp_path / f"S.{form}"
    if form == "ome.zarr":
        write_ome_zarr(path, picture, 300)
    else:
        tifffile.imwrite(
            path, np.moveaxis(picture, 0, 2), photometric="rgb", rowsperstrip=7, metadata={"axes": "YXS"}
        )
    slide = open_slide(path)
    assert slide.levels[0].block != (1, 1)
    xy = spots(100.0)
    plan = plan_of(slide, xy, (1.0, 4.0))
    reader = WindowReader(slide, plan, 1 << 20)
    for step in range(len(plan)):
        windows = reader.read(step)
        for pixels, source, row in zip(windows.pixels, windows.source_of, windows.row_of, strict=True):
            box = window_boxes(xy[row][None], plan.sources[source].mpp, INPUT_PX, 1.0)[0]
            assert np.array_equal(pixels, read_window(slide, box.tolist(), INPUT_PX))
    slide.close()
