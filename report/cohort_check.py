"""`mmap cohort check`: what each slide of a cohort is, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

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
from mmap_st.errors import SlideError, counted, in_sentences, of_one_slide
from mmap_st.extract.engine import check_inside, count_outside
from mmap_st.extract.slides import (
    FEWEST_SPOTS,
    NO_TISSUE,
    Finding,
    Slide,
    SourceMpp,
    Tissue,
    better_orientation,
    better_shift,
    choose_mpp,
    inspect_image,
    known_mpps,
    local_image,
    open_slide,
    unreadable,
)
from mmap_st.extract.windows import MOST_ENLARGED, finest_mpp
from mmap_st.urls import Place

_FEWEST_ON_TISSUE = 0.5
_USUAL_ON_TISSUE = 0.85
_MOST_UNMATCHED = 0.5
#: A shift explains what a mirrored or turned array does too, and is said only where it fits better by this.
_LEAST_GAIN_OF_A_SHIFT = 0.05
#: Of the windows at 20x, the finest that are usual.
_USUAL_MPP = 0.5

_OK, _PROBLEM, _NO_IMAGE, _TOO_COARSE = "ok", "problem", "no image", "too coarse"
_UNMATCHED, _MISPLACED = "unmatched", "misplaced"


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
    states
        What is wrong with it in a word or two each, such as ``grey``; empty where nothing is, or where it is
        one of the many things that have no word.
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
    states: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """All states in one text; ``ok`` where nothing is wrong."""
        return ", ".join(self.states) or (_PROBLEM if self.problems else _OK)


@dataclass
class CohortCheck:
    """All slides, and notes on the cohort as a whole."""

    slides: list[SlideCheck] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def problems(self) -> dict[str, str]:
        """Problems by slide, as one text each."""
        return {one.row.slide: in_sentences(one.problems) for one in self.slides if one.problems}


def check_cohort(cohort: Cohort, *, full: bool = False) -> Iterator[SlideCheck]:
    """Check the slides one by one; all tables are read, and of each image what `inspect_image` looks at."""
    for row in cohort.slides:
        try:
            found = check_slide(row, full=full)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            found = SlideCheck(row, technology="", problems=(str(of_one_slide(error)),))
        yield found


def check_slide(row: CohortSlide, *, full: bool = False) -> SlideCheck:
    """Check one slide; with `full`, every tile of its image is decoded."""
    look = survey_slide(row, counts=True)
    findings, notes = [Finding("", text) for text in look.problems], _notes(row, look)
    with ExitStack() as resources:
        return _checked(row, look, findings, notes, resources, full=full)


def _checked(
    row: CohortSlide,
    look: SlideSurvey,
    findings: list[Finding],
    notes: list[Finding],
    resources: ExitStack,
    *,
    full: bool,
) -> SlideCheck:
    """What was found about a slide, with what its tables say; its image is open while `resources` are."""
    image = _Image()
    slide = path = None
    if row.image is None and row.spots is None and row.counts is None:
        what = "the cohort names neither an image nor tables for it; fill in its row or remove it."
        findings.append(Finding(_NO_IMAGE, what))
    elif row.image is None:
        notes.append(Finding(_NO_IMAGE, ""))
    elif _is_missing(row.image, look):
        findings = [replace(one, state=_NO_IMAGE if str(row.image) in one.reason else "") for one in findings]
    else:
        try:
            path = resources.enter_context(local_image(row.image))
            slide = resources.enter_context(closing(open_slide(path)))
        except SlideError as error:
            findings.append(Finding(_NO_IMAGE, str(error)) if path is None else unreadable(path, error))
    mpp = doubted = None
    try:
        known = known_mpps(row, slide.mpp if slide else None, look.spots)
        if known or slide is not None:
            doubtful = [one for one in known if not one.plausible and one.key != row.mpp_from]
            if len(doubtful) == len(known):  # shown, not used
                doubted = next((SourceMpp(one.mpp, f"{one.source}, implausible") for one in doubtful), None)
            mpp = choose_mpp(known, row.mpp_from)
            notes += [Finding("", one.doubt) for one in doubtful]
    except SlideError as error:
        findings.append(Finding("", str(error)))
    if slide is not None and path is not None:
        image = _look_at(slide, path, look.spots, None if mpp is None else mpp.mpp, full=full)
    if mpp is not None and row.image is not None and mpp.mpp > _USUAL_MPP * MOST_ENLARGED:
        notes.append(_coarse(mpp.mpp))
    findings += (replace(one, reason=one.reason.replace(str(path), str(row.image))) for one in image.findings)
    notes += image.notes
    found = dict.fromkeys(one.state for one in (*findings, *notes) if one.state)
    return SlideCheck(
        row=row,
        technology=_technology(row, look),
        size_px=image.size_px,
        mpp=mpp or doubted,
        spots=None if look.spots is None else len(look.spots),
        unmatched=look.unmatched,
        outside=image.outside,
        genes=None if look.counts is None else look.counts.genes,
        merged_genes=0 if look.counts is None else look.counts.merged_genes,
        on_tissue=image.on_tissue,
        problems=tuple(one.reason for one in findings),
        notes=tuple(one.reason for one in notes if one.reason),
        states=tuple(found),
    )


def _is_missing(image: Place, look: SlideSurvey) -> bool:
    """Whether an image is not there, which the survey says."""
    if isinstance(image, Path):
        return not os.path.exists(image)
    return any(str(image) in problem for problem in look.problems)


@dataclass(frozen=True)
class _Image:
    """What was found about a slide's image, and its spots on it."""

    size_px: tuple[int, int] | None = None
    outside: int = 0
    on_tissue: float | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()


def _look_at(slide: Slide, path: Path, spots: Spots | None, mpp: float | None, *, full: bool) -> _Image:
    seen = inspect_image(slide, path, mpp, full=full)
    notes = [Finding("", text) for text in slide.notes]
    if spots is None:
        return _Image(slide.size, findings=seen.findings, notes=tuple(notes))
    # Spots say where its tissue is, and are embedded without; a grid would not be.
    bare = any(one.state == NO_TISSUE for one in seen.findings)
    if bare:
        notes.append(Finding(NO_TISSUE, "no tissue found on its image; look at --pictures"))
    findings = [one for one in seen.findings if one.state != NO_TISSUE]
    try:
        check_inside(spots, slide.size)
    except SlideError as error:
        findings.append(Finding(_MISPLACED, str(error)))
    outside = count_outside(spots, slide.size)
    if seen.tissue is None:
        return _Image(slide.size, outside, None, tuple(findings), tuple(notes))
    share, misplaced, off = _placement(seen.tissue, spots, slide.size)
    return _Image(slide.size, outside, share, (*findings, *misplaced), (*notes, *off))


def _notes(row: CohortSlide, look: SlideSurvey) -> list[Finding]:
    """What the tables say that is no reason to leave the slide out."""
    texts = list(look.notes)
    if look.counts is not None and look.counts.values != "counts":
        texts.append(f"values are {look.counts.values}, not counts: targets are the values unchanged")
    if row.patient is None and look.counts is not None:
        texts.append("no patient: give --patient SLIDE=PATIENT, or fill in the column; splits are by patient")
    return [*(Finding("", text) for text in texts), *_unmatched(look.spots)]


def _unmatched(spots: Spots | None) -> Iterator[Finding]:
    """Said where half of either table has no partner in the other: they may be of two slides."""
    if spots is None:
        return
    sides = (
        (spots.counts_without_position, "rows of its counts have no position"),
        (spots.positions_without_counts, "of its positions have no counts"),
    )
    for alone, what in sides:
        whole = len(spots) + alone
        if alone >= _MOST_UNMATCHED * whole:
            yield Finding(
                _UNMATCHED,
                f"{alone} of {whole} {what}, and are left out; check that the two tables belong together",
            )


def _coarse(mpp: float) -> Finding:
    return Finding(
        _TOO_COARSE,
        f"at {mpp:.4g} um/px its image is too coarse for the usual windows (20x is {_USUAL_MPP:g} um/px):"
        f" name the full-resolution image, or take windows of at least {finest_mpp(mpp):g} um/px",
    )


def summarise_genes(slides: list[SlideCheck]) -> list[str]:
    """How many genes the slides have in common, and whether they are named in the same way."""
    tables = [one.genes for one in slides if one.genes]
    if len(tables) < 2:
        return []
    named = {gene_naming(genes) for genes in tables}
    shared, union = len(shared_genes(tables)), len(union_of_genes(tables))
    common = counted(shared, "gene is", "genes are")
    notes = [f"{common} on all {len(tables)} slides with counts, {union} on any"]
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


def _placement(
    tissue: Tissue, spots: Spots, size_px: tuple[int, int]
) -> tuple[float, tuple[Finding, ...], tuple[Finding, ...]]:
    """Fraction of spots on tissue, likely problems with their positions, and notes on them."""
    own, turned = better_orientation(tissue, spots.xy, size_px)
    share = own.on_tissue
    if len(spots) < FEWEST_SPOTS:
        return share, (), ()
    shifted = better_shift(tissue, spots.xy)
    if turned is not None and (shifted is None or shifted.fit < turned.fit + _LEAST_GAIN_OF_A_SHIFT):
        better, why = turned, "the positions likely have another orientation or resolution than the image;"
    elif shifted is not None:
        better, why = (
            shifted,
            "the positions likely have another origin than the image, which may be a crop;",
        )
    elif share < _FEWEST_ON_TISSUE:
        sentence = (
            f"only {share:.0%} of its spots lie on tissue: positions and image likely do not belong together;"
            " look at --pictures."
        )
        return share, (Finding(_MISPLACED, sentence),), ()
    elif share < _USUAL_ON_TISSUE:
        note = f"only {share:.0%} of its spots lie on tissue; look at --pictures"
        return share, (), (Finding("", note),)
    else:
        return share, (), ()
    sentence = (
        f"{share:.0%} of its spots lie on tissue as they are, {better.on_tissue:.0%} if {better.name}: {why}"
        " correct them."
    )
    return share, (Finding(_MISPLACED, sentence),), ()
