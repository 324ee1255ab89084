import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.splits import inner_folds, resolve_split, spatial_blocks
from mmap_st.errors import SplitError

COHORT = Cohort(
    tuple(CohortSlide(name, patient=name[0]) for name in ("A1", "A2", "B1", "B2", "C1")), "the cohort"
)


def test_by_default_all_that_is_not_held_out_trains() -> None:
    split = resolve_split(COHORT, test="patient=B")
    assert split.train == ("A1", "A2", "C1")
    assert split.test == ("B1", "B2")
    assert split.shared_patients == ()


def test_naming_slides_may_share_a_patient_and_says_so() -> None:
    assert resolve_split(COHORT, test="slide=A1").shared_patients == ("A",)


def test_a_file_names_slides(tmp_path) -> None:
    file = tmp_path / "test.txt"
    file.write_text("C1\n\nB1\n")
    assert resolve_split(COHORT, test=str(file), train="slide=A1").test == ("B1", "C1")


@pytest.mark.parametrize(
    ("roles", "part"),
    [
        ({"train": "slide=A1,B1", "test": "patient=B"}, "--train and --test both name B1"),
        ({"train": "slide=A1", "test": "slide=A1"}, "both name A1"),
        ({"validation": "slide=B1", "test": "patient=B"}, "--val and --test both name B1"),
        ({"train": "patient=A", "test": "slide=A2"}, "both name A2"),
        ({"test": "patient=A,B,C"}, "no slide is left"),
        ({"test": "patient=Q"}, "no patient Q"),
        ({"test": "slide=A11"}, "did you mean A1"),
        ({"test": "slide="}, "names no slide"),
        ({"test": "nonsense"}, "names no slides"),
    ],
)
def test_splits_that_cannot_be(roles: dict[str, str], part: str) -> None:
    with pytest.raises(SplitError, match=part):
        resolve_split(COHORT, **roles)


def test_a_split_by_patient_never_shares_one() -> None:
    with pytest.raises(SplitError, match="patients A would be in training and in test"):
        resolve_split(COHORT, validation="slide=A1", test="slide=A2", train="patient=B")


@given(st.lists(st.sampled_from("ABCDEFGH"), min_size=2, max_size=20))
def test_inner_folds_part_the_slides_and_never_a_patient(patients: list[str]) -> None:
    names = [f"{p}{i}" for i, p in enumerate(patients)]
    rule, folds = inner_folds(names, patients)
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    assert 2 <= len(folds) <= 5
    if len(set(patients)) >= 3:
        assert rule == "inner folds by patient"
        held = [{name[0] for name in fold} for fold in folds]
        assert sum(map(len, held)) == len(set(patients))
    else:
        assert rule == "inner folds by slide"


def test_unknown_patients_fall_back_to_slides_and_one_slide_to_blocks() -> None:
    assert inner_folds(["a", "b", "c"], ["P", None, "Q"])[0] == "inner folds by slide"
    assert inner_folds(["a"], ["P"]) == ("spatial blocks of the one slide", [])


def test_blocks_are_strips_across_the_longer_side() -> None:
    xy = np.array([[x, 0.1 * x % 2] for x in range(30)], dtype=float)
    blocks = spatial_blocks(xy)
    assert np.bincount(blocks).tolist() == [10, 10, 10]
    assert (np.diff(blocks) >= 0).all()
