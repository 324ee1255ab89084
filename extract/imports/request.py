"""What a user asks an import to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmap_st.data.cohort import Cohort
from mmap_st.errors import RequestError
from mmap_st.extract.imports.coordinates import CENTRE, CORNER, CoordinateOptions


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
    if request.encoder in ("", "spots"):  # a slide's spots lie under that name
        raise RequestError(f"--encoder {request.encoder!r} cannot be used; give the name of what made them.")
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
