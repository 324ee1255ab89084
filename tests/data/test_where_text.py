import pytest

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.splits import resolve_split, slides_where, where_text
from mmap_st.errors import SplitError

COHORT = Cohort(
    (
        CohortSlide("A1", patient="A"),
        CohortSlide("B 1", patient="Breast, stage II: P1"),
        CohortSlide('B"2', patient="Breast, stage II: P1"),
    ),
    "the cohort",
)


@pytest.mark.parametrize(
    ("where", "text", "slides"),
    [
        ({"slide": ["B 1", "A1"]}, "slide=B 1,A1", ("A1", "B 1")),
        ({"slide": "A1"}, "slide=A1", ("A1",)),
        ({"slide": ('B"2',)}, 'slide="B""2"', ('B"2',)),
        ({"patient": "A"}, "patient=A", ("A1",)),
        ({"patient": "Breast, stage II: P1"}, 'patient="Breast, stage II: P1"', ("B 1", 'B"2')),
        ("slide=A1", "slide=A1", ("A1",)),
        ("slide= A1, B 1,", "slide= A1, B 1,", ("A1", "B 1")),
        ('slide=B"2', 'slide=B"2', ('B"2',)),
    ],
)
def test_mappings_and_texts_name_the_same_slides(where, text: str, slides: tuple[str, ...]) -> None:
    assert where_text(where) == text
    assert slides_where(COHORT, where_text(where)) == slides


@pytest.mark.parametrize(
    ("where", "part"),
    [
        ({"slides": ["A1"]}, "names no slides; give {'patient'"),
        ({"slide": "A1", "patient": "A"}, "names no slides; give"),
        ({}, "names no slides; give"),
        ({"slide": []}, "names no slide"),
        ({"slide": ["A11"]}, "did you mean A1"),
        ({"patient": "Q"}, "no patient Q"),
        ("nonsense", "names no slides"),
    ],
)
def test_what_names_no_slides_is_one_sentence(where, part: str) -> None:
    with pytest.raises(SplitError, match=part):
        resolve_split(COHORT, test=where_text(where))
