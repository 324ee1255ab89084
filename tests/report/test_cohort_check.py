"""`mmap cohort check`: what each slide is, and what is wrong with it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageDraw

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.readers import open_cohort, read_spots
from mmap_st.extract.slides.grid import TRANSFORMS, better_orientation
from mmap_st.extract.slides.slide import open_slide
from mmap_st.extract.slides.tissue import find_tissue
from mmap_st.report.cohort_check import check_cohort, check_slide, summarise_genes

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import layouts

MPP = 2.0


@pytest.fixture
def section(tmp_path: Path) -> CohortSlide:
    """A slide with a lopsided piece of tissue, and spots on all of it."""
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (2000, 1500), (243, 242, 244))
    outline = [(150, 200), (1500, 120), (1800, 420), (900, 560), (420, 1350), (180, 900)]
    draw = ImageDraw.Draw(image)
    draw.polygon(outline, fill=(214, 150, 195))
    inside = Image.new("1", image.size)
    ImageDraw.Draw(inside).polygon(outline, fill=1)
    mask = np.asarray(inside)
    ticks = [(x, y) for y in range(50, 1500, 50) for x in range(50, 2000, 50) if mask[y, x]]
    for x, y in rng.uniform((0, 0), (2000, 1500), (6000, 2)):
        if mask[int(y), int(x)]:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(90, 60, 140))
    image.save(tmp_path / "S.png")
    rows = [(f"{x}x{y}", float(x), float(y), x / 50, y / 50) for x, y in ticks]
    table = pl.DataFrame(rows, schema=["id", "x", "y", "array_x", "array_y"], orient="row")
    table.write_csv(tmp_path / "S_spots.csv")
    values = layouts.counts(len(rows)).astype(int)
    counts = {"id": [row[0] for row in rows], **dict(zip(layouts.GENES, values.T, strict=True))}
    pl.DataFrame(counts).write_csv(tmp_path / "S_counts.csv")
    row = open_cohort(f"table:{tmp_path}")["S"]
    return replace(row, pitch_um=100.0, patient="P")


def test_a_good_slide(section: CohortSlide) -> None:
    found = check_slide(section)
    assert found.problems == found.notes == ()
    assert (found.size_px, found.outside, found.unmatched) == ((2000, 1500), 0, 0)
    assert found.mpp.mpp == pytest.approx(MPP, rel=1e-4)
    assert found.mpp.source == "spot pitch"
    assert found.genes == layouts.GENES
    assert found.on_tissue > 0.97


def undone(name: str, xy: np.ndarray, width: int, height: int) -> np.ndarray:
    """Spots that the transform `name` brings to `xy`."""
    x, y = xy.T
    before = {
        "turned by 90 degrees clockwise": (y, width - x),
        "turned by 90 degrees counter-clockwise": (height - y, x),
        "x and y swapped and turned by 180 degrees": (height - y, width - x),
    }
    return np.column_stack(before[name]) if name in before else TRANSFORMS[name](xy, width, height)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "as they are"])
def test_a_wrong_orientation_is_seen_and_named(section: CohortSlide, name: str) -> None:
    slide = open_slide(section.image)
    tissue = find_tissue(slide, MPP)
    xy = read_spots(section).xy
    wrong = undone(name, xy, *slide.size)
    np.testing.assert_allclose(TRANSFORMS[name](wrong, *slide.size), xy)
    own, better = better_orientation(tissue, wrong, slide.size)
    assert own.on_tissue < 0.9
    assert better is not None
    assert better.name == name


def test_swapped_coordinates_are_a_problem_with_what_to_do(section: CohortSlide) -> None:
    table = pl.read_csv(section.spots)
    table.rename({"x": "y", "y": "x"}).write_csv(section.spots)
    (problem,) = check_slide(section).problems
    assert "x and y swapped" in problem
    assert "another orientation" in problem


@pytest.mark.parametrize(("factor", "named"), [(0.2, "5"), (0.45, "2.2")])
def test_positions_of_another_resolution_are_seen_and_their_factor_named(
    section: CohortSlide, factor: float, named: str
) -> None:
    table = pl.read_csv(section.spots).with_columns(pl.col("x", "y") * factor)
    table.write_csv(section.spots)
    (problem,) = check_slide(replace(section, pitch_um=None, mpp=MPP)).problems
    assert f"if multiplied by about {named}:" in problem


def test_spots_beside_the_tissue_are_a_problem_in_themselves(section: CohortSlide) -> None:
    table = pl.read_csv(section.spots).with_columns(pl.col("x") * 0.2 + 1500, pl.col("y") * 0.2 + 1100)
    table.write_csv(section.spots)
    (problem,) = check_slide(replace(section, pitch_um=None, mpp=MPP)).problems
    assert "lie on tissue" in problem


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_an_image_of_another_resolution_is_a_problem(section: CohortSlide, scale: float) -> None:
    found = check_slide(replace(section, scale=scale))
    if scale > 1:
        assert any("lie outside the image (2000 x 1500 px" in problem for problem in found.problems)
    else:
        assert found.mpp.mpp == pytest.approx(MPP / scale, rel=1e-4)


def test_every_problem_of_a_slide_is_named(section: CohortSlide, tmp_path: Path) -> None:
    row = replace(section, image=tmp_path / "gone.png", counts=tmp_path / "gone.csv", mpp=9.0)
    text = " ".join(check_slide(row).problems)
    assert "gone.png does not exist" in text
    assert "gone.csv does not exist" in text
    apart = check_slide(replace(section, mpp=9.0)).problems
    assert any("disagree by more than 5%: 9 (given in the cohort) against 2 +-" in p for p in apart)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(section.image.read_bytes()[:3000])
    assert any("damaged" in p for p in check_slide(replace(section, image=damaged)).problems)


def test_genes_that_slides_share_are_counted_and_two_ways_of_naming_said(section: CohortSlide) -> None:
    one = check_slide(section)
    other = replace(one, genes=layouts.GENE_IDS)
    assert summarise_genes([one, replace(one, genes=layouts.GENES[:4])]) == [
        "4 genes are on all 2 slides with counts, 6 on any"
    ]
    assert any("Ensembl" in note for note in summarise_genes([one, other]))
    assert summarise_genes([one]) == []


def test_real_sections_are_not_suspected_and_turned_ones_are(shared: Path) -> None:
    cohort = open_cohort(f"her2st:{shared / 'data' / 'her2st'}")
    for section_name in ("B4", "C2"):
        row = cohort[section_name]
        found = check_slide(row)
        assert found.problems == ()
        assert found.on_tissue > 0.9
        slide = open_slide(row.image)
        tissue = find_tissue(slide, 0.688)
        xy = read_spots(row).xy
        seen = [
            better_orientation(tissue, undone(name, xy, *slide.size), slide.size)[1] is not None
            for name in TRANSFORMS
            if name != "as they are"
        ]
        assert sum(seen) >= 4  # a piece of tissue near the middle looks alike some ways round


def test_columns_of_one_gene_are_added_up_and_said(section: CohortSlide) -> None:
    lines = section.counts.read_text().splitlines()
    lines[0] = lines[0].replace("FASN", "ERBB2").replace("KRT8", "ERBB2")
    section.counts.write_text("\n".join(lines) + "\n")
    found = check_slide(section)
    assert len(found.genes) == len(layouts.GENES) - 2
    assert found.notes == ("2 columns were added to another column of the same gene (ERBB2)",)


def test_all_slides_are_checked_whatever_is_wrong_with_one(section: CohortSlide, tmp_path: Path) -> None:
    broken = CohortSlide("T", image=tmp_path / "no.png")
    found = list(check_cohort(Cohort((broken, section), "test")))
    assert [bool(one.problems) for one in found] == [True, False]
