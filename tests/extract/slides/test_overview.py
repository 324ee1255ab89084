"""Close-ups of places on slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmap_st.extract.slides import close_ups, open_slide


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A smooth image, red to the right and green downwards."""
    y, x = np.mgrid[0:200, 0:300]
    pixels = np.stack([x * 255 / 299, y * 255 / 199, np.full(x.shape, 40)], axis=-1)
    Image.fromarray(pixels.round().astype(np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_pixels_are_the_slides_own(image: Path) -> None:
    places = np.array([[100.0, 60.0], [210.0, 150.0]])
    found = close_ups(image, places, 50.0, 50)
    pixels = np.asarray(Image.open(image))
    for picture, (x, y) in zip(found, places.astype(int), strict=True):
        assert np.array_equal(picture, pixels[y - 25 : y + 25, x - 25 : x + 25])


def test_they_are_white_outside_the_slide(image: Path) -> None:
    (picture,) = close_ups(image, np.array([[0.0, 0.0]]), 40.0, 40)
    assert (picture[:20] == 255).all()
    assert (picture[:, :20] == 255).all()
    assert (picture[20:, 20:, 2] == 40).all()


def test_a_coarser_level_shows_the_same_tissue(shared: Path) -> None:
    """Of a pyramid, the level that is just fine enough is read."""
    path = shared / "data" / "wsi" / "her2st_C2_crop_pyramid.tif"
    slide = open_slide(path)
    assert len(slide.levels) > 1
    width = 448 * slide.levels[1].downsample[0]
    place = np.array(slide.size) / 2
    x, y = (round(c - width / 2) for c in place)
    whole = slide.read((x, y, x + round(width), y + round(width))).resize(
        (112, 112), Image.Resampling.BICUBIC
    )
    slide.close()
    (found,) = close_ups(path, place[None], width, 112)
    expected = np.asarray(whole, np.float64).mean(axis=2)

    def alike(shift: int) -> float:
        moved = np.roll(found.mean(axis=2), shift, axis=1)
        return float(np.corrcoef(moved.ravel(), expected.ravel())[0, 1])

    assert alike(0) > 0.9
    assert alike(0) > max(alike(-2), alike(2))


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_an_image_that_cannot_be_read_gives_none(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tif"
    if content is not None:
        path.write_bytes(content)
    assert close_ups(path, np.zeros((1, 2)), 10.0, 10) is None
    assert "no close-ups of the slide" in caplog.text


def test_no_places_no_pictures(image: Path) -> None:
    assert close_ups(image, np.zeros((0, 2)), 10.0, 8).shape == (0, 8, 8, 3)
