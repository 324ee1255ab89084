"""A first look at the tables of every slide of a cohort: spots, genes, scale, and what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmap_st.data.arrays import MppEstimate, mpp_from_pitch
from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.counts import Counts
from mmap_st.data.readers import read_counts, read_spots
from mmap_st.data.spots import Spots
from mmap_st.errors import NotCountsError, RemoteError, SlideError, of_one_slide
from mmap_st.fetching import look_at
from mmap_st.urls import Url


@dataclass(frozen=True)
class SlideSurvey:
    """What a slide's tables say; its image is not read.

    Attributes
    ----------
    row
        The cohort's row.
    spots
        None where the row has no spot table or it cannot be read.
    counts
        None where they were not requested, do not exist or cannot be read.
    mpp
        Micrometres per pixel from the distance between spots.
    problems
        Why the slide cannot be used.
    not_counts
        That of them which says that its values are no counts; "" where they are.
    """

    row: CohortSlide
    spots: Spots | None = None
    counts: Counts | None = None
    mpp: MppEstimate | None = None
    problems: tuple[str, ...] = field(default=())
    not_counts: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how its tables were read."""
        return (*(self.spots.notes if self.spots else ()), *(self.counts.notes if self.counts else ()))

    @property
    def unmatched(self) -> int:
        """Positions without counts plus counts without a position."""
        return self.spots.positions_without_counts + self.spots.counts_without_position if self.spots else 0


def survey_cohort(cohort: Cohort, *, counts: bool = False) -> Iterator[SlideSurvey]:
    """Survey the slides one by one; with `counts`, read the values of their count tables too."""
    for row in cohort.slides:
        try:
            look = survey_slide(row, counts=counts)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            look = SlideSurvey(row, problems=(str(of_one_slide(error)),))
        yield look


def survey_slide(row: CohortSlide, *, counts: bool = False) -> SlideSurvey:
    """Survey one slide."""
    problems = []
    if isinstance(row.image, Path) and not os.path.exists(row.image):
        problems.append(f"the image {row.image} does not exist; correct the path.")
    elif isinstance(row.image, Url):
        try:
            look_at(row.image)
        except RemoteError as error:
            problems.append(f"the image {error}")
    spots, table, not_counts = None, None, ""
    if row.spots is not None:
        try:
            spots = read_spots(row)
        except SlideError as error:
            problems.append(str(error))
    if counts and row.counts is not None:
        try:
            table = read_counts(row)
        except SlideError as error:
            not_counts = str(error) if isinstance(error, NotCountsError) else ""
            if str(error) not in problems:
                problems.append(str(error))
    mpp = mpp_from_pitch(spots) if spots else None
    return SlideSurvey(row, spots, table, mpp, tuple(problems), not_counts)
