"""`mmap cohort --mpp --pitch-um --image`: what files do not say is given on the command line, not edited in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmap_st as mm
from mmap_st.commands.options import parse_images
from mmap_st.data.cohort import Cohort, CohortSlide, read_cohort
from mmap_st.errors import CohortError, RequestError
from mmap_st.workflows.cohort_scale import SurveyedSlide, survey_and_fill


def picture(path: Path, mpp: float | None = None) -> Path:
    """An image of 200 x 200 pixels; a TIFF may say its scale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    if mpp is None:
        Image.fromarray(pixels).save(path)
    else:
        import tifffile

        per_cm = 1e4 / mpp
        tifffile.imwrite(path, pixels, photometric="rgb", resolution=(per_cm, per_cm), resolutionunit=3)
    return path


def spots(path: Path, step: float = 40.0, *, even: bool = True) -> Path:
    rng = np.random.default_rng(1)
    places = [(x * step, y * step) for y in range(1, 5) for x in range(1, 5)]
    lines = [
        f"{i},{x},{y}" if even else f"{i},{rng.uniform(0, 200)},{rng.uniform(0, 200)}"
        for i, (x, y) in enumerate(places)
    ]
    path.write_text("\n".join(["id,x,y", *lines]) + "\n")
    return path


def filled(row: CohortSlide, **given: float) -> SurveyedSlide:
    (found,) = survey_and_fill(Cohort((row,), "here"), **given)
    return found


@pytest.fixture
def bare(tmp_path: Path) -> CohortSlide:
    """A slide of which nothing says the scale."""
    return CohortSlide(
        "S", image=picture(tmp_path / "S.png"), spots=spots(tmp_path / "S.csv"), reader="table"
    )


def test_a_scale_that_nothing_knows_is_filled_in(bare: CohortSlide) -> None:
    found = filled(bare, mpp=0.5)
    assert found.look.row == replace(bare, mpp=0.5)
    assert (found.notes, found.look.problems) == ((), ())
    without_image = filled(replace(bare, image=None), mpp=0.5)
    assert without_image.look.row.mpp == 0.5


@pytest.mark.parametrize(
    ("mpp", "noted", "refused"),
    [
        (0.5, False, False),
        (0.504, False, False),
        (0.51, True, False),
        (0.49, True, False),
        (0.6, False, True),
    ],
)
@pytest.mark.parametrize("source", ["image", "pitch", "row"])
def test_a_scale_that_files_know_is_kept(
    source: str, mpp: float, noted: bool, refused: bool, bare: CohortSlide, tmp_path: Path
) -> None:
    row = {
        "image": replace(bare, image=picture(tmp_path / "S.tif", 0.5)),
        "pitch": replace(bare, pitch_um=20.0),  # 40 pixels
        "row": replace(bare, mpp=0.5),
    }[source]
    found = filled(row, mpp=mpp)
    assert found.look.row == row
    assert bool(found.notes) == noted
    assert bool(found.look.problems) == refused
    for said in (*found.notes, *found.look.problems):
        assert said.startswith(f"--mpp {mpp:g} is not its um/px, which are 0.5")
    if refused:
        assert "differ by more than 5%; leave --mpp out for it" in found.look.problems[0]


def test_an_image_that_cannot_be_read_knows_nothing(bare: CohortSlide, tmp_path: Path) -> None:
    (tmp_path / "S.tif").write_bytes(b"no image")
    assert filled(replace(bare, image=tmp_path / "S.tif"), mpp=0.5).look.row.mpp == 0.5
    gone = filled(replace(bare, image=tmp_path / "gone.tif"), mpp=0.5)
    assert gone.look.row.mpp == 0.5
    assert "does not exist" in gone.look.problems[0]


def test_a_distance_between_spots_is_filled_in_and_gives_the_scale(bare: CohortSlide) -> None:
    found = filled(bare, pitch_um=100.0)
    assert found.look.row == replace(bare, pitch_um=100.0)
    assert found.look.mpp is not None
    assert found.look.mpp.mpp == pytest.approx(2.5)
    both = filled(bare, pitch_um=100.0, mpp=0.5)
    assert both.look.row.mpp is None
    assert "from the distance between its spots" in both.look.problems[0]


def test_spots_that_are_not_evenly_spaced_give_no_scale(bare: CohortSlide, tmp_path: Path) -> None:
    found = filled(replace(bare, spots=spots(tmp_path / "uneven.csv", even=False)), pitch_um=100.0)
    assert found.look.mpp is None
    assert found.notes == ("its spots are too few or too uneven to tell its um/px by --pitch-um",)
    alone = filled(CohortSlide("S", image=bare.image), pitch_um=100.0)
    assert (alone.look.row.pitch_um, alone.notes) == (None, ())


def test_a_distance_that_a_reader_knows_is_kept(write_section: Callable[..., Path]) -> None:
    row = mm.read_cohort(f"her2st:{write_section()}").slides[0]
    assert filled(row, pitch_um=200.0).notes == ()
    found = filled(row, pitch_um=100.0)
    assert found.look.row == row
    assert found.notes == ("its spots lie 200 um apart, as its reader knows; --pitch-um was not taken",)


@pytest.mark.parametrize("given", [{"mpp": 0.0}, {"mpp": 500.0}, {"mpp": float("nan")}, {"pitch_um": 0.0}])
def test_numbers_out_of_range_are_refused_before_any_work(given: dict[str, float], bare: CohortSlide) -> None:
    with pytest.raises(CohortError, match=r"^--(mpp|pitch-um) \S+: give micrometres"):
        survey_and_fill(Cohort((bare,), "here"), **given)


def test_one_bad_slide_does_not_stop_the_others(bare: CohortSlide, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("no,spots\n1,2\n")
    bad = replace(bare, slide="T", spots=tmp_path / "bad.csv")
    first, second = survey_and_fill(Cohort((bad, bare), "here"), mpp=0.5, pitch_um=100.0)
    assert first.look.problems
    assert second.look.row.pitch_um == 100.0


# The command.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("S1", "S2"):
        picture(tmp_path / "in" / f"{name}.png")
        spots(tmp_path / "in" / f"{name}.csv")
        counts = "".join(f"{i},1,2\n" for i in range(16))
        (tmp_path / "in" / f"{name}_counts.csv").write_text(f"id,G1,G2\n{counts}")
    return tmp_path


def test_a_cohort_that_extract_takes(folder: Path, mmap: Callable) -> None:
    for given, unknown in (((), True), (("--mpp", 2), False)):
        done = mmap("cohort", f"images:{folder / 'in'}", "--out", folder / "c.csv", *given)
        assert done.returncode == 0, done.stderr
        assert [row.mpp for row in read_cohort(folder / "c.csv").slides] == [None if unknown else 2.0] * 2
        checked = mmap("cohort", "check", folder / "c.csv")
        assert ("micrometres per pixel are not known" in checked.stdout) == unknown


def test_the_command_says_what_it_did_not_take(folder: Path, mmap: Callable) -> None:
    picture(folder / "in" / "S2.tif", 0.5)
    (folder / "in" / "S2.png").unlink()
    words = ("cohort", f"images:{folder / 'in'}", "--out", folder / "c.csv", "--mpp")
    done = mmap(*words, 0.51)
    assert done.returncode == 0
    assert (
        "S2: --mpp 0.51 is not its um/px, which are 0.5 (from the image's metadata); that was kept"
        in done.stderr
    )
    assert [row.mpp for row in read_cohort(folder / "c.csv").slides] == [0.51, None]
    done = mmap(*words, 1)
    assert done.returncode == 1
    assert "differ by more than 5%" in done.stdout
    assert [row.mpp for row in read_cohort(folder / "c.csv").slides] == [1.0, None]
    refused = mmap("cohort", f"images:{folder / 'in'}", "--out", folder / "n.csv", "--mpp", 0)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert not (folder / "n.csv").exists()


def test_images_by_slide(folder: Path, mmap: Callable) -> None:
    scans = folder / "a=b"
    first, second = picture(scans / "17.png"), picture(scans / "S2.png")
    words = ("cohort", f"images:{folder / 'in'}", "--out", folder / "c.csv")

    def images(*given: str) -> Mapping[str, Path | None]:
        done = mmap(*words, *(word for one in given for word in ("--image", one)))
        assert done.returncode == 0, done.stderr
        return {row.slide: row.image and row.image.resolve() for row in read_cohort(folder / "c.csv").slides}

    own = {name: (folder / "in" / f"{name}.png").resolve() for name in ("S1", "S2")}
    assert images() == own
    assert images(f"S1={first}") == {**own, "S1": first.resolve()}
    assert images(f"S1={first}", f"S2={second}") == {"S1": first.resolve(), "S2": second.resolve()}
    assert images(str(scans)) == {**own, "S2": second.resolve()}  # a folder with = in its name
    cohort = mm.read_cohort(f"images:{folder / 'in'}", image={"S1": str(first)})
    assert cohort["S1"].image == first


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["S3={}"], r"has no slide S3 \(did you mean"),
        (["S1=gone.png"], "gone.png does not exist"),
        (["S1={}", "S1={}"], "two images of S1"),
        (["S1={}", "{}"], "give SLIDE=PATH for each"),
        (["S1="], "nothing stands after the =; give SLIDE=PATH, with a path there"),
        (["={}"], "nothing stands before the =; give SLIDE=PATH, with a slide there"),
        (["gone.png"], "gone.png does not exist"),
    ],
)
def test_images_that_cannot_be_meant(given: list[str], said: str, folder: Path) -> None:
    image = shutil.copy(folder / "in" / "S1.png", folder / "x.png")
    texts = [text.format(image) for text in given]
    with pytest.raises(RequestError, match=said):
        mm.read_cohort(f"images:{folder / 'in'}", image=parse_images(texts))


def test_names_may_have_an_equals_sign(folder: Path) -> None:
    image = shutil.copy(folder / "in" / "S1.png", folder / "x.png")
    assert parse_images([f"a=b={image}"]) == {"a=b": Path(image)}
    assert parse_images(["a=b=gone"]) == {"a": Path("b=gone")}
    assert parse_images(None) is None
