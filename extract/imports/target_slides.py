"""The slides that embeddings are imported for: their spots, and what the store will say of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from mmap_st.data import Cohort, CohortSlide, Spots
from mmap_st.data.readers import read_spot_table, read_spots
from mmap_st.errors import ResolutionError, SpotsError
from mmap_st.extract.slides import SourceMpp, choose_mpp, known_mpps, open_slide
from mmap_st.extract.store import FeatureStore, SlideInfo, check_spots

#: As far as two sources of a slide's micrometres per pixel may be apart.
_MOST = 1.05


@dataclass(frozen=True)
class ImportSlide:
    """One slide to import for.

    Attributes
    ----------
    info
        What the store will say of it.
    spots
        Its spots.
    size_px
        Width and height of its image, where one is there to look at.
    """

    info: SlideInfo
    spots: Spots
    size_px: tuple[int, int] | None = None


@dataclass(frozen=True)
class SpotSource:
    """Where the spots of slides are from that the store does not have: a cohort, one table, or nowhere.

    Attributes
    ----------
    cohort
        Has a row for each slide.
    table
        A plain table of one slide's spots.
    source_mpp
        Micrometres per level-0 pixel that the user gives, where there is no cohort to say it.
    """

    cohort: Cohort | None = None
    table: Path | None = None
    source_mpp: float | None = None


def find_slide(name: str, store: FeatureStore | None, source: SpotSource) -> ImportSlide:
    """Look a slide up in the store, and in the cohort or table that the user gives.

    Raises
    ------
    SlideError
        If its spots cannot be had, or differ from those of the store.
    """
    given = _given_slide(name, source)
    if store is None or not store.has_slide(name) or not store.slide(name).has_spots():
        if given is None:
            raise SpotsError(
                "the store does not have it, so that its spots are not known; give --cohort, or --spots with"
                " a table of them."
            )
        return given
    stored = store.slide(name)
    info = SlideInfo(**{field.name: getattr(stored, field.name) for field in fields(SlideInfo)})
    if given is None:
        spots = Spots(stored.spot_ids(), stored.spot_xy())
        given = ImportSlide(_new_info(name, None, _mpp_of_user(source)), spots)
    else:
        check_spots(store, name, given.spots)
    return ImportSlide(_completed(info, given.info), given.spots, info.size_px or given.size_px)


def _given_slide(name: str, source: SpotSource) -> ImportSlide | None:
    if source.table is not None:
        if not source.table.is_file():
            raise SpotsError(f"{source.table} does not exist; correct the path after --spots.")
        return ImportSlide(_new_info(name, None, _mpp_of_user(source)), read_spot_table(source.table))
    return None if source.cohort is None else _cohort_slide(source.cohort[name])


def _mpp_of_user(source: SpotSource) -> SourceMpp | None:
    return None if source.source_mpp is None else SourceMpp(float(f"{source.source_mpp:.6g}"), "given")


def _cohort_slide(row: CohortSlide) -> ImportSlide:
    spots = read_spots(row)
    size = metadata = None
    # The embeddings are made: an image is looked at for its scale and size where it is there, and not missed.
    if row.image is not None and row.image.exists():
        slide = open_slide(row.image)
        try:
            size, metadata = slide.size, slide.mpp
        finally:
            slide.close()
    known = known_mpps(row, metadata, spots)
    mpp = choose_mpp(known, row.mpp_from) if known else None
    return ImportSlide(_new_info(row.slide, row.patient, mpp), spots, size)


def _new_info(name: str, patient: str | None, mpp: SourceMpp | None) -> SlideInfo:
    """Of a slide whose embeddings were not made here: which image they show is not known."""
    return SlideInfo(
        name=name,
        patient=patient,
        image=None,
        size_px=None,
        source_mpp=None if mpp is None else mpp.mpp,
        source_mpp_from=None if mpp is None else mpp.source,
    )


def _completed(stored: SlideInfo, new: SlideInfo) -> SlideInfo:
    """What the store says of a slide, with what it did not know so far.

    Raises
    ------
    ResolutionError
        If the two scales contradict each other.
    """
    scales = (stored.source_mpp, new.source_mpp)
    if None not in scales and not 1 / _MOST <= (new.source_mpp or 0) / (stored.source_mpp or 1) <= _MOST:
        raise ResolutionError(
            f"the store has it at {scales[0]:.4g} um/px ({stored.source_mpp_from}), and now it is"
            f" {scales[1]:.4g} um/px ({new.source_mpp_from}); correct the one that is given now."
        )
    keep = stored.source_mpp is not None
    return replace(
        stored,
        patient=stored.patient or new.patient,
        source_mpp=stored.source_mpp if keep else new.source_mpp,
        source_mpp_from=stored.source_mpp_from if keep else new.source_mpp_from,
    )
