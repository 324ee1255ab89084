"""The table of readers, and reading a slide by the reader that its cohort row names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmap_st.data.cohort import Cohort, CohortSlide, read_cohort
from mmap_st.data.counts import Counts
from mmap_st.data.readers import her2st
from mmap_st.data.spots import Spots
from mmap_st.errors import CohortError, CountsError, SpotsError, did_you_mean


@dataclass(frozen=True)
class Reader:
    """How one public layout is read.

    Attributes
    ----------
    name
        The word before the colon in ``reader:path`` and in the cohort's column `reader`.
    find
        Lists the slides below a folder.
    spots
        Reads a slide's spots, in the order of its count table.
    counts
        Reads a slide's counts, all rows and genes.
    """

    name: str
    find: Callable[[Path], tuple[CohortSlide, ...]]
    spots: Callable[[CohortSlide], Spots]
    counts: Callable[[CohortSlide], Counts]


READERS = {
    "her2st": Reader("her2st", her2st.find_slides, her2st.read_spots, her2st.read_counts),
}


def open_cohort(text: str) -> Cohort:
    """Open what a user names as COHORT: a cohort file, or ``reader:path``.

    Raises
    ------
    CohortError
        If there is no such file, reader or folder, or it holds no slides.
    """
    name, colon, path = text.partition(":")
    if colon and name in READERS:
        folder = Path(path)
        if not folder.is_dir():
            raise CohortError(f"{folder} is not a folder; {name}: needs the folder that holds the data.")
        return Cohort(READERS[name].find(folder), text)
    if colon and not Path(text).exists():
        raise CohortError(
            f"There is no reader {name!r}{did_you_mean(name, READERS)}; the readers are {', '.join(READERS)}."
        )
    return read_cohort(Path(text))


def read_spots(slide: CohortSlide) -> Spots:
    """Read the spots of a cohort row.

    Raises
    ------
    SpotsError
        If the row names no spots or they cannot be read.
    """
    if slide.spots is None:
        raise SpotsError("the cohort names no spot table for it.")
    _check_exists(slide.spots, SpotsError)
    if slide.counts is not None:
        _check_exists(slide.counts, CountsError)
    return _reader_of(slide).spots(slide)


def read_counts(slide: CohortSlide) -> Counts:
    """Read the counts of a cohort row.

    Raises
    ------
    CountsError
        If the row names no counts or they are no counts.
    """
    if slide.counts is None:
        raise CountsError("the cohort names no count table for it.")
    _check_exists(slide.counts, CountsError)
    return _reader_of(slide).counts(slide)


def _check_exists(path: Path, error: type[CountsError] | type[SpotsError]) -> None:
    if not path.exists():
        raise error(f"{path} does not exist; correct the path in the cohort.")


def _reader_of(slide: CohortSlide) -> Reader:
    if slide.reader is None:
        raise SpotsError(f"the cohort names no reader for it; the readers are {', '.join(READERS)}.")
    if slide.reader not in READERS:
        raise SpotsError(
            f"there is no reader {slide.reader!r}{did_you_mean(slide.reader, READERS)};"
            f" the readers are {', '.join(READERS)}."
        )
    return READERS[slide.reader]
