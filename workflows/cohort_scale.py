"""Micrometres per pixel and distances between spots that a user gives where files do not say them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from mmap_st.data import Cohort, CohortSlide, SlideSurvey, mpp_from_pitch, survey_cohort
from mmap_st.errors import CohortError, SlideError, of_one_slide
from mmap_st.extract.slides import KnownMpp, choose_mpp, known_mpps, local_image, open_slide

#: Least and greatest that users can give: micrometres per pixel, and between spots.
MPP_RANGE, _PITCH_RANGE = (0.01, 100.0), (0.1, 10_000.0)
#: Closer values are one value that was rounded.
SAME_MPP = 0.01


@dataclass(frozen=True)
class SurveyedSlide:
    """A slide's survey, its row filled in, and what to say of what was given and not taken.

    Attributes
    ----------
    look
        The survey; `problems` has what `mmap extract` would refuse.
    notes
        What was given and not taken, and why.
    """

    look: SlideSurvey
    notes: tuple[str, ...] = ()


def survey_and_fill(
    cohort: Cohort, *, mpp: float | None = None, pitch_um: float | None = None
) -> Iterator[SurveyedSlide]:
    """Survey the slides one by one, counts included, and fill in what their files do not say.

    Parameters
    ----------
    mpp
        Micrometres per pixel of the images. A slide whose spots or image say it keeps theirs: they are noted
        if they differ by more than 1%, and if the two could not be in one cohort, that is a problem.
    pitch_um
        Distance between neighbouring spots in micrometres, for slides whose reader does not know it.

    Raises
    ------
    CohortError
        If a number is out of range; before the first slide.
    """
    for option, number, (least, most), what in (
        ("--mpp", mpp, MPP_RANGE, "micrometres per pixel"),
        ("--pitch-um", pitch_um, _PITCH_RANGE, "micrometres"),
    ):
        if number is not None and not least <= number <= most:
            raise CohortError(f"{option} {number:g}: give {what} from {least:g} to {most:,g}.")
    return _filled(cohort, mpp, pitch_um)


def _filled(cohort: Cohort, mpp: float | None, pitch_um: float | None) -> Iterator[SurveyedSlide]:
    for look in survey_cohort(cohort, counts=True):
        found = SurveyedSlide(look)
        try:
            if pitch_um is not None:
                found = _with_pitch(found, pitch_um)
            if mpp is not None:
                found = _with_mpp(found, mpp)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            found = _with_problem(found, str(of_one_slide(error)))
        yield found


def _with_pitch(found: SurveyedSlide, pitch_um: float) -> SurveyedSlide:
    look = found.look
    if look.spots is None:
        return found
    known = look.spots.pitch_um
    if known is not None:
        if abs(known / pitch_um - 1) <= SAME_MPP:
            return found
        return replace(
            found,
            notes=(
                *found.notes,
                f"its spots lie {known:g} um apart, as its reader knows; --pitch-um was not taken",
            ),
        )
    spots = replace(look.spots, pitch_um=pitch_um)
    estimate = mpp_from_pitch(spots)
    row = replace(look.row, pitch_um=pitch_um)
    notes = found.notes
    if estimate is None:
        notes = (*notes, "its spots are too few or too uneven to tell its um/px by --pitch-um")
    return SurveyedSlide(replace(look, row=row, spots=spots, mpp=estimate), notes)


def _with_mpp(found: SurveyedSlide, mpp: float) -> SurveyedSlide:
    look = found.look
    known = [one for one in known_mpps(look.row, image_mpp(look.row), look.spots) if one.plausible]
    if not known:
        return replace(found, look=replace(look, row=replace(look.row, mpp=mpp)))
    farthest = max(known, key=lambda one: abs(one.mpp / mpp - 1))
    if abs(farthest.mpp / mpp - 1) <= SAME_MPP:
        return found
    told = f"--mpp {mpp:g} is not its um/px, which are {farthest.shown}"
    if _could_be_one(look.row, known, mpp):
        return replace(found, notes=(*found.notes, f"{told}; that was kept"))
    return _with_problem(
        found, f"{told}: they differ by more than 5%; leave --mpp out for it, or correct it."
    )


def _could_be_one(row: CohortSlide, known: list[KnownMpp], mpp: float) -> bool:
    """Whether `mmap extract` would take a cohort that gives `mpp`."""
    given = known_mpps(replace(row, mpp=mpp), None, None)
    try:
        choose_mpp((*given, *known), row.mpp_from)
    except SlideError:
        return False
    return True


def _with_problem(found: SurveyedSlide, problem: str) -> SurveyedSlide:
    return replace(found, look=replace(found.look, problems=(*found.look.problems, problem)))


def image_mpp(row: CohortSlide) -> float | None:
    """What the image says; nothing where it cannot be read, of which others tell."""
    if row.image is None:
        return None
    try:
        with local_image(row.image) as path, closing(open_slide(path)) as slide:
            return slide.mpp
    except SlideError:
        return None
