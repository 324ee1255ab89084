"""Apply a trained head to slides of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mmap_st.data import Cohort, CohortSlide, ThumbnailReader, no_thumbnail
from mmap_st.errors import (
    HeadError,
    RequestError,
    SlideError,
    StoreError,
    counted,
    did_you_mean,
    of_one_slide,
)
from mmap_st.extract.store import (
    FeatureStore,
    StoredSlide,
    differences,
    head_part,
    note_unsealed,
    staying,
)
from mmap_st.extract.windows import mpp_key
from mmap_st.files import absolute_place, refuse_clashes
from mmap_st.head.dataset import check_tokens, counts_on_panel, load_slide, prototype_settings, with_targets
from mmap_st.head.inputs import MAX_BYTES, RowCache
from mmap_st.head.interface import HeadMethod
from mmap_st.head.joined import join_slides
from mmap_st.head.runs.head_card import HeadCard
from mmap_st.head.runs.prediction_files import (
    CALIBRATION,
    HEAD_SHA256,
    prediction_file,
    prediction_folder,
    write_prediction,
)
from mmap_st.head.runs.run_folder import restore_run
from mmap_st.head.runs.saved_head import SavedHead, read_head
from mmap_st.head.runs.slide_prediction import (
    MAX_BYTES_OF_LARGE,
    PredictedSlide,
    PreparedSlide,
    WrittenSlide,
    is_large,
    predict_whole,
    write_blocks,
)
from mmap_st.head.runs.spatial_metadata import spatial_metadata_of
from mmap_st.head.runs.suitability import FAR, LIKE, UNLIKE, judge_slide, most_enlarged
from mmap_st.head.scoring import GeneSets, SlideScores
from mmap_st.progress import ProgressCallback

if TYPE_CHECKING:
    import anndata

    from mmap_st.extract.engine import ExtractReport

Predicted = TypeVar("Predicted")


@dataclass
class PredictReport:
    """Files written, and slides that were skipped or failed, with the reason.

    `unlike` and `far` are those of the slides predicted that are unlike, or far from, the training tissue.
    `scores` are of those that a cohort has measured values of, and `coverage` is the share of these that the
    90% intervals contain. `extractions` says what was embedded first, for each encoder, where slides were
    given and not a store. `notes` say which gene sets have no score. `page` shows the predictions,
    where one was written.
    """

    written: dict[str, Path] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unlike: dict[str, str] = field(default_factory=dict)
    far: dict[str, str] = field(default_factory=dict)
    scores: dict[str, SlideScores] = field(default_factory=dict)
    coverage: dict[str, float] = field(default_factory=dict)
    extractions: list[ExtractReport] = field(default_factory=list, repr=False)
    notes: tuple[str, ...] = ()
    page: Path | None = None


@dataclass
class Predictions:
    """Predictions of slides, and those that were skipped or failed, with the reason; see `PredictReport`."""

    tables: dict[str, anndata.AnnData] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unlike: dict[str, str] = field(default_factory=dict)
    far: dict[str, str] = field(default_factory=dict)

    def only(self, slide: str) -> anndata.AnnData:
        """The prediction of one slide.

        Raises
        ------
        SlideError
            If it was skipped or failed.
        """
        if slide not in self.tables:
            raise SlideError(f"slide {slide} cannot be predicted: {(self.failed | self.skipped)[slide]}")
        return self.tables[slide]


def predict_slides(
    run: Path | SavedHead,
    store: FeatureStore,
    out: Path,
    slides: Sequence[str] | None = None,
    tell: ProgressCallback = lambda text: None,
    *,
    overwrite: bool = False,
    cohort: Cohort | None = None,
    strict: bool = False,
    thumbnail_of: ThumbnailReader = no_thumbnail,
    gene_sets: GeneSets | None = None,
) -> PredictReport:
    """Write one .h5ad per slide.

    Parameters
    ----------
    run
        A trained head, or its folder.
    store
        Where the embeddings are.
    out
        Folder to write to.
    slides
        Names; None: all slides of the store that have what the head needs.
    tell
        Called with what is being done.
    overwrite
        Whether predictions of another head in `out` are replaced.
    cohort
        Where measured values and images are from; None: neither is written.
    strict
        Whether slides that are unlike anything the head was trained on fail.
    thumbnail_of
        Reads the cohort's images, for what is drawn behind predictions.
    gene_sets
        Gene sets on the head's panel that spots are scored by.

    Raises
    ------
    RequestError
        If a slide is not in the store, none can be predicted, or `out` holds predictions of another head.
    """
    if isinstance(run, Path):
        restore_run(run)
    saved = read_head(run) if isinstance(run, Path) else run
    names = _names_in(store, slides)
    files = [prediction_file(out, name) for name in names]
    refuse_clashes((file.name for file in files), out)
    found, report = Predictions(), PredictReport(notes=gene_sets.notes if gene_sets else ())
    with prediction_folder(out, saved.sha256, files, overwrite=overwrite):

        def predict(prepared: PreparedSlide) -> WrittenSlide | PredictedSlide:
            if prepared.is_large:
                return write_blocks(prepared, prediction_file(out, prepared.slide.name), gene_sets)
            return predict_whole(prepared)

        for name, predicted in _predictions(
            saved, store, names, cohort, found, tell, strict, thumbnail_of, predict
        ):
            report.written[name] = prediction_file(out, name)
            if isinstance(predicted, PredictedSlide):
                if gene_sets is not None:
                    gene_sets.add_scores(predicted.table)
                write_prediction(report.written[name], predicted.table)
            if predicted.scores is not None:
                report.scores[name] = predicted.scores
            if predicted.coverage is not None:
                report.coverage[name] = predicted.coverage
    report.skipped, report.failed = found.skipped, found.failed
    report.unlike, report.far = found.unlike, found.far
    return report


def predictions_of(
    saved: SavedHead,
    store: FeatureStore,
    slides: Sequence[str] | None = None,
    cohort: Cohort | None = None,
    tell: ProgressCallback = lambda text: None,
    *,
    strict: bool = False,
    thumbnail_of: ThumbnailReader = no_thumbnail,
    gene_sets: GeneSets | None = None,
) -> Predictions:
    """Predict slides in memory, see `predict_slides`."""
    found = Predictions()
    names = _names_in(store, slides)
    for name, predicted in _predictions(
        saved, store, names, cohort, found, tell, strict, thumbnail_of, predict_whole
    ):
        if gene_sets is not None:
            gene_sets.add_scores(predicted.table)
        found.tables[name] = predicted.table
    return found


def _names_in(store: FeatureStore, slides: Sequence[str] | None) -> Sequence[str]:
    """Slides of a store: those that are named, else all."""
    unknown = [name for name in slides or () if not store.has_slide(name)]
    if unknown:
        raise RequestError(
            f"{store.path} has no slide {', '.join(unknown)}{did_you_mean(unknown[0], store.slides)}."
        )
    return store.slides if slides is None else slides


def _predictions(
    saved: SavedHead,
    store: FeatureStore,
    slides: Sequence[str],
    cohort: Cohort | None,
    found: Predictions,
    tell: ProgressCallback,
    strict: bool,
    thumbnail_of: ThumbnailReader,
    predict: Callable[[PreparedSlide], Predicted],
) -> Iterator[tuple[str, Predicted]]:
    """What `predict` makes of slides one after the other; the others go to `found`, with their reasons."""
    done: list[str] = []
    for name in slides:
        row = cohort[name] if cohort is not None and name in cohort.names else None
        try:
            missing = _missing(saved, store, name)
            if missing:
                found.skipped[name] = missing
                continue
            tell(f"predicting {name}")
            with staying(store.path, [name], saved.encoders, saved.mpps):
                prepared = _prepare(saved, store, name, row, thumbnail_of)
                suitability = prepared.suitability
                if strict and suitability.verdict == UNLIKE:
                    raise SlideError(suitability.sentence)
                predicted = predict(prepared)
                del prepared  # its embeddings: else those of the next slide would be read beside them
        except (SlideError, StoreError) as error:
            found.failed[name] = str(error)
            continue
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            found.failed[name] = str(of_one_slide(error))
            continue
        done.append(name)
        if suitability.verdict != LIKE:
            where = found.far if suitability.verdict == FAR else found.unlike
            where[name] = "; ".join(suitability.reasons)
        yield name, predicted
    for encoder in saved.encoders:
        note_unsealed(store, done, encoder)
    if not done and not found.failed:
        raise RequestError(
            f"no slide of {store.path} has what the head needs:"
            f" {saved.encoder} at {', '.join(mpp_key(mpp) for mpp in saved.mpps)} um/px"
            f"{f', with {saved.tokens} x {saved.tokens} tokens' if saved.tokens else ''}; embed its slides so"
            " (`mmap extract COHORT STORE --encoder NAME --mpp ...`, or `mmap import`), or name their images"
            " to `mmap predict`, which embeds them as the head's own were."
        )


def _missing(saved: SavedHead, store: FeatureStore, name: str) -> str | None:
    """What a slide lacks that the head needs, of every encoder."""
    slide = store.slide(name)
    reasons = (_missing_of_encoder(card, saved.method, slide) for card in saved.card.by_encoder)
    return "; ".join(reason for reason in reasons if reason) or None


def _missing_of_encoder(card: HeadCard, method: HeadMethod, slide: StoredSlide) -> str | None:
    complete = slide.complete(card.encoder_name)
    missing = [mpp_key(mpp) for mpp in card.magnifications if mpp not in complete]
    if missing:
        return f"{card.encoder_name} is not complete at {', '.join(missing)} um/px"
    try:
        side = check_tokens([slide], card.encoder_name, card.magnifications, method)
    except HeadError as error:
        return str(error)
    if side != card.tokens:
        return f"it has {side} x {side} tokens, and the head was trained on {card.tokens} x {card.tokens}"
    return None


def _check_recipes(card: HeadCard, stored: StoredSlide) -> None:
    """Refuse a slide that was embedded otherwise than those that the head of one encoder was trained on."""
    for magnification in stored.complete(card.encoder_name).values():
        different = differences(card.encoder, head_part(magnification.recipe))
        if magnification.mpp in card.magnifications and different:
            raise SlideError(
                "it was embedded with other settings than the head's training slides"
                f" ({'; '.join(different)}); extract it again with the same settings."
            )


def _prepare(
    saved: SavedHead,
    store: FeatureStore,
    name: str,
    row: CohortSlide | None,
    thumbnail_of: ThumbnailReader,
) -> PreparedSlide:
    """Load a slide, with its measured values if the cohort has some, and compare it with training."""
    stored = store.slide(name)
    for card in saved.card.by_encoder:
        _check_recipes(card, stored)
    wanted = prototype_settings(saved.settings, saved.card.seed)
    large = is_large(len(stored), len(saved.genes))
    cache = RowCache(MAX_BYTES_OF_LARGE if large else MAX_BYTES)
    slide = join_slides(
        [
            load_slide(
                store,
                name,
                encoder,
                saved.mpps,
                prototypes=wanted,
                tokens=saved.method.tokens,
                cache=cache,
            )
            for encoder in saved.encoders
        ]
    )
    normalisation = saved.card.normalisation.targets
    about: dict[str, object] = {
        "head": saved.method.name,
        "encoder": saved.encoder,
        "normalisation": normalisation,
        "source_mpp": stored.source_mpp,
        "enlarged": most_enlarged(stored, saved.encoders, saved.mpps),
        HEAD_SHA256: saved.sha256,
        CALIBRATION: saved.card.calibration,
    }
    if row is not None:
        about["image"] = None if row.image is None else str(absolute_place(row.image))
        # A grid that was laid on the tissue is of no count table.
        if row.counts is not None and (row.spots is not None or stored.spots_made_by() is None):
            counts = counts_on_panel(row, slide.ids, saved.genes)
            slide = with_targets({name: slide}, {name: counts}, saved.genes, normalisation)[name]
            del counts  # of a large slide they are most of the memory
    for card, seen in zip(saved.card.by_encoder, slide.by_encoder, strict=True):
        width = seen.embedding.shape[-1]
        if width != card.shape["width"]:
            raise SlideError(
                f"its embeddings have {counted(width, 'dimension')}, and the head takes"
                f" {card.shape['width']}."
            )
    trained = {card.encoder_name: card.training_slides for card in saved.card.by_encoder}
    suitability = judge_slide(saved.domain, trained, stored, slide, saved.mpps)
    spatial = spatial_metadata_of(stored, row, saved.encoders, saved.mpps, thumbnail_of)
    return PreparedSlide(saved, slide, about, suitability, spatial)
