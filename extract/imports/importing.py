"""An import: embeddings of one slide or of many, from files into a store."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import (
    FeaturesError,
    MmapError,
    RecipeMismatchError,
    SlideError,
    SlideRecipeError,
    StoreError,
    counted,
    of_one_slide,
    printable,
)
from mmap_st.extract.engine import stored_magnifications, stored_width, width_sentence
from mmap_st.extract.imports.files import Features, read_features
from mmap_st.extract.imports.jobs import (
    ImportJob,
    ImportRequest,
    ImportSlide,
    SpotSource,
    check_request,
    find_jobs,
    find_slide,
)
from mmap_st.extract.imports.matching import (
    CoordinateOptions,
    Match,
    check_same_slide,
    match_by_id,
    match_by_order,
    match_coordinates,
)
from mmap_st.extract.store import (
    FeatureStore,
    MagnificationWriter,
    Recipe,
    check_slide_names,
    differences,
    encode_name,
    imported_recipe,
    is_imported,
    is_nonempty,
    lost_slides,
    mismatch_sentence,
    refuse_read_only,
    slide_lock,
    undamaged_slide,
    write_slide,
)
from mmap_st.extract.windows import share_in_bounds
from mmap_st.progress import ProgressCallback


def match_rows(slide: ImportSlide, features: Features, options: CoordinateOptions) -> Match:
    """Find the row of each spot: by id if the file has ids, else by coordinate, else by order.

    Raises
    ------
    FeaturesError
        If fewer than half of the spots have one, or they have one of another slide.
    """
    if features.ids is not None:
        match = match_by_id(slide.spots.ids, features.ids, features.path)
        if features.coords is not None:
            check_same_slide(slide.spots.xy, features.coords, match.rows, features.path)
        return match
    if features.coords is not None:
        return match_coordinates(slide.spots.xy, features, options, slide.info.source_mpp)
    return match_by_order(slide.spots, len(features), features.path)


def rows_of_spots(features: Features, match: Match) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(n, d) embeddings in the spots' order, and (n,) which of them can be used."""
    # Beyond float32 a number becomes infinite, and its row is then marked as what it is.
    with np.errstate(over="ignore"):
        embedding = features.embedding[match.rows].astype(np.float32)
    # No encoder gives a row of zeros: it is what other tools write where a window could not be read.
    usable = np.isfinite(embedding).all(axis=1) & embedding.any(axis=1)
    valid = (match.rows >= 0) & usable
    if 2 * int(valid.sum()) < len(valid):
        raise FeaturesError(
            f"only {int(valid.sum())} of {counted(len(valid), 'spot')} would have an embedding:"
            f" {counted(match.matched, 'has', 'have')} a row of {features.path}, and"
            f" {counted(match.matched - int(valid.sum()), 'of these is', 'of these are')} all zero or not"
            " finite; make the file again."
        )
    return embedding, valid


def in_bounds_of(slide: ImportSlide, features: Features, options: CoordinateOptions) -> NDArray[np.float32]:
    """(n,) share of each patch inside the slide; NaN where patch or image size is unknown."""
    patch = options.patch_px or features.patch_px
    if patch is None or slide.size_px is None:
        return np.full(len(slide.spots), np.nan, np.float32)
    boxes = np.concatenate([slide.spots.xy - patch / 2, slide.spots.xy + patch / 2], axis=1)
    return share_in_bounds(boxes, slide.size_px)


_LOG = logging.getLogger(__name__)
_LARGEST_MPP_RATIO = 1.25


@dataclass(frozen=True)
class ImportedSlide:
    """What was imported for one slide.

    Attributes
    ----------
    spots
        How many it has.
    match
        Which of them have a row of the file, and how that was found.
    unusable
        Spots whose row is not finite, or all zero: marked invalid, as those without a row are.
    largest_um
        Largest distance between a spot and its row; None if unknown.
    """

    spots: int
    match: Match
    unusable: int
    largest_um: float | None = None

    @property
    def how(self) -> str:
        """``by nearest coordinate, largest distance 0.7 um``."""
        if self.match.largest_px is None:
            return self.match.how
        um, px = self.largest_um, self.match.largest_px
        return f"{self.match.how}, largest distance " + (f"{px:.1f} px" if um is None else f"{um:.1f} um")


@dataclass
class ImportReport:
    """What an import did.

    Attributes
    ----------
    done
        Slides that were imported.
    unchanged
        Slides that held the same before.
    skipped_slides
        Slides without a file in the folder.
    unknown
        Files of the folder that are named like no slide.
    failed
        Reason of every slide that could not be imported.
    """

    done: dict[str, ImportedSlide] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    skipped_slides: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def invalid(self) -> int:
        """Spots without an embedding, of the slides done: without a row, or with one that cannot be used."""
        return sum(slide.spots - slide.match.matched + slide.unusable for slide in self.done.values())


def import_features(
    request: ImportRequest, store_path: Path, progress: ProgressCallback = lambda text: None
) -> ImportReport:
    """Import embeddings that were made elsewhere.

    Returns
    -------
    What was done. A slide that cannot be imported does not stop the others; its reason is in the report.

    Raises
    ------
    RequestError
        If nothing can be done at all: contradicting options, no file, or the store holds embeddings of this
        encoder that were extracted.
    """
    check_request(request)
    refuse_read_only(store_path)
    store = FeatureStore.open(store_path, writable=True) if is_nonempty(store_path) else None
    found = find_jobs(request.features, request.slide, request.cohort, store)
    check_slide_names(store_path, (job.slide for job in found.jobs))
    report = ImportReport(skipped_slides=found.without_file, unknown=found.unknown)
    widths = _stored_widths(store, request, {job.slide for job in found.jobs})
    for job in found.jobs:
        progress(f"importing {job.slide}")
        try:
            store = _import_slide(job, request, store_path, store, widths, report)
        except (SlideError, StoreError, RecipeMismatchError) as error:
            _LOG.info("slide %s failed: %s", printable(job.slide), error)
            report.failed[job.slide] = str(error)
        except MmapError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            _LOG.info("slide %s failed: %s", printable(job.slide), error)
            report.failed[job.slide] = str(of_one_slide(error))
    here = [*report.done, *report.unchanged]
    report.failed |= lost_slides(store_path, here, request.encoder, [request.mpp]) if here else {}
    report.done = {name: done for name, done in report.done.items() if name not in report.failed}
    report.unchanged = [name for name in report.unchanged if name not in report.failed]
    return report


def _stored_widths(
    store: FeatureStore | None, request: ImportRequest, slides: set[str]
) -> dict[tuple[str, float], int]:
    """Length of the embeddings that the store keeps of this encoder, by slide and mpp.

    Raises
    ------
    RecipeMismatchError
        If some of them were extracted, not imported.
    """
    widths = {}
    for slide, stored in stored_magnifications(store, request.encoder) if store is not None else ():
        if request.overwrite and stored.mpp == request.mpp and slide in slides:
            continue
        if not request.overwrite and not is_imported(stored.recipe):
            raise RecipeMismatchError(
                f"the embeddings of {request.encoder} in the store (slide {slide}) were extracted, and those"
                " to import may differ in more than is known; give another --encoder name, or use another"
                " store."
            )
        # One without a width is made again if it is this import's, and counts for nothing if not.
        if (width := stored_width(stored)) is not None:
            widths[slide, stored.mpp] = width
    return widths


def _import_slide(
    job: ImportJob,
    request: ImportRequest,
    store_path: Path,
    store: FeatureStore | None,
    widths: dict[tuple[str, float], int],
    report: ImportReport,
) -> FeatureStore:
    slide = find_slide(job.slide, store, SpotSource(request.cohort, request.spots, request.source_mpp))
    features = read_features(job.path())
    patch_mpp = _patch_mpp(features, slide.info.source_mpp, request.mpp)
    match = match_rows(slide, features, request.coordinates)
    embedding, valid = rows_of_spots(features, match)
    for (name, mpp), width in widths.items():
        if width != features.width and (name, mpp) != (job.slide, request.mpp):
            raise FeaturesError(width_sentence(request.encoder, features.width, name, mpp, width))
    recipe = imported_recipe(
        request.encoder,
        request.mpp,
        features.precision,
        slide.spots,
        features.sha256(),
        match.how,
        match.rows,
    )
    # A store is made only now that there is something to put into it.
    store = store or FeatureStore.create(store_path)
    with slide_lock(store.folder, encode_name(job.slide)):
        if _is_there(store, job.slide, request, recipe):
            report.unchanged.append(job.slide)
            return store
        write_slide(store, slide.info, slide.spots)
        writer = MagnificationWriter(
            store,
            job.slide,
            request.encoder,
            request.mpp,
            recipe,
            (len(embedding), features.width),
            chunk=request.chunk,
            overwrite=request.overwrite,
        )
        in_bounds = in_bounds_of(slide, features, request.coordinates)
        for index in writer.pending():
            rows = writer.rows(index)
            part = slice(rows.start, rows.stop)
            writer.write_chunk(index, embedding[part], valid[part], in_bounds[part])
        unusable = int(((match.rows >= 0) & ~valid).sum())
        done = ImportedSlide(len(valid), match, unusable, _in_um(match.largest_px, slide.info.source_mpp))
        writer.finish(
            {
                "imported_from": features.path.name,
                "patch_mpp": patch_mpp,
                "matched": {"how": done.how, "spots": match.matched, "spare_rows": match.spare},
            }
        )
    widths[job.slide, request.mpp] = features.width
    report.done[job.slide] = done
    return store


def _patch_mpp(features: Features, source_mpp: float | None, asked: float) -> float | None:
    """Micrometres per pixel of a file's patches, by what it says of itself; None where that is too little.

    Magnifications are nominal (20x is 0.46 to 0.5 um/px with scanners of today), so only a figure that is
    plainly another one is refused.

    Raises
    ------
    FeaturesError
        If it is.
    """
    if features.shrink is None or source_mpp is None:
        return None
    found = features.shrink * source_mpp
    if not 1 / _LARGEST_MPP_RATIO < found / asked < _LARGEST_MPP_RATIO:
        raise FeaturesError(
            f"{features.path} has patches of {found:.3g} um/px ({features.shrink:.3g} level-0 pixels a pixel,"
            f" at {source_mpp:.4g} um/px), and --mpp says {asked:g}; correct --mpp."
        )
    return found


def _is_there(store: FeatureStore, name: str, request: ImportRequest, recipe: Recipe) -> bool:
    """Whether the store holds the same already; another recipe is refused unless it is to be replaced."""
    slide = undamaged_slide(store, name)
    stored = {m.mpp: m for m in slide.undamaged(request.encoder)}.get(request.mpp) if slide else None
    if stored is None:
        return False
    different = differences(stored.recipe, recipe)
    if different and not request.overwrite:
        raise SlideRecipeError(mismatch_sentence(request.encoder, request.mpp, different))
    return stored.complete and not different and stored.whole and stored.is_sound()


def _in_um(pixels: float | None, source_mpp: float | None) -> float | None:
    return None if pixels is None or source_mpp is None else pixels * source_mpp
