"""Tissue masks on made pictures, where the truth is known, and on real sections."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from mmap_st.data.arrays import mpp_from_pitch
from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort, read_spots
from mmap_st.errors import TissueError
from mmap_st.extract.slides.slide import open_slide
from mmap_st.extract.slides.tissue import Tissue, find_tissue, on_tissue, share_on_tissue, tissue_mask

UM_PER_PX = 8.0
SIDE = 500  # 4 mm
GLASS = (241, 240, 243)
BODY = (120, 100, 320, 400)
INK = {
    "blue": (30, 60, 180),
    "pale blue": (150, 170, 230),
    "royal blue": (50, 50, 200),
    "green": (20, 140, 80),
    "dark green": (30, 110, 60),
    "teal": (0, 128, 128),
    "red": (220, 30, 40),
    "black": (30, 28, 33),
}


def made(noise: float = 4.0, glass: tuple[int, int, int] = GLASS) -> Image.Image:
    """Glass with an ellipse of stroma that holds nuclei."""
    rng = np.random.default_rng(1)
    picture = Image.new("RGB", (SIDE, SIDE), glass)
    ImageDraw.Draw(picture).ellipse(BODY, fill=(222, 150, 196))
    pixels = np.asarray(picture).astype(float)
    body = truth()
    nuclei = body & (rng.random(body.shape) < 0.3)
    pixels[nuclei] = (110, 70, 150)
    pixels += rng.normal(0, noise, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def truth() -> np.ndarray:
    body = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(body).ellipse(BODY, fill=1)
    return np.asarray(body) > 0


def mask_of(picture: Image.Image) -> np.ndarray:
    return tissue_mask(np.asarray(picture), UM_PER_PX)


def overlap(found: np.ndarray, expected: np.ndarray) -> float:
    return float((found & expected).sum() / (found | expected).sum())


@pytest.mark.parametrize("glass", [GLASS, (255, 255, 255), (222, 210, 228), (205, 205, 205), (245, 240, 225)])
def test_tissue_is_told_from_glass_of_any_tint(glass: tuple[int, int, int]) -> None:
    assert overlap(mask_of(made(glass=glass)), truth()) > 0.97


def test_noise_makes_no_specks_and_no_holes() -> None:
    mask = mask_of(made(noise=14.0))
    assert overlap(mask, truth()) > 0.97
    assert ndimage.label(mask)[1] == 1
    assert ndimage.label(~mask)[1] == 1


def test_small_holes_are_filled_and_large_ones_are_kept() -> None:
    picture = made()
    pen = ImageDraw.Draw(picture)
    pen.ellipse((200, 150, 209, 159), fill=GLASS)  # 80 um wide: a fat cell
    pen.ellipse((180, 230, 250, 300), fill=GLASS)  # 560 um wide: a lumen
    mask = mask_of(picture)
    assert mask[154, 204]
    assert not mask[265, 215]
    lumen = ~mask[225:305, 175:255]
    assert lumen.sum() == pytest.approx(np.pi * 35.5**2, rel=0.1)


def test_specks_are_dropped_and_second_pieces_are_kept() -> None:
    picture = made()
    pen = ImageDraw.Draw(picture)
    pen.ellipse((400, 50, 415, 65), fill=(200, 110, 170))  # 128 um wide
    pen.ellipse((400, 300, 460, 380), fill=(200, 110, 170))
    mask = mask_of(picture)
    assert not mask[40:80, 390:430].any()
    assert mask[340, 430]
    assert ndimage.label(mask)[1] == 2


@pytest.mark.parametrize("colour", INK)
def test_pen_marks_are_no_tissue(colour: str) -> None:
    picture = made()
    pen = ImageDraw.Draw(picture)
    pen.line([(20, 30), (480, 60), (470, 470), (350, 480)], fill=INK[colour], width=30, joint="curve")
    pen.line([(60, 300), (260, 250)], fill=INK[colour], width=25)  # over the tissue
    pixels = np.asarray(picture).astype(float) + np.random.default_rng(0).normal(0, 4, (SIDE, SIDE, 3))
    mask = tissue_mask(np.clip(pixels, 0, 255).astype(np.uint8), UM_PER_PX)
    assert not mask[:90].any()
    assert not mask[:, 400:].any()
    assert not mask[255, 240]
    clear = truth() & (np.add.outer(np.arange(SIDE), np.zeros(SIDE)) > 310)
    assert mask[clear].mean() > 0.97


@pytest.mark.parametrize("border", [(0, 0, 0), (255, 255, 255), (60, 60, 60), (128, 128, 128)])
@pytest.mark.parametrize("glass", [GLASS, (222, 210, 228)])
def test_borders_and_parts_that_were_not_scanned_are_no_tissue(border, glass) -> None:
    picture = made(glass=glass)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, 90, SIDE), fill=border)
    pen.rectangle((0, 440, SIDE, SIDE), fill=border)
    mask = mask_of(picture)
    assert overlap(mask, truth()) > 0.97
    assert not mask[:, :95].any()
    assert not mask[435:].any()


def test_grey_dust_is_no_tissue() -> None:
    picture = made()
    ImageDraw.Draw(picture).ellipse((400, 100, 460, 160), fill=(120, 119, 121))
    assert not mask_of(picture)[:, 390:].any()


def test_a_small_biopsy_on_a_large_slide_is_found() -> None:
    picture = Image.new("RGB", (1500, 1500), GLASS)
    picture.paste(made().crop(BODY).resize((40, 60)), (700, 700))
    mask = mask_of(picture)
    assert mask[730, 720]
    assert mask.sum() < 40 * 60


def test_a_picture_that_is_all_tissue_is_all_tissue() -> None:
    body = np.asarray(made().crop((190, 190, 250, 310)).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    assert tissue_mask(body, UM_PER_PX).mean() > 0.95


@pytest.mark.parametrize("kind", ["white", "even", "noise", "shaded", "black", "ink", "dust"])
def test_a_slide_without_tissue_says_so(kind: str) -> None:
    rng = np.random.default_rng(0)
    pixels = np.full((SIDE, SIDE, 3), GLASS, float)
    if kind == "white":
        pixels[:] = 255
    if kind in ("noise", "shaded"):
        pixels += rng.normal(0, 12 if kind == "noise" else 4, pixels.shape)
    if kind == "shaded":
        pixels -= np.linspace(0, 60, SIDE)[:, None]
    if kind == "black":
        pixels[:] = 0
    if kind == "ink":
        pixels[100:140] = INK["blue"]
    if kind == "dust":
        for y, x in rng.integers(10, SIDE - 10, (50, 2)):
            pixels[y : y + 8, x : x + 8] = (190, 120, 160)
    with pytest.raises(TissueError, match="no tissue found on it"):
        tissue_mask(np.clip(pixels, 0, 255).astype(np.uint8), UM_PER_PX)


def test_points_are_looked_up_in_level_0_pixels() -> None:
    mask = np.zeros((3, 4), np.bool_)
    mask[1, 2] = True
    tissue = Tissue(mask, (10.0, 20.0))
    xy = np.array([[20, 20], [29.9, 39.9], [30, 20], [20, 40], [-5, 25], [25, -1], [45, 25], [25, 65.0]])
    assert on_tissue(tissue, xy).tolist() == [True, True] + 6 * [False]
    assert share_on_tissue(tissue, xy) == 0.25


def test_the_mask_spans_the_slide_at_about_8_um(tmp_path: Path) -> None:
    made().resize((2000, 2000)).save(tmp_path / "a.png")
    tissue = find_tissue(open_slide(tmp_path / "a.png"), 2.0)
    assert tissue.mask.shape == (SIDE, SIDE)
    assert tissue.scale == (4.0, 4.0)
    assert overlap(tissue.mask, truth()) > 0.97
    coarse = find_tissue(open_slide(tmp_path / "a.png"), None)
    assert coarse.mask.shape == (1024, 1024)
    wide = find_tissue(open_slide(tmp_path / "a.png"), 40.0)  # 80 mm, but no more pixels than there are
    assert wide.mask.shape == (2000, 2000)


def test_simulated_spots_lie_on_tissue(cohort: Cohort) -> None:
    for row in cohort.slides:
        assert row.image is not None
        spots = read_spots(row)
        tissue = find_tissue(open_slide(row.image), 0.7)
        assert share_on_tissue(tissue, spots.xy) > 0.95
        assert share_on_tissue(tissue, spots.xy[:, ::-1]) < 1.0


@pytest.mark.parametrize("name", ["C2", "C3", "C4", "B4"])
def test_real_spots_lie_on_tissue(shared: Path, name: str) -> None:
    """Pink glass, a haze of eosin and, in B4, fat."""
    row = open_cohort(f"her2st:{shared / 'data' / 'her2st'}")[name]
    assert row.image is not None
    spots = read_spots(row)
    estimate = mpp_from_pitch(spots)
    assert estimate is not None
    slide = open_slide(row.image)
    tissue = find_tissue(slide, estimate.mpp)
    assert share_on_tissue(tissue, spots.xy) > (0.9 if name == "B4" else 0.97)
    # Spots are 200 um apart and on nearly all of the tissue: the mask is not much larger than what they cover.
    area_um2 = tissue.mask.sum() * np.prod(tissue.scale) * estimate.mpp**2
    assert area_um2 < 1.15 * len(spots) * 200**2
    for turned in (spots.xy[:, ::-1], np.array(slide.size) - spots.xy):
        assert share_on_tissue(tissue, turned) < 0.85
    assert share_on_tissue(find_tissue(slide, None), spots.xy) > 0.9
