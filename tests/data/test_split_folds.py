from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.splits import make_folds
from mmap_st.errors import SplitError


def cohort_of(patients: list[str | None]) -> Cohort:
    return Cohort(tuple(CohortSlide(f"S{i}", patient=p) for i, p in enumerate(patients)), "made")


PATIENTS = st.lists(st.sampled_from("ABCDE"), min_size=2, max_size=12).filter(lambda p: len(set(p)) > 1)


@given(PATIENTS, st.sampled_from(["patient", "patient:2"]))
def test_each_slide_is_tested_once_by_heads_that_did_not_see_its_patient(
    patients: list[str], text: str
) -> None:
    cohort = cohort_of(patients)
    rule, folds = make_folds(cohort, cohort.names, text)
    assert sorted(slide for fold in folds for slide in fold.split.test) == sorted(cohort.names)
    assert len({fold.name for fold in folds}) == len(folds)
    for fold in folds:
        whose = [{cohort[s].patient for s in part} for part in (fold.split.train, fold.split.test)]
        assert not whose[0] & whose[1]
        assert set(fold.split.train) | set(fold.split.test) == set(cohort.names)
        assert fold.split.shared_patients == ()
    assert len(folds) == (2 if ":" in text else len(set(patients)))
    assert "patient" in rule


def test_folds_of_patients_have_about_equal_numbers_of_slides() -> None:
    cohort = cohort_of(["A"] * 4 + ["B", "C", "D", "E"])
    _, folds = make_folds(cohort, cohort.names, "patient:2")
    assert [len(fold.split.test) for fold in folds] == [4, 4]


def test_only_slides_that_can_be_used_take_part() -> None:
    cohort = cohort_of(["A", "B", None, "C"])
    _, folds = make_folds(cohort, ("S0", "S1", "S3"), "patient")
    assert [fold.name for fold in folds] == ["A", "B", "C"]
    assert folds[0].split.train == ("S1", "S3")


def test_leaving_slides_out_tells_of_patients_on_both_sides() -> None:
    cohort = cohort_of(["A", "A", "B"])
    rule, folds = make_folds(cohort, cohort.names, "slide")
    assert rule == "leave one slide out"
    assert [fold.split.shared_patients for fold in folds] == [("A",), ("A",), ()]


@pytest.mark.parametrize("key", ["slide", "patient"])
def test_folds_of_a_file(key: str, tmp_path: Path) -> None:
    cohort = cohort_of(["A", "B", "C", "D"])
    rows = {"slide": ["S0", "S1", "S2"], "patient": ["A", "B", "C"]}[key]
    file = tmp_path / "folds.csv"
    file.write_text(f"{key},fold\n" + "".join(f"{row},{f}\n" for row, f in zip(rows, "112", strict=True)))
    rule, folds = make_folds(cohort, cohort.names, str(file))
    assert rule == "file folds.csv"
    assert [(f.name, f.split.test, f.split.train) for f in folds] == [
        ("1", ("S0", "S1"), ("S2", "S3")),
        ("2", ("S2",), ("S0", "S1", "S3")),  # a slide that the file does not name always trains
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient:1", "from 2 to 3"),
        ("patient:9", "from 2 to 3"),
        ("patient:x", "from 2 to 3"),
        ("center", "give patient, patient:K, slide or a CSV"),
    ],
)
def test_requests_that_cannot_be_met_are_one_sentence(text: str, message: str) -> None:
    cohort = cohort_of(["A", "B", "C"])
    with pytest.raises(SplitError, match=message):
        make_folds(cohort, cohort.names, text)


def test_cohorts_that_cannot_be_cross_validated_are_one_sentence() -> None:
    one = cohort_of(["A", "A"])
    with pytest.raises(SplitError, match="two or more patients"):
        make_folds(one, one.names, "patient")
    unknown = cohort_of(["A", None, "B"])
    with pytest.raises(SplitError, match="names none for S1"):
        make_folds(unknown, unknown.names, "patient")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("slide,group\nS0,1\n", "needs the columns"),
        ("slide,fold\nS0,1\nS0,2\n", "needs one row"),
        ("slide,fold\nS0,1\nS1,\n", "a fold in it"),
        ("slide,fold\nS0,1\nQ7,2\n", "has no slide Q7"),
        ("slide,fold\nS0,1\n", "not two folds"),
        ("", "is no CSV file"),
    ],
)
def test_bad_files_of_folds_are_one_sentence(content: str, message: str, tmp_path: Path) -> None:
    cohort = cohort_of(["A", "B", "C"])
    file = tmp_path / "folds.csv"
    file.write_text(content)
    with pytest.raises(SplitError, match=message):
        make_folds(cohort, cohort.names, str(file))
