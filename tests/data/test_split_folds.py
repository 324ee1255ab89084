import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.splits import balanced_folds, make_folds
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


def folds_by_search(cohort: Cohort, names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[tuple]:
    """As folds were made at first, in time cubic in slides: (name, train, test, shared patients)."""
    found = []
    for name, test in groups.items():
        train = tuple(slide for slide in names if slide not in test)
        known = [cohort[slide].patient for slide in train]
        patients = dict.fromkeys(cohort[slide].patient for slide in test)
        if train:
            shared = tuple(p for p in patients if p is not None and p in known)
            found.append((name, train, tuple(test), shared))
    return found


def balanced_by_search(groups: Mapping[str, Sequence[str]], number: int) -> list[tuple[str, ...]]:
    folds: list[list[str]] = [[] for _ in range(number)]
    for members in sorted(groups.values(), key=len, reverse=True):
        min(folds, key=len).extend(members)
    return [tuple(fold) for fold in folds]


@given(
    st.data(), st.sampled_from(["patient", "patient:2", "patient:3", "slide", "slide file", "patient file"])
)
def test_folds_are_those_of_a_plain_search(tmp_path_factory, data: st.DataObject, text: str) -> None:
    whose = st.sampled_from(["A", "B", "C", "D", *([None] if text.startswith("slide") else [])])
    cohort = cohort_of(data.draw(st.lists(whose, min_size=2, max_size=14)))
    names = [n for n in cohort.names if data.draw(st.booleans(), label=f"{n} can be used")]
    groups: dict[str, list[str]] = {}
    if text.endswith("file"):
        key = text.split()[0]
        values = cohort.names if key == "slide" else sorted({s.patient for s in cohort.slides})
        fold_of = {v: data.draw(st.sampled_from("xyz")) for v in values if data.draw(st.booleans())}
        file = tmp_path_factory.mktemp("folds") / "folds.csv"
        file.write_text("\n".join([f"{key},fold", *(f"{v},{fold}" for v, fold in fold_of.items())]) + "\n")
        groups = {fold: [] for fold in fold_of.values()}
        for name in names:
            value = name if key == "slide" else cohort[name].patient
            if value in fold_of:
                groups[fold_of[value]].append(name)
        groups = {fold: slides for fold, slides in groups.items() if slides}
        text = str(file)
    else:
        for name in names:
            groups.setdefault(name if text == "slide" else str(cohort[name].patient), []).append(name)
        if ":" in text:
            number = int(text.partition(":")[2])
            if number > len(groups):
                return
            balanced = balanced_by_search(groups, number)
            assert balanced_folds(groups, number) == balanced
            groups = {str(i): fold for i, fold in enumerate(balanced, start=1)}
    expected = folds_by_search(cohort, names, groups)
    if len(expected) < 2:
        with pytest.raises(SplitError):
            make_folds(cohort, names, text)
        return
    found = [
        (f.name, f.split.train, f.split.test, f.split.shared_patients)
        for f in make_folds(cohort, names, text)[1]
    ]
    assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        'slide,fold\n"A,1\nB,2\n',
        'slide,fold\nA,1\n"B\n',
        'slide,fold\nA,"1"2\n',
        'slide,fold\nA"x,1\n',
        "slide,fold\nA,1,2\nB,2\n",
        "slide\nA\n",
        "",
        "slide,fold\nA,1\nA,2\n",
        "slide,fold\nA,\n",
        "slide,fold\n\x00\x01\x02",
    ],
)
def test_a_file_of_folds_that_is_damaged_is_one_sentence_of_our_own(tmp_path: Path, text: str) -> None:
    (tmp_path / "folds.csv").write_text(text)
    cohort = Cohort(tuple(CohortSlide(name) for name in "AB"), "here")
    with pytest.raises(SplitError, match=r"folds\.csv") as caught:
        make_folds(cohort, cohort.names, str(tmp_path / "folds.csv"))
    said = str(caught.value)
    assert "\n" not in said
    assert "parse" not in said
    assert "malformed" not in said


@pytest.mark.parametrize("text", ["patient", "slide", "patient:600"])
def test_folds_of_a_thousand_slides_are_made_at_once(text: str) -> None:
    cohort = cohort_of([f"P{i // 2}" for i in range(1229)])
    began = time.process_time()
    make_folds(cohort, cohort.names, text)
    assert time.process_time() - began < 4  # by a plain search: half a minute and more


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
        ("", "is empty; copy it again"),
    ],
)
def test_bad_files_of_folds_are_one_sentence(content: str, message: str, tmp_path: Path) -> None:
    cohort = cohort_of(["A", "B", "C"])
    file = tmp_path / "folds.csv"
    file.write_text(content)
    with pytest.raises(SplitError, match=message):
        make_folds(cohort, cohort.names, str(file))
