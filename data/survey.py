"""A first look at every slide of a cohort: does it have spots, what is its scale, what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.pitch import MppEstimate, mpp_from_pitch
from mmap_st.data.readers import read_spots
from mmap_st.errors import SlideError


@dataclass(frozen=True)
class SlideSurvey:
    """What a slide's files say, counts and pixels unread.

    Attributes
    ----------
    row
        The cohort's row.
    spots
        Number of spots; None where the row has no spot table.
    unmatched
        Positions without counts plus counts without a position.
    mpp
        Micrometres per pixel from the distance between spots.
    problem
        Why the slide cannot be used.
    """

    row: CohortSlide
    spots: int | None = None
    unmatched: int = 0
    mpp: MppEstimate | None = None
    problem: str | None = None


def survey(cohort: Cohort) -> Iterator[SlideSurvey]:
    """Look at the slides one by one."""
    for row in cohort.slides:
        if row.image is not None and not row.image.exists():
            yield SlideSurvey(row, problem=f"the image {row.image} does not exist; correct the path.")
            continue
        if row.spots is None:
            yield SlideSurvey(row)
            continue
        try:
            spots = read_spots(row)
        except SlideError as error:
            yield SlideSurvey(row, problem=str(error))
            continue
        unmatched = spots.positions_without_counts + spots.counts_without_position
        yield SlideSurvey(row, len(spots), unmatched, mpp_from_pitch(spots))
