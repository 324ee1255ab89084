"""Reading by plan: the pixels are those of one region at a time, and each tile is decoded about once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmap_st.errors import ImageError, RegionError
from mmap_st.extract.slides.formats.pixels import Level, Pyramid, levels_of, on_white, pasted
from mmap_st.extract.slides.slide import open_slide
from mmap_st.extract.windows.device_resizing import DeviceResizer, _makes_the_same
from mmap_st.extract.windows.geometry import hilbert_distance, hilbert_order, window_boxes
from mmap_st.extract.windows.read_plan import NEVER, ReadPlan, plan_reading
from mmap_st.extract.windows.reader import WindowReader, Windows, read_window
from mmap_st.extract.windows.tile_cache import TileCache


class Picture(Pyramid):
    """A slide in memory, whose tiles can be made to fail."""

    def __init__(
        self, width: int, height: int, tile: tuple[int, int], reductions: tuple[int, ...] = (1,)
    ) -> None:
        rng = np.random.default_rng(width * height)
        self._pictures = []
        for reduction in reductions:
            size = (-(-height // reduction), -(-width // reduction), 3)
            self._pictures.append(Image.fromarray(rng.integers(0, 256, size, np.uint8)))
        self._levels = levels_of([p.size for p in self._pictures], [tile] * len(reductions))
        self._mpp = None
        self.damaged: set[tuple[int, int, int]] = set()
        self.gone = False
        self.decoded: list[tuple[int, int, int]] = []

    def read(self, box, level=0):
        inside = on_white(box, self._levels[level].size)
        return pasted(self._pictures[level].crop(inside) if inside else None, inside, box)

    def read_tile(self, level, column, row):
        self.decoded.append((level, column, row))
        if self.gone:
            raise ImageError("the share is gone")
        if (level, column, row) in self.damaged:
            raise RegionError(f"tile {column}, {row} is damaged")
        return super().read_tile(level, column, row)


def plan_of(slide, xy, mpps, input_px=32, source_mpp=1.0, step=8) -> ReadPlan:
    xy = np.asarray(xy, np.float64)
    everything = {mpp: np.arange(len(xy)) for mpp in mpps}
    return plan_reading(slide.levels, xy, source_mpp, input_px, everything, step)


def read_step(reader: WindowReader, plan: ReadPlan, step: int) -> Windows:
    """Windows of a step, from wherever they are made."""
    if not reader.on_device:
        return reader.read(step)
    count = int(np.diff(plan.step_windows)[step])
    out = torch.zeros((count, plan.input_px, plan.input_px, 3), dtype=torch.uint8)
    return replace(reader.read(step, out), pixels=out.numpy())


def check_equals_reference(
    slide, xy, mpps, input_px, source_mpp, *, cache_bytes=1 << 20, step=8, resizer=None
) -> None:
    plan = plan_of(slide, xy, mpps, input_px, source_mpp, step)
    reader = WindowReader(slide, plan, cache_bytes, resizer)
    seen = set()
    for number in range(len(plan)):
        windows = read_step(reader, plan, number)
        assert windows.readable.all()
        for pixels, source, row in zip(windows.pixels, windows.source_of, windows.row_of, strict=True):
            mpp = plan.sources[source].mpp
            box = window_boxes(np.asarray(xy[row], np.float64)[None], mpp, input_px, source_mpp)[0]
            assert np.array_equal(pixels, read_window(slide, box.tolist(), input_px)), (mpp, row)
            seen.add((mpp, int(row)))
    assert len(seen) == len(xy) * len(mpps)


@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    tile=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    xy=st.lists(st.tuples(st.floats(-80, 230), st.floats(-80, 230)), min_size=1, max_size=6),
    input_px=st.sampled_from([1, 7, 32]),
    mpps=st.sets(st.floats(0.3, 9.0).map(lambda mpp: round(mpp, 4)), min_size=1, max_size=3),
)
@settings(max_examples=60)
def test_any_window_is_pillows_to_the_bit(size, tile, xy, input_px, mpps) -> None:
    check_equals_reference(Picture(*size, tile), xy, sorted(mpps), input_px, 1.0)


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    tile=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    xy=st.lists(st.tuples(st.floats(-80, 170), st.floats(-80, 170)), min_size=1, max_size=2),
    input_px=st.sampled_from([1, 5, 8]),
    mpps=st.sets(st.floats(0.3, 9.0).map(lambda mpp: round(mpp, 4)), min_size=1, max_size=2),
)
@settings(max_examples=12, deadline=None)
def test_a_gpus_kernels_make_the_same_windows(interpreted, size, tile, xy, input_px, mpps) -> None:
    check_equals_reference(Picture(*size, tile), xy, sorted(mpps), input_px, 1.0, resizer=interpreted)


def test_a_gpu_finds_white_between_the_pictures_edge_and_its_tiles(interpreted) -> None:
    xy = [(4.6, 126.4), (126.4, 4.6), (-40.0, -40.0), (60.0, 40.0)]
    check_equals_reference(Picture(70, 43, (6, 6)), xy[:1], (6.5,), 8, 1.0, resizer=interpreted)
    check_equals_reference(Picture(70, 43, (6, 6)), xy, (1.0, 6.5), 5, 1.0, resizer=interpreted)
    # A tile that another step needs is not there for this one.
    check_equals_reference(Picture(70, 43, (6, 6)), xy, (1.0,), 5, 1.0, resizer=interpreted, step=1)


def test_a_gpu_makes_few_windows_at_a_time_where_they_are_large(interpreted, monkeypatch) -> None:
    monkeypatch.setattr("mmap_st.extract.windows.device_resizing._NARROWED_BYTES", 1500)
    slide, xy = Picture(60, 50, (16, 24), (1, 2, 4)), [(30.5, 25.25), (10.0, 49.0), (55.0, 5.0)]
    check_equals_reference(slide, xy, (1.0, 13.0, 24.0), 4, 1.0, resizer=interpreted)


def test_a_gpu_leaves_windows_over_a_damaged_tile_white(interpreted) -> None:
    slide = Picture(40, 40, (20, 20))
    slide.damaged = {(0, 1, 1)}
    plan = plan_of(slide, [(5.0, 5.0), (30.0, 30.0), (30.0, 6.0)], (1.0,), input_px=6)
    windows = read_step(WindowReader(slide, plan, 1 << 20, interpreted), plan, 0)
    damaged = windows.row_of == 1
    assert windows.readable.tolist() == (~damaged).tolist()
    assert (windows.pixels[damaged] == 255).all()
    assert (windows.pixels[~damaged] != 255).any(axis=(1, 2, 3)).all()


def test_a_gpu_that_makes_other_pixels_is_not_used(interpreted, monkeypatch, caplog) -> None:
    monkeypatch.setattr(DeviceResizer, "__init__", lambda self, device: None)
    for instead, reason in (
        (lambda resizer: False, "it gives other pixels"),
        (lambda resizer: 1 / 0, "ZeroDivisionError"),
    ):
        monkeypatch.setattr("mmap_st.extract.windows.device_resizing._makes_the_same", instead)
        with caplog.at_level("INFO", "mmap_st"):
            assert DeviceResizer.of("cuda:3") is None
        assert "windows are resized on the CPU, not on cuda:3" in caplog.text
        assert reason in caplog.text
    monkeypatch.setattr("mmap_st.extract.windows.device_resizing._makes_the_same", lambda resizer: True)
    assert isinstance(DeviceResizer.of("cuda"), DeviceResizer)
    assert DeviceResizer.of("cpu") is None
    assert DeviceResizer.of("mps") is None


def test_the_trial_of_a_gpu_sees_one_wrong_pixel(interpreted, monkeypatch) -> None:
    assert _makes_the_same(interpreted)
    resize = DeviceResizer.resize

    def wrong(self, *arguments) -> None:
        resize(self, *arguments)
        arguments[-1][0, 3, 3, 1] ^= 1

    monkeypatch.setattr(DeviceResizer, "resize", wrong)
    assert not _makes_the_same(interpreted)


def test_windows_beside_the_picture_are_white_though_no_tile_is_held_for_them() -> None:
    # The last window reaches only what lies between the picture's edge and its tile's.
    check_equals_reference(Picture(1, 1, (6, 1)), [(0.0, 0.0)] * 4 + [(7.0, 0.0)], (1.0, 2.0), 1, 1.0)
    check_equals_reference(Picture(1, 1, (1, 6)), [(0.0, 0.0)] * 4 + [(0.0, 7.0)], (1.0, 2.0), 1, 1.0)


def test_lower_levels_are_read_where_they_are_fine_enough() -> None:
    slide = Picture(600, 500, (64, 48), (1, 2, 4))
    xy = [(300.5, 250.25), (10.0, 490.0)]
    plan = plan_of(slide, xy, (1.0, 12.0, 24.0, 49.0), 16)
    assert [source.level for source in plan.sources] == [0, 0, 1, 2]
    check_equals_reference(slide, xy, (1.0, 12.0, 24.0, 49.0), 16, 1.0)


@pytest.mark.parametrize(
    ("name", "mpps"),
    [
        ("CMU-1-Small-Region.svs", (0.25, 0.499, 1.0, 2.0, 4.0)),
        ("her2st_C2_crop_pyramid.tif", (0.5, 1.0, 5.7, 17.0)),
    ],
)
def test_real_slides_are_read_as_openslide_and_pillow_read_them(shared: Path, name, mpps) -> None:
    slide = open_slide(shared / "data" / "wsi" / name)
    width, height = slide.size
    rng = np.random.default_rng(0)
    xy = rng.uniform((-100, -100), (width + 100, height + 100), (12, 2))
    check_equals_reference(slide, xy, mpps, 224, slide.mpp or 0.69, cache_bytes=64 << 20)


def test_each_tile_is_decoded_once_where_memory_allows_and_seldom_again_where_not() -> None:
    slide = Picture(2000, 2000, (64, 64))
    grid = np.arange(20.0, 2000.0, 40.0)
    xy = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    xy = xy[np.random.default_rng(0).permutation(len(xy))]  # barcodes are in no order
    plan = plan_of(slide, xy, (1.0, 2.0, 4.0))
    assert len(plan.tiles) == 32 * 32
    assert plan.decodes(len(plan.tiles)) == len(plan.tiles)
    slots = 150  # a seventh of the slide
    assert plan.decodes(slots) < 1.15 * len(plan.tiles)
    reader = WindowReader(slide, plan, slots * plan.tile_bytes)
    for step in range(len(plan)):
        reader.read(step)
    assert reader.decoded == len(slide.decoded) == plan.decodes(slots)


def test_a_plan_lists_every_tile_that_a_window_touches_and_when_it_is_needed_again() -> None:
    slide = Picture(300, 200, (32, 16))
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 300, (40, 2))
    plan = plan_of(slide, xy, (0.5, 1.5), step=7)
    assert plan.windows == 80
    assert sorted(zip(plan.source_of.tolist(), plan.row_of.tolist(), strict=True)) == [
        (source, row) for source in (0, 1) for row in range(40)
    ]
    uses = []
    for step in range(len(plan)):
        windows = range(plan.step_windows[step], plan.step_windows[step + 1])
        touched = set()
        for window in windows:
            left, top, right, bottom = plan.sources[plan.source_of[window]].regions[plan.row_of[window]]
            touched |= {
                (0, x // 32, y // 16)
                for x in range(max(left, 0), min(right, 300))
                for y in range(max(top, 0), min(bottom, 200))
            }
        needed = plan.needed[plan.step_tiles[step] : plan.step_tiles[step + 1]]
        assert {tuple(tile) for tile in plan.tiles[needed].tolist()} == touched
        uses += [(step, tile) for tile in needed.tolist()]
    for (step, tile), later in zip(uses, plan.next_use.tolist(), strict=True):
        after = [other for other, same in uses if same == tile and other > step]
        assert later == (min(after) if after else NEVER)


def test_a_plan_of_nothing_reads_nothing() -> None:
    levels = [Level((100, 100), (1.0, 1.0))]
    plan = plan_reading(levels, np.empty((0, 2)), 1.0, 32, {1.0: np.empty(0, np.int64)}, 8)
    assert (len(plan), plan.windows, len(plan.tiles), plan.decodes(4)) == (0, 0, 0, 0)
    far = plan_reading(levels, np.array([[-900.0, 50.0]]), 1.0, 32, {1.0: np.arange(1)}, 8)
    assert (far.windows, len(far.tiles)) == (1, 0)


def test_a_plan_can_be_printed() -> None:
    text = str(plan_of(Picture(300, 200, (32, 16)), [(50, 50), (80, 90)], (0.5, 2.0)))
    assert "4 windows of 32 px in 1 step," in text
    assert "0.5000 um/px: 2 windows from level 0 (300 x 200 px, tiles of 32 x 16), 0.5 px to one" in text


def test_windows_over_a_damaged_tile_are_not_readable_and_the_others_are_whole() -> None:
    slide = Picture(300, 300, (50, 50))
    slide.damaged = {(0, 2, 2)}
    grid = np.arange(25.0, 300.0, 50.0)
    xy = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    plan = plan_of(slide, xy, (1.0,))
    reader = WindowReader(slide, plan, 4 * plan.tile_bytes)
    unreadable = []
    for step in range(len(plan)):
        windows = reader.read(step)
        for pixels, readable, row in zip(windows.pixels, windows.readable, windows.row_of, strict=True):
            if readable:
                box = window_boxes(xy[row][None], 1.0, 32, 1.0)[0]
                assert np.array_equal(pixels, read_window(slide, box.tolist(), 32))
            else:
                unreadable.append(xy[row].tolist())
    # Windows of 32 px around the middle of tiles of 50 px touch no other tile.
    assert unreadable == [[125.0, 125.0]]
    assert slide.decoded.count((0, 2, 2)) == 1  # known to be damaged


def test_an_image_that_is_gone_fails_every_reader_and_nobody_waits_forever() -> None:
    slide = Picture(2000, 300, (50, 50))
    plan = plan_of(slide, np.random.default_rng(0).uniform(0, 300, (200, 2)), (1.0, 3.0))
    reader = WindowReader(slide, plan, 20 * plan.tile_bytes)
    slide.gone = True
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(reader.read, step) for step in range(len(plan))]
        for future in futures:
            # Also those whose tiles were another reader's to decode: it is not damage of theirs.
            assert isinstance(future.exception(timeout=30), ImageError)


def test_many_threads_share_few_slots_without_getting_in_each_others_way() -> None:
    slide = Picture(1500, 1500, (64, 64))
    xy = np.random.default_rng(0).uniform(0, 1500, (600, 2))
    plan = plan_of(slide, xy, (1.0, 4.0), step=4)
    reader = WindowReader(slide, plan, 2 * plan.most_tiles * plan.tile_bytes)
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(reader.read, range(len(plan))))
    for windows in found[:: len(found) // 40]:
        for pixels, source, row in zip(windows.pixels, windows.source_of, windows.row_of, strict=True):
            box = window_boxes(xy[row][None], plan.sources[source].mpp, 32, 1.0)[0]
            assert np.array_equal(pixels, read_window(slide, box.tolist(), 32))


def test_a_defect_while_decoding_is_raised_to_all_who_wait_for_the_tiles() -> None:
    plan = plan_of(Picture(300, 300, (50, 50)), [(100.0, 100.0), (101.0, 101.0)], (2.0,), step=1)
    waiting = threading.Event()

    def decode(tiles: list[int], slots: list[np.ndarray]) -> None:
        waiting.wait(10)
        raise ZeroDivisionError

    cache = TileCache(plan, 40, decode)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(cache.acquire, step) for step in (0, 1)]
        waiting.set()
        assert all(isinstance(future.exception(timeout=10), ZeroDivisionError) for future in both)


@given(st.integers(2, 40), st.integers(2, 40))
def test_the_curve_visits_every_square_once(width: int, height: int) -> None:
    x, y = (part.ravel() for part in np.meshgrid(np.arange(width), np.arange(height)))
    distance = hilbert_distance(x, y)
    assert len(np.unique(distance)) == width * height
    assert sorted(hilbert_order(np.stack([x, y], 1).astype(float), 1.0).tolist()) == list(
        range(width * height)
    )


def test_the_curve_goes_from_each_square_to_one_beside_it() -> None:
    x, y = (part.ravel() for part in np.meshgrid(np.arange(64), np.arange(64)))
    order = np.argsort(hilbert_distance(x, y))
    steps = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert (steps == 1).all()


def test_places_far_apart_do_not_wrap_around() -> None:
    xy = np.array([[0.0, 0.0], [1e9, 1e9], [1.0, 1.0], [1e9 - 1, 1e9]])
    order = hilbert_order(xy, 256.0).tolist()
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
