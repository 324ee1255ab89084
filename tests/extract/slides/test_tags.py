"""Orientation tags, small first pages and pixels that are not square: one rule for all kinds of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mmap_st.data.cohort import CohortSlide
from mmap_st.extract.slides.slide import Slide, open_slide
from mmap_st.extract.slides.tissue import find_tissue
from mmap_st.report.cohort_check import check_slide

Pixels = NDArray[np.uint8]
ORIENTATION = 274


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    """700 x 500 px that look different however they are turned, smooth enough for JPEG."""
    rng = np.random.default_rng(0)
    small = rng.integers(90, 230, (10, 14, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((700, 500), Image.Resampling.BICUBIC))


def tiff(**how: Any) -> Callable[[Path, Pixels, int], None]:
    def write(path: Path, pixels: Pixels, tag: int) -> None:
        extra = [(ORIENTATION, "H", 1, tag, True)]
        tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, extratags=extra, **how)

    return write


def pillow(**how: Any) -> Callable[[Path, Pixels, int], None]:
    def write(path: Path, pixels: Pixels, tag: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = tag
        Image.fromarray(pixels).save(path, exif=exif, **how)

    return write


WRITERS = {
    "strips.tif": tiff(rowsperstrip=32),
    "deflate_strips.tif": tiff(rowsperstrip=32, compression="zlib"),
    "tiles.tif": tiff(tile=(128, 128)),
    "deflate_tiles.tif": tiff(tile=(128, 128), compression="zlib"),
    "jpeg_tiles.tif": tiff(tile=(128, 128), compression="jpeg"),
    "photo.jpg": pillow(quality=95),
    "photo.png": pillow(),
}


def whole(slide: Slide) -> NDArray[np.float64]:
    return np.asarray(slide.read((0, 0, *slide.size))).astype(float)


@pytest.mark.parametrize("tag", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("name", WRITERS)
def test_pixels_are_read_as_stored_and_a_turn_that_is_asked_for_is_said(
    name: str, tag: int, pixels: Pixels, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name, pixels, tag)
    slide = open_slide(tmp_path / name)
    assert slide.size == (700, 500)
    assert np.abs(whole(slide) - pixels).mean() < 4
    assert slide.thumbnail(350).size == (350, 250)
    assert np.array_equal(slide.read_tile(0, 1, 0), np.asarray(slide.read((*_corner(slide), *_end(slide)))))
    said = [note for note in slide.notes if "as they are stored" in note]
    assert len(said) == (tag > 1)
    slide.close()
    if tag not in (1, 6):
        return
    notes = check_slide(CohortSlide("S", image=tmp_path / name, mpp=1.0)).notes
    assert sum("orientation tag" in note for note in notes) == (tag > 1)


def _corner(slide: Slide) -> tuple[int, int]:
    return slide.levels[0].tile[0], 0


def _end(slide: Slide) -> tuple[int, int]:
    width, height = slide.levels[0].tile
    return min(2 * width, slide.size[0]), min(height, slide.size[1])


@pytest.mark.parametrize("first", [{"rowsperstrip": 16}, {"tile": (64, 64)}])
@pytest.mark.parametrize(
    "second", [{"rowsperstrip": 32}, {"tile": (128, 128)}, {"tile": (128, 128), "compression": "zlib"}]
)
def test_the_largest_page_is_the_slide(
    first: dict[str, Any], second: dict[str, Any], pixels: Pixels, tmp_path: Path
) -> None:
    """A label, a macro picture and the slide, the label first; no level of it is the label."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(np.full((300, 90, 3), 40, np.uint8), photometric="rgb", metadata=None, **first)
        file.write(pixels, photometric="rgb", metadata=None, **second)
        file.write(np.full((90, 210, 3), 40, np.uint8), photometric="rgb", metadata=None, **first)
    slide = open_slide(path)
    assert slide.size == (700, 500)
    assert len(slide.levels) == 1
    np.testing.assert_array_equal(whole(slide), pixels)
    find_tissue(slide, 8.0)


def test_no_level_is_a_label_that_calls_itself_a_smaller_version(pixels: Pixels, tmp_path: Path) -> None:
    path, tiles = tmp_path / "a.tif", {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, **tiles)
        file.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **tiles)
        file.write(np.full((300, 90, 3), 40, np.uint8), subfiletype=1, **tiles)
        file.write(np.ascontiguousarray(pixels[::4, ::4]), subfiletype=1, **tiles)
    slide = open_slide(path)
    assert [level.size for level in slide.levels] == [(700, 500), (350, 250), (175, 125)]
    for number, level in enumerate(slide.levels):
        shown = np.asarray(slide.read((0, 0, *level.size), number))
        np.testing.assert_array_equal(shown, pixels[:: 2**number, :: 2**number])


@pytest.mark.parametrize("sides", [(0.5, 0.5), (0.5, 0.51), (0.5, 1.0), (0.9, 0.5)])
@pytest.mark.parametrize(
    "how", [{"rowsperstrip": 32}, {"tile": (128, 128)}, {"tile": (128, 128), "ome": True}]
)
def test_pixels_that_are_not_square_give_no_scale_and_are_said(
    how: dict[str, Any], sides: tuple[float, float], pixels: Pixels, tmp_path: Path
) -> None:
    x, y = sides
    path = tmp_path / ("a.ome.tif" if how.get("ome") else "a.tif")
    scale: dict[str, Any] = {
        "resolution": (1e4 / x, 1e4 / y),
        "resolutionunit": "CENTIMETER",
        "metadata": None,
    }
    if how.get("ome"):
        scale = {"metadata": {"axes": "YXS", "PhysicalSizeX": x, "PhysicalSizeY": y}}
    tifffile.imwrite(path, pixels, photometric="rgb", **how, **scale)
    slide = open_slide(path)
    square = max(sides) / min(sides) < 1.05
    assert slide.mpp == (pytest.approx((x + y) / 2, rel=1e-4) if square else None)
    assert any("not square" in note for note in slide.notes) == (not square)
    row = CohortSlide("S", image=path)
    assert any("not known" in text for text in check_slide(row).problems) == (not square)
    assert any("not square" in note for note in check_slide(replace(row, mpp=0.5)).notes) == (not square)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("dpi", [(300, 300), (300, 150)])
def test_a_printers_pixels_that_are_not_square_are_said(
    name: str, dpi: tuple[int, int], pixels: Pixels, tmp_path: Path
) -> None:
    Image.fromarray(pixels).save(tmp_path / name, dpi=dpi)
    slide = open_slide(tmp_path / name)
    assert slide.mpp is None
    assert any("not square" in note for note in slide.notes) == (dpi[0] != dpi[1])
