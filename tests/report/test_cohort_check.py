"""`mmap cohort check`: what each slide is, and what is wrong with it."""

import subprocess
import sys
from collections.abc import Callable
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


def moved(section: CohortSlide, dx: float, dy: float) -> CohortSlide:
    table = pl.read_csv(section.spots).with_columns(pl.col("x") + dx, pl.col("y") + dy)
    table.write_csv(section.spots)
    return section


@pytest.mark.parametrize(("dx", "dy"), [(400, 0), (0, 350), (-300, 250), (600, -200), (2600, 0)])
def test_shifted_spots_are_misplaced_and_the_shift_is_named(
    section: CohortSlide, dx: float, dy: float
) -> None:
    found = check_slide(moved(section, dx, dy))
    assert found.states == ("misplaced",)
    *_, problem = found.problems
    words = problem.split("shifted by about ")[1].split()
    assert float(words[0]) == pytest.approx(-dx, abs=25)
    assert float(words[5]) == pytest.approx(-dy, abs=25)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (20, 0), (0, -20)])
def test_spots_that_are_hardly_shifted_are_ok(section: CohortSlide, dx: float, dy: float) -> None:
    assert check_slide(moved(section, dx, dy)).state == "ok"


def test_a_low_share_on_tissue_is_a_note_where_nothing_fits_better(section: CohortSlide) -> None:
    """Every other place of the array lies beside the tissue, so that no turn and no shift helps."""
    table = pl.read_csv(section.spots)
    beside = table.head(len(table) // 4).with_columns(
        pl.col("id") + "b", pl.col("x") * 0.2 + 1500, pl.col("y") * 0.2 + 1200
    )
    pl.concat([table, beside]).write_csv(section.spots)
    found = check_slide(replace(section, pitch_um=None, mpp=MPP, counts=None))
    assert found.on_tissue == pytest.approx(0.79, abs=0.02)
    assert found.problems == ()
    assert any("lie on tissue" in note for note in found.notes)


@pytest.mark.parametrize("side", ["counts", "spots"])
@pytest.mark.parametrize(("kept", "state"), [(0.4, "unmatched"), (0.5, "unmatched"), (0.7, "ok")])
def test_half_of_the_barcodes_unmatched_is_a_state(
    section: CohortSlide, side: str, kept: float, state: str
) -> None:
    path = getattr(section, side)
    table = pl.read_csv(path)
    table = table.head(len(table) // 2 * 2)
    for file in (section.counts, section.spots):
        whole = pl.read_csv(file)
        whole.head(len(table)).write_csv(file)
    pl.read_csv(path).head(round(len(table) * kept)).write_csv(path)
    found = check_slide(section)
    assert found.state == state
    assert any("belong together" in note for note in found.notes) == (state == "unmatched")


@pytest.mark.parametrize(
    ("mpp", "state"), [(1.9, "ok"), (2.0, "ok"), (2.2, "too coarse"), (4.8, "too coarse")]
)
def test_an_image_too_coarse_for_usual_windows_is_a_state(
    section: CohortSlide, mpp: float, state: str
) -> None:
    found = check_slide(replace(section, pitch_um=None, mpp=mpp, spots=None, counts=None))
    assert (found.state, found.problems) == (state, ())


def test_the_table_shows_a_state_for_each_slide(
    section: CohortSlide, tmp_path: Path, mmap: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    whole = Image.open(section.image).convert("RGB")
    whole.convert("L").save(tmp_path / "grey.png")
    Image.new("RGB", whole.size, "white").save(tmp_path / "white.png")
    Image.new("RGB", whole.size, "black").save(tmp_path / "black.png")
    Image.new("RGBA", whole.size, (214, 150, 195, 0)).save(tmp_path / "transparent.png")
    (tmp_path / "truncated.png").write_bytes(section.image.read_bytes()[:20_000])
    names = ["grey", "white", "black", "transparent", "truncated"]
    for with_spots in (True, False):
        spots = f"{section.spots},table" if with_spots else ","
        lines = [f"{name},{name}.png,{spots},2" for name in names]
        lines += [
            f"ok,{section.image},{spots},2",
            f"coarse,{section.image},,,3",
            f"no image,,{section.spots},table,2",
        ]
        (tmp_path / "c.csv").write_text("\n".join(["slide,image,spots,reader,mpp", *lines]) + "\n")
        shown = mmap("cohort", "check", tmp_path / "c.csv")
        assert shown.returncode == 1
        state = {
            cells[1].strip(): cells[-2].strip()
            for line in shown.stdout.splitlines()
            if len(cells := line.split("│")) > 5
        }
        assert state == {**{name: name for name in [*names, "ok", "no image"]}, "coarse": "too coarse"}


def test_a_slide_of_which_only_the_image_is_missing_is_no_problem(section: CohortSlide) -> None:
    found = check_slide(replace(section, image=None))
    assert (found.state, found.problems) == ("no image", ())
    gone = check_slide(replace(section, image=section.image.with_name("gone.png")))
    assert gone.state == "no image"
    assert gone.problems


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
