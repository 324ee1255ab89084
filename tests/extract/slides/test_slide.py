from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmap_st.errors import ImageError, RegionError
from mmap_st.extract.slides.formats.openslide_format import OpenSlideSlide
from mmap_st.extract.slides.formats.pixels import levels_of
from mmap_st.extract.slides.formats.plain import PlainSlide
from mmap_st.extract.slides.slide import open_slide
from mmap_st.extract.windows.reader import read_window

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (90, 120, 3), np.uint8)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    return path


def padded(box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    out = np.full((y1 - y0, x1 - x0, 3), 255, np.uint8)
    for y in range(max(y0, 0), min(y1, 90)):
        for x in range(max(x0, 0), min(x1, 120)):
            out[y - y0, x - x0] = PIXELS[y, x]
    return out


@pytest.mark.parametrize("box", [(3, 4, 40, 50), (-7, -3, 20, 11), (100, 80, 140, 100), (500, 5, 510, 9)])
def test_regions_are_white_outside_the_slide(png: Path, box) -> None:
    slide = open_slide(png)
    assert slide.size == (120, 90)
    assert slide.mpp is None
    assert np.array_equal(np.asarray(slide.read(box)), padded(box))


def test_a_plain_image_is_decoded_once_for_all_threads(png: Path, monkeypatch) -> None:
    decoded = []
    flatten = "mmap_st.extract.slides.formats.plain.flatten"
    original = PlainSlide._picture.__globals__["flatten"]
    monkeypatch.setattr(flatten, lambda image: decoded.append(1) or original(image))
    slide = open_slide(png)
    assert decoded == []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(slide.read, [(0, 0, 9, 9)] * 40))
    slide.thumbnail(20)
    assert decoded == [1]


def test_transparency_becomes_white_and_grey_becomes_rgb(tmp_path: Path) -> None:
    see_through = np.zeros((4, 4, 4), np.uint8)
    see_through[0, 0] = (10, 20, 30, 255)
    Image.fromarray(see_through).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / "g.png")
    region = np.asarray(open_slide(tmp_path / "a.png").read((0, 0, 2, 1)))
    assert region.tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert np.asarray(open_slide(tmp_path / "g.png").read((0, 0, 1, 1))).tolist() == [[[7, 7, 7]]]


def test_images_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        open_slide(tmp_path / "no.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ImageError, match="not an image that OpenSlide, tifffile or Pillow can read"):
        open_slide(tmp_path / "text.jpg")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ImageError, match="convert it to 8-bit RGB"):
        open_slide(tmp_path / "deep.png")


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_a_truncated_image_fails_as_a_whole(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cut.{kind}"
    Image.fromarray(PIXELS).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ImageError, match="cut"):
        open_slide(path).read((0, 0, 5, 5))


def test_images_larger_than_pillows_limit_open_and_the_limit_stays(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    side = int((2 * limit) ** 0.5) + 100
    path = tmp_path / "large.png"
    Image.new("L", (side, side)).save(path, compress_level=1)
    assert open_slide(path).size == (side, side)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_openslide_formats_are_read_tile_by_tile(shared: Path) -> None:
    slide = open_slide(shared / "data" / "wsi" / "CMU-1-Small-Region.svs")
    assert isinstance(slide, OpenSlideSlide)
    assert slide.size == (2220, 2967)
    assert slide.mpp == pytest.approx(0.499)
    beyond = np.asarray(slide.read((2200, 2950, 2240, 2990)))
    assert (beyond[20:, 20:] == 255).all()
    assert (beyond[:17, :20] != 255).any()
    assert max(slide.thumbnail(300).size) == 300
    # OpenSlide refuses this one, and Pillow finds 16-bit grey pixels.
    with pytest.raises(ImageError, match="pixels of kind I;16"):
        open_slide(shared / "data" / "wsi" / "not_tiled.tif")
    pyramid = open_slide(shared / "data" / "wsi" / "her2st_C2_crop_pyramid.tif")
    assert isinstance(pyramid, OpenSlideSlide)


def test_one_unreadable_region_does_not_end_an_openslide_slide(shared: Path, monkeypatch) -> None:
    slide = open_slide(shared / "data" / "wsi" / "CMU-1-Small-Region.svs")
    good = np.asarray(slide.read((0, 0, 9, 9)))

    def refuse(*args):
        raise openslide.OpenSlideError("broken tile")

    monkeypatch.setattr(slide._slide, "read_region", refuse)
    # The failed handle is replaced by a fresh one: the error may have been another region's.
    assert np.array_equal(np.asarray(slide.read((0, 0, 9, 9))), good)
    monkeypatch.setattr(openslide.OpenSlide, "read_region", refuse)
    with pytest.raises(RegionError, match="broken tile"):
        slide.read((0, 0, 9, 9))
    monkeypatch.undo()
    assert np.array_equal(np.asarray(slide.read((0, 0, 9, 9))), good)


@settings(max_examples=200, deadline=None)
@example(0.0, 1.5, 26.0, 32)  # read as a region of 32 x 33 pixels
@given(st.floats(-30, 150), st.floats(-30, 120), st.floats(4, 120), st.sampled_from([8, 17, 32]))
def test_a_window_equals_resizing_that_box_of_the_whole_slide(x, y, side, input_px) -> None:
    """The plain reference: the whole slide on white ground, resized with a box that is not rounded."""
    pad = 300
    whole = Image.new("RGB", (120 + 2 * pad, 90 + 2 * pad), (255, 255, 255))
    whole.paste(Image.fromarray(PIXELS), (pad, pad))
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    expected = whole.resize((input_px, input_px), Image.Resampling.BICUBIC, box=tuple(v + pad for v in box))

    class InMemory:
        levels = levels_of([(120, 90)])

        def read(self, region, level=0):
            return whole.crop(tuple(v + pad for v in region))

    window = read_window(InMemory(), box, input_px)
    assert window.dtype == np.uint8
    # Pillow takes the box in single precision, so a far offset costs at most one grey level.
    assert np.abs(window.astype(int) - np.asarray(expected).astype(int)).max() <= 1
