"""What a user asks an import to do: its slides, their spots, and which file belongs to which slide."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from mmap_st.data import Cohort, CohortSlide, Spots, some
from mmap_st.data.readers import read_spot_table, read_spots, without_suffix
from mmap_st.errors import FeaturesError, RequestError, ResolutionError, SpotsError
from mmap_st.extract.imports.files import FEATURE_SUFFIXES
from mmap_st.extract.imports.matching import CENTRE, CORNER, CoordinateOptions
from mmap_st.extract.slides import SourceMpp, choose_mpp, known_mpps, local_image, open_slide
from mmap_st.extract.store import FeatureStore, SlideInfo, check_encoder_name, check_spots, encode_name
from mmap_st.urls import Url

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
    if row.image is not None and (isinstance(row.image, Url) or row.image.exists()):
        with local_image(row.image) as path, closing(open_slide(path)) as slide:
            size, metadata = slide.size, slide.mpp
    known = tuple(one for one in known_mpps(row, metadata, spots) if one.plausible or one.key == row.mpp_from)
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


@dataclass(frozen=True)
class ImportRequest:
    """What to import.

    Attributes
    ----------
    encoder, mpp
        What made the embeddings, and at which micrometres per pixel its windows were.
    features
        A file, or a folder of files ``SLIDE.npy`` or ``SLIDE.h5``.
    slide
        The one slide to import; None: every slide that has a file in the folder.
    cohort, spots, source_mpp
        Where spots are from, see `SpotSource`.
    coordinates
        How coordinates are matched.
    chunk
        Rows of a chunk of the store.
    overwrite
        Replace what another recipe made.
    """

    encoder: str
    mpp: float
    features: Path
    slide: str | None = None
    cohort: Cohort | None = None
    spots: Path | None = None
    source_mpp: float | None = None
    coordinates: CoordinateOptions = field(default_factory=CoordinateOptions)
    chunk: int = 1024
    overwrite: bool = False


def check_request(request: ImportRequest) -> None:
    """Refuse options that contradict each other.

    Raises
    ------
    RequestError
        Naming them.
    """
    options = request.coordinates
    check_encoder_name(request.encoder)
    if request.cohort is not None and request.spots is not None:
        raise RequestError("Give --cohort or --spots, not both; each says where the spots are.")
    if request.cohort is not None and request.source_mpp is not None:
        raise RequestError(
            "--source-mpp cannot be combined with --cohort; use the cohort's mpp column instead."
        )
    if options.tolerance_um is not None and options.tolerance_px is not None:
        raise RequestError("Give --tolerance-um or --tolerance-px, not both.")
    if options.coords not in (CORNER, CENTRE):
        raise RequestError(f"--coords {options.coords}: give {CORNER} or {CENTRE}.")
    if request.slide is None and request.spots is not None:
        raise RequestError("--spots holds the spots of one slide: name it with --slide.")


@dataclass(frozen=True)
class ImportJob:
    """A slide, and the file or (a fault) files of its name."""

    slide: str
    files: tuple[Path, ...]

    def path(self) -> Path:
        """The one file.

        Raises
        ------
        FeaturesError
            If there are several.
        """
        if len(self.files) > 1:
            names = some([path.name for path in self.files])
            raise FeaturesError(f"there are several files of its name ({names}); keep one.")
        return self.files[0]


@dataclass
class FoundJobs:
    """What is to be imported; slides that have no file; files that are named like no slide."""

    jobs: list[ImportJob]
    without_file: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def find_jobs(
    features: Path, slide: str | None, cohort: Cohort | None, store: FeatureStore | None
) -> FoundJobs:
    """Give every slide its file: the file itself for the slide that is named, or a folder's by their names.

    A file is named like its slide, or like the slide's folder in a store.

    Raises
    ------
    RequestError
        If there is no such file, no slide is named for it, or a folder has none for any slide.
    """
    if not features.exists():
        raise RequestError(f"--features {features} does not exist; correct the path.")
    if slide is not None and cohort is not None:
        cohort[slide]  # a slide that the cohort does not have ends the request here
    if not features.is_dir():
        if slide is None:
            raise RequestError(f"--features {features} is the file of one slide: name it with --slide.")
        return FoundJobs([ImportJob(slide, (features,))])
    by_name: dict[str, list[Path]] = {}
    for path in sorted(features.iterdir()):
        name = without_suffix(path, FEATURE_SUFFIXES)
        if name is not None:
            by_name.setdefault(name, []).append(path)
    slides = [slide] if slide is not None else _known(features, cohort, store)
    jobs = []
    for name in slides:
        files = [path for key in dict.fromkeys((name, encode_name(name))) for path in by_name.pop(key, [])]
        if files:
            jobs.append(ImportJob(name, tuple(files)))
    if not jobs:
        raise RequestError(
            f"{features} has no file for {some(slides)}; name each after its slide, such as {slides[0]}.npy"
            f" or {slides[0]}.h5."
        )
    with_file = {job.slide for job in jobs}
    unknown = [] if slide is not None else [path.name for paths in by_name.values() for path in paths]
    return FoundJobs(jobs, [name for name in slides if name not in with_file], unknown)


def _known(features: Path, cohort: Cohort | None, store: FeatureStore | None) -> list[str]:
    names = list(cohort.names) if cohort is not None else list(store.slides) if store is not None else []
    if not names:
        raise RequestError(
            f"--features {features} is a folder: give --cohort, which says which slides there are and where"
            " their spots are."
        )
    return names
