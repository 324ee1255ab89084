"""Images that cannot be right are seen as what they are, and right ones as nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mmap_st.errors import ImageError
from mmap_st.extract.slides import inspection
from mmap_st.extract.slides.inspection import inspect_image, unreadable
from mmap_st.extract.slides.slide import open_slide

MPP = 2.0
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def stained() -> Pixels:
    """1200 x 1000 px, pink with texture on glass."""
    rng = np.random.default_rng(0)
    pixels = np.full((1000, 1200, 3), 243, np.uint8)
    tissue = np.array([206, 130, 180]) + rng.normal(0, 9, (800, 900, 3))
    pixels[100:900, 100:1000] = np.clip(tissue, 0, 255).astype(np.uint8)
    return pixels


def write_png(path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)


def write_jpeg(path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels[..., :3]).save(path, quality=92)


def write_strips(path: Path, pixels: Pixels, compression: str | None = "zlib") -> None:
    extra = {"extrasamples": ["unassalpha"]} if pixels.shape[2] == 4 else {}
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=50, compression=compression, **extra)


def write_pyramid(path: Path, pixels: Pixels) -> None:
    extra = {"extrasamples": ["unassalpha"]} if pixels.shape[2] == 4 else {}
    with tifffile.TiffWriter(path) as file:
        for step in (1, 2, 4):
            level = np.ascontiguousarray(pixels[::step, ::step])
            file.write(level, tile=(128, 128), photometric="rgb", metadata=None, subfiletype=int(step > 1),
                       compression="zlib", **extra)  # fmt: skip


def write_ome(path: Path, pixels: Pixels) -> None:
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", ome=True, metadata={"axes": "YXS"})


WRITERS: dict[str, Callable[[Path, Pixels], None]] = {
    "a.png": write_png,
    "a.jpg": write_jpeg,
    "strips.tif": write_strips,
    "pyramid.tif": write_pyramid,
    "a.ome.tif": write_ome,
}


def states(path: Path, *, full: bool = False) -> list[str]:
    try:
        slide = open_slide(path)
    except ImageError as error:
        return [unreadable(path, error).state]
    try:
        return [one.state for one in inspect_image(slide, path, MPP, full=full).findings]
    finally:
        slide.close()


def blank(colour: tuple[int, int, int]) -> Callable[[Pixels], Pixels]:
    return lambda pixels: np.full_like(pixels, colour)


def grey(pixels: Pixels) -> Pixels:
    return np.repeat(pixels.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)


SPOILT: dict[str, Callable[[Pixels], Pixels]] = {
    "white": blank((255, 255, 255)),
    "black": blank((0, 0, 0)),
    "grey": grey,
    "no tissue": blank((180, 200, 140)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("state", SPOILT)
def test_blank_images_are_said_to_be_what_they_are(
    name: str, state: str, stained: Pixels, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name, SPOILT[state](stained))
    assert states(tmp_path / name) == [state]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_good_image_is_nothing_but_good(name: str, full: bool, stained: Pixels, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, stained)
    assert states(tmp_path / name, full=full) == []


@pytest.mark.parametrize("name", ["a.png", "strips.tif", "pyramid.tif", "a.ome.tif"])
def test_an_image_whose_alpha_is_zero_everywhere_is_transparent(
    name: str, stained: Pixels, tmp_path: Path
) -> None:
    for alpha, expected in ((0, ["transparent"]), (255, [])):
        channel = np.full((*stained.shape[:2], 1), alpha, np.uint8)
        WRITERS[name](tmp_path / name, np.concatenate([stained, channel], axis=2))
        assert states(tmp_path / name) == expected


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kept", [0.25, 0.6, 0.9])
def test_a_file_that_was_not_copied_whole_is_truncated(
    name: str, kept: float, stained: Pixels, tmp_path: Path
) -> None:
    path = tmp_path / name
    WRITERS[name](path, stained)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert states(path) == ["truncated"]


def test_a_damaged_tile_is_found_among_those_looked_at_or_with_full(stained: Pixels, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_pyramid(path, stained)
    with tifffile.TiffFile(path) as file:
        level = file.pages[1]
        at, size = level.dataoffsets[7], level.databytecounts[7]
    data = bytearray(path.read_bytes())
    data[at : at + size] = b"\xff" * size
    path.write_bytes(data)
    assert states(path) == []  # of another level than the finest
    assert states(path, full=True) == ["damaged"]


def test_tiles_that_are_looked_at_are_spread_and_few() -> None:
    for across, down in ((300, 200), (1, 5000), (5000, 1), (40, 40)):
        places = inspection._spread(across, down, 32)
        assert 28 <= len(places) <= 32
        assert {(0, 0), (across - 1, down - 1)} <= set(places)
        for size, along in ((across, 0), (down, 1)):
            values = sorted({0, size, *(place[along] for place in places)})
            assert max(np.diff(values)) <= max(0.15 * size, 2)
    assert len(inspection._spread(4, 5, 32)) == 20
