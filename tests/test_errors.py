"""What errors say of numbers."""

from __future__ import annotations

import pytest

from mmap_st.errors import SlidesFailedError, agreeing, counted, none_of


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("slide",), "0 slides"),
        (1, ("slide",), "1 slide"),
        (2, ("slide",), "2 slides"),
        (11, ("slide",), "11 slides"),
        (21, ("slide",), "21 slides"),
        (1, ("axis", "axes"), "1 axis"),
        (3, ("axis", "axes"), "3 axes"),
        (1, ("column was", "columns were"), "1 column was"),
        (0, ("column was", "columns were"), "0 columns were"),
    ],
)
def test_a_count_and_its_words_agree(count: int, words: tuple[str, ...], said: str) -> None:
    assert counted(count, *words) == said
    assert agreeing(count, *words) == said.split(" ", 1)[1]


def test_none_of_several_and_of_one() -> None:
    assert none_of(1, "slide") == "no slide"
    assert none_of(3, "slide") == "none of the 3 slides"


@pytest.mark.parametrize(
    ("failed", "said"),
    [
        ({"A": "why."}, "slide A: why."),
        ({"A": "why.", "B": "b"}, "slide A: why (and 1 more slide failed)."),
        ({"A": "why.", "B": "b", "C": "c"}, "slide A: why (and 2 more slides failed)."),
    ],
)
def test_other_failed_slides_are_counted(failed: dict[str, str], said: str) -> None:
    assert str(SlidesFailedError(failed)) == f"no slide could be done; {said}"
