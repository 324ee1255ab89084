"""What a user asks an import to do, and which file is of which slide."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmap_st.data import Cohort, some
from mmap_st.data.readers import without_suffix
from mmap_st.errors import FeaturesError, RequestError
from mmap_st.extract.imports.files import FEATURE_SUFFIXES
from mmap_st.extract.imports.matching import CENTRE, CORNER, CoordinateOptions
from mmap_st.extract.store import FeatureStore, check_encoder_name, encode_name


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
        raise RequestError("Give --source-mpp only without --cohort; a cohort says it in its column mpp.")
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
