"""`mmap cohort check`: what each slide of a cohort is, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmap_st.data import (
    Cohort,
    CohortSlide,
    SlideSurvey,
    Spots,
    gene_naming,
    shared_genes,
    survey_slide,
    union_of_genes,
)
from mmap_st.errors import SlideError, TissueError
from mmap_st.extract.engine import check_inside, count_outside
from mmap_st.extract.slides import (
    Slide,
    SourceMpp,
    Tissue,
    better_orientation,
    choose_mpp,
    find_tissue,
    known_mpps,
    open_slide,
)

_FEWEST_SPOTS = 20  # fewer are no evidence of an orientation
_FEWEST_ON_TISSUE = 0.5


@dataclass(frozen=True)
class SlideCheck:
    """What was found about one slide.

    Attributes
    ----------
    row
        The cohort's row.
    technology
        The assay, such as ``Visium``; "image alone" without spots.
    size_px
        Width and height of the image; None without one.
    mpp
        Micrometres per pixel and where they are from.
    spots, unmatched, outside
        Numbers of spots; of rows of either table that the other does not have; of spots outside the image.
    genes
        Names of its genes; None without counts.
    merged_genes
        Number of columns that were added to another of the same name.
    on_tissue
        Fraction of the spots on tissue; None without an image or tissue.
    problems
        Why the slide cannot be used, or what is likely wrong with it.
    notes
        What else the user should know.
    """

    row: CohortSlide
    technology: str
    size_px: tuple[int, int] | None = None
    mpp: SourceMpp | None = None
    spots: int | None = None
    unmatched: int = 0
    outside: int = 0
    genes: tuple[str, ...] | None = None
    merged_genes: int = 0
    on_tissue: float | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class CohortCheck:
    """All slides, and notes on the cohort as a whole."""

    slides: list[SlideCheck] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def problems(self) -> dict[str, str]:
        """Problems by slide, as one text each."""
        return {one.row.slide: " ".join(one.problems) for one in self.slides if one.problems}


def check_cohort(cohort: Cohort) -> Iterator[SlideCheck]:
    """Check the slides one by one; all tables are read, and a thumbnail of each image."""
    for row in cohort.slides:
        yield check_slide(row)


def check_slide(row: CohortSlide) -> SlideCheck:
    """Check one slide."""
    look = survey_slide(row, counts=True)
    problems, notes = list(look.problems), list(look.notes)
    if row.image is None and row.spots is None and row.counts is None:
        problems.append("the cohort names neither an image nor tables for it; fill in its row or remove it.")
    size = mpp = on_tissue = doubted = None
    outside = 0
    try:
        slide = open_slide(row.image) if row.image is not None and os.path.exists(row.image) else None
    except SlideError as error:
        problems.append(str(error))
        slide = None
    try:
        known = known_mpps(row, slide.mpp if slide else None, look.spots)
        if known or slide is not None:
            doubtful = [one for one in known if not one.plausible and one.key != row.mpp_from]
            if len(doubtful) == len(known):  # shown, not used
                doubted = next((SourceMpp(one.mpp, f"{one.source}, implausible") for one in doubtful), None)
            mpp = choose_mpp(known, row.mpp_from)
            notes += [one.doubt for one in doubtful]
    except SlideError as error:
        problems.append(str(error))
    if slide is not None:
        try:
            size = slide.size
            if look.spots is not None:
                outside, on_tissue, found = _placement(slide, look.spots, None if mpp is None else mpp.mpp)
                problems += found
        except SlideError as error:
            problems.append(str(error))
        finally:
            slide.close()
    if look.counts is not None and look.counts.values != "counts":
        notes.append(f"values are {look.counts.values}, not counts: targets are the values unchanged")
    if row.patient is None and look.counts is not None:
        notes.append("no patient: fill in the column patient, splits are by patient")
    return SlideCheck(
        row=row,
        technology=_technology(row, look),
        size_px=size,
        mpp=mpp or doubted,
        spots=None if look.spots is None else len(look.spots),
        unmatched=look.unmatched,
        outside=outside,
        genes=None if look.counts is None else look.counts.genes,
        merged_genes=0 if look.counts is None else look.counts.merged_genes,
        on_tissue=on_tissue,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def summarise_genes(slides: list[SlideCheck]) -> list[str]:
    """How many genes the slides have in common, and whether they are named in the same way."""
    tables = [one.genes for one in slides if one.genes]
    if len(tables) < 2:
        return []
    named = {gene_naming(genes) for genes in tables}
    shared, union = len(shared_genes(tables)), len(union_of_genes(tables))
    notes = [f"{shared} genes are on all {len(tables)} slides with counts, {union} on any"]
    if len(named) > 1:
        notes.append(
            "some slides name genes by Ensembl id and some by symbol: they can be combined only where the"
            " files have both"
        )
    return notes


def _technology(row: CohortSlide, look: SlideSurvey) -> str:
    if row.spots is None:
        return "image alone" if row.image is not None else ""
    return (look.spots.technology if look.spots else None) or "unknown"


def _placement(slide: Slide, spots: Spots, mpp: float | None) -> tuple[int, float | None, list[str]]:
    """Number of spots outside the image, fraction of spots on tissue, and likely problems with positions."""
    size = slide.size
    outside = count_outside(spots, size)
    tissue = _tissue_or_none(slide, mpp)
    problems: list[str] = []
    try:
        check_inside(spots, size)
    except SlideError as error:
        problems.append(str(error))
    if tissue is None:
        return outside, None, problems
    own, better = better_orientation(tissue, spots.xy, size)
    if better is not None and len(spots) >= _FEWEST_SPOTS:
        problems.append(
            f"{own.on_tissue:.0%} of its spots lie on tissue as they are, {better.on_tissue:.0%} if"
            f" {better.name}: the positions likely have another orientation or resolution than the image;"
            " correct them."
        )
    elif own.on_tissue < _FEWEST_ON_TISSUE and len(spots) >= _FEWEST_SPOTS:
        problems.append(
            f"only {own.on_tissue:.0%} of its spots lie on tissue: positions and image likely do not belong"
            " together; look at --pictures."
        )
    return outside, own.on_tissue, problems


def _tissue_or_none(slide: Slide, mpp: float | None) -> Tissue | None:
    try:
        return find_tissue(slide, mpp)
    except TissueError:
        return None
