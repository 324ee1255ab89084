from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from mmap_st.data.cohort import Cohort, CohortSlide, read_cohort, write_cohort
from mmap_st.data.readers import as_cohort, open_cohort, read_counts, read_spots
from mmap_st.errors import CohortError, CountsError, SpotsError


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_cohort_survives_writing_and_paths_become_relative(tmp_path: Path, ending: str) -> None:
    image = tmp_path / "images" / "a slide, with a comma.jpg"
    rows = (
        CohortSlide("01", "P1", image=image, mpp=0.25, reader="her2st"),
        CohortSlide("b/ä", None, counts=tmp_path / "c.tsv"),
    )
    path = tmp_path / "deep" / f"cohort.{ending}"
    write_cohort(Cohort(rows, "here"), path)
    back = read_cohort(path)
    assert [s.slide for s in back.slides] == ["01", "b/ä"]
    assert back["01"].image is not None
    assert back["01"].image.resolve() == image
    assert back["01"].mpp == 0.25
    assert back["b/ä"].patient is None
    if ending == "csv":
        assert "../images/a slide, with a comma.jpg" in path.read_text()


def test_only_the_slide_column_is_required(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("slide,colour\nA1,red\n")
    assert read_cohort(path).names == ("A1",)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("slide,mpp\nA1,fast\n", "mpp is 'fast'"),
        ("slide,mpp\nA1,-1\n", "mpp is '-1'"),
        ("slide\nA1\nA1\n", "names A1 more than once"),
        ("slide,patient\n,P\n", "has no name"),
        ("name\nA1\n", "no column `slide`"),
        ("slide\n", "lists no slides"),
        ("", "is empty; copy it again"),
    ],
)
def test_a_bad_cohort_is_one_sentence(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(text)
    with pytest.raises(CohortError, match=part):
        read_cohort(path)


@pytest.mark.parametrize(
    ("column", "meant"), [("MPP", "mpp"), ("pacient", "patient"), ("mpp_form", "mpp_from")]
)
def test_a_misspelt_column_is_not_passed_over(tmp_path: Path, column: str, meant: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(f"slide,{column}\nA1,1\n")
    with pytest.raises(CohortError, match=f"has a column '{column}', .* rename it to '{meant}'"):
        read_cohort(path)
    path.write_text("slide,patient,patient_id,stain\nA1,P,7,HE\n")  # of the user's own
    assert read_cohort(path)["A1"].patient == "P"


def test_a_missing_cohort_an_unknown_reader_and_a_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="does not exist"):
        open_cohort(str(tmp_path / "no.csv"))
    with pytest.raises(CohortError, match="did you mean her2st"):
        open_cohort(f"her2s:{tmp_path}")
    with pytest.raises(CohortError, match="does not exist; her2st: needs"):
        open_cohort(f"her2st:{tmp_path / 'nowhere'}")
    with pytest.raises(CohortError, match="layout of her2st"):
        open_cohort(f"her2st:{tmp_path}")


def test_an_unknown_slide_is_named_with_those_near(tmp_path: Path) -> None:
    cohort = Cohort((CohortSlide("A1"),), "here")
    with pytest.raises(CohortError, match="did you mean A1"):
        cohort["A11"]


def test_rows_that_lack_something_say_what(tmp_path: Path) -> None:
    with pytest.raises(SpotsError, match="names no spot table"):
        read_spots(CohortSlide("A1"))
    with pytest.raises(CountsError, match="names no count table"):
        read_counts(CohortSlide("A1"))
    there = tmp_path / "spots.tsv"
    there.touch()
    with pytest.raises(SpotsError, match="no reader"):
        read_spots(CohortSlide("A1", spots=there))
    with pytest.raises(SpotsError, match="did you mean her2st"):
        read_spots(CohortSlide("A1", spots=there, reader="her2"))
    with pytest.raises(CountsError, match="does not exist"):
        read_counts(CohortSlide("A1", counts=tmp_path / "no.tsv", reader="her2st"))


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("anndata", "h5ad"),
        ("AnnData", "h5ad"),
        ("spaceranger", "visium, visium-hd"),
        ("space_ranger", "visium, visium-hd"),
        ("visiumhd", "visium-hd"),
        ("xenum", "xenium"),
    ],
)
def test_a_reader_is_known_by_what_it_reads_too(word: str, meant: str) -> None:
    with pytest.raises(CohortError, match=rf"reader '{word}' \(did you mean {meant}\?\)"):
        open_cohort(f"{word}:data")
    with pytest.raises(CohortError, match="There is no reader 'or'; the readers"):
        open_cohort("or:data")


def test_a_cohort_is_given_as_an_object_a_path_or_text(write_section, tmp_path: Path) -> None:
    root = write_section("A1")
    cohort = as_cohort(f"her2st:{root}")
    assert cohort.names == ("A1",)
    assert as_cohort(cohort) is cohort
    for name in ("c.csv", "c.parquet"):
        write_cohort(cohort, tmp_path / name)
        assert as_cohort(tmp_path / name).names == as_cohort(str(tmp_path / name)).names == ("A1",)
        assert len(read_spots(as_cohort(tmp_path / name)["A1"])) == len(read_spots(cohort["A1"]))


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame])
def test_a_cohort_is_given_as_a_data_frame(make: Callable[..., Any], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = make(
        {
            "slide": ["A1", "B1", "C1"],
            "patient": [1, None, 3],
            "mpp": [0.5, float("nan"), None],
            "image": [Path("a.tif"), None, tmp_path / "elsewhere" / "c.tif"],
            "stain": ["H&E", "H&E", None],
        }
    )
    cohort = as_cohort(table)
    assert [(s.slide, s.patient, s.mpp) for s in cohort.slides] == [
        ("A1", "1", 0.5),
        ("B1", None, None),
        ("C1", "3", None),
    ]
    monkeypatch.chdir("/")
    assert [s.image for s in cohort.slides] == [tmp_path / "a.tif", None, tmp_path / "elsewhere" / "c.tif"]


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame])
@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"name": ["A1"]}, "the data frame has no column `slide`; its columns are name"),
        ({"slide": ["A1"], "MPP": [0.5]}, "rename it to 'mpp'"),
        ({"slide": ["A1", "A1"]}, "names A1 more than once"),
        ({"slide": ["A1", None]}, "the data frame, row 2: the slide has no name"),
        ({"slide": ["A1"], "mpp": [-1]}, r"the data frame, row 1 \(A1\): mpp is '-1'"),
        ({"slide": []}, "lists no slides"),
    ],
)
def test_a_bad_data_frame_is_one_sentence(
    make: Callable[..., Any], columns: dict[str, list[Any]], part: str
) -> None:
    with pytest.raises(CohortError, match=part):
        as_cohort(make(columns))


def test_what_is_not_a_cohort_is_refused() -> None:
    with pytest.raises(CohortError, match=r"a list is not a cohort; give a cohort, reader:path"):
        as_cohort(["A1"])
