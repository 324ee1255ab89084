"""Spots that would plainly fit the tissue better some other way are refused before anything is embedded."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import mmap_st as mm
from mmap_st.data.readers import open_cohort, read_spots
from mmap_st.errors import SlidesFailedError, SpotsError
from mmap_st.extract.engine.planning.placement import check_orientation
from mmap_st.extract.slides import find_tissue, open_slide
from mmap_st.extract.slides.grid import TRANSFORMS

SIZE = (1000, 760)
MPP = 4.0
ENCODER = "timm:test_efficientnet"
SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x and y swapped": lambda xy: xy[:, ::-1],
    "mirrored left to right": lambda xy: TRANSFORMS["mirrored left to right"](xy, *SIZE),
    "mirrored top to bottom": lambda xy: TRANSFORMS["mirrored top to bottom"](xy, *SIZE),
    "turned by 180 degrees": lambda xy: TRANSFORMS["turned by 180 degrees"](xy, *SIZE),
    "multiplied by about [45]": lambda xy: xy * 0.22,
    "multiplied by about [67]": lambda xy: xy * 0.15,
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lopsided piece of tissue on glass."""
    picture = Image.new("RGB", SIZE, (243, 242, 244))
    ImageDraw.Draw(picture).polygon(
        [(60, 80), (900, 60), (940, 220), (500, 260), (300, 420), (80, 380)], fill=(214, 150, 195)
    )
    path = tmp_path_factory.mktemp("misplaced") / "S.png"
    picture.save(path)
    return path


@pytest.fixture(scope="module")
def xy(image: Path) -> np.ndarray:
    """(n, 2) spots on all of it."""
    slide = open_slide(image)
    mask = np.asarray(Image.open(image).convert("RGB"))[..., 1] < 200
    slide.close()
    return np.array(
        [(x, y) for y in range(20, SIZE[1], 35) for x in range(20, SIZE[0], 35) if mask[y, x]], float
    )


def cohort_of(image: Path, folder: Path, xy: np.ndarray) -> Path:
    rows = [f"s{i},{x},{y}" for i, (x, y) in enumerate(xy)]
    (folder / "spots.csv").write_text("\n".join(["id,x,y", *rows]) + "\n")
    (folder / "c.csv").write_text(f"slide,image,spots,reader,mpp\nS,{image},spots.csv,table,{MPP}\n")
    return folder / "c.csv"


def embed(cohort: Path, *, mpp: float = 8.0, unchecked: bool = False) -> object:
    return mm.embed(
        cohort, cohort.parent / "s.zarr", encoder=ENCODER, random_weights=True, mpp=mpp, unchecked=unchecked,
        progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_misplaced_spots_are_refused_and_nothing_is_written(
    how: str, image: Path, xy: np.ndarray, tmp_path: Path
) -> None:
    cohort = cohort_of(image, tmp_path, SPOILT[how](xy))
    with pytest.raises(SlidesFailedError, match=f"if {how}.*--unchecked"):
        embed(cohort)
    assert not (tmp_path / "s.zarr" / "S" / "spots").exists()


def test_well_placed_spots_are_embedded(image: Path, xy: np.ndarray, tmp_path: Path) -> None:
    assert embed(cohort_of(image, tmp_path, xy)).report.done == ["S"]


@pytest.mark.parametrize("grey", [0, 255])
def test_spots_on_an_image_without_tissue_are_embedded_with_a_word(
    grey: int, xy: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("L", SIZE, grey).save(tmp_path / "S.png")
    assert embed(cohort_of(tmp_path / "S.png", tmp_path, xy)).report.done == ["S"]
    assert "S: no tissue can be told from glass on its image" in caplog.text


def test_who_insists_is_heeded_and_what_is_complete_is_not_judged_again(
    image: Path, xy: np.ndarray, tmp_path: Path, mmap: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    cohort = cohort_of(image, tmp_path, SPOILT["x and y swapped"](xy))
    words = ("extract", cohort, tmp_path / "s.zarr", "--encoder", ENCODER, "--random-weights", "--mpp", "8")
    shown = mmap(*words)
    assert shown.returncode == 1
    assert "if x and y swapped" in shown.stdout
    assert mmap(*words, "--unchecked").returncode == 0
    assert embed(cohort).report.unchanged == ["S"]
    assert embed(cohort, mpp=16.0).report.done == ["S"]


def test_few_spots_and_spots_that_fit_better_by_little_are_taken(image: Path, xy: np.ndarray) -> None:
    slide = open_slide(image)
    tissue = find_tissue(slide, MPP)
    from mmap_st.data import Spots

    def spots(places: np.ndarray) -> Spots:
        return Spots(tuple(f"s{i}" for i in range(len(places))), np.asarray(places, float))

    with pytest.raises(SpotsError):
        check_orientation(spots(xy[:, ::-1]), tissue, SIZE)
    check_orientation(spots(xy[:15, ::-1]), tissue, SIZE)
    check_orientation(spots(xy + np.array([20.0, 0.0])), tissue, SIZE)


def test_real_sections_are_taken(shared: Path) -> None:
    cohort = open_cohort(f"her2st:{shared / 'data' / 'her2st'}")
    for name in ("B4", "C3"):
        slide = open_slide(cohort[name].image)
        check_orientation(read_spots(cohort[name]), find_tissue(slide, 0.688), slide.size)
